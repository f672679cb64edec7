"""The deadlines of all that take equally long under one timer: one for each would cost an attempt some 10 µs on uvloop."""

from __future__ import annotations

import asyncio
from math import inf
from types import TracebackType
from typing import Protocol

__all__ = ["Deadlines", "Ending", "Limit"]

_STALL_S = 1.0
"""A timer that comes later than this found an event loop that stood still."""
_GRAIN = 0.01
"""So much of its timeout an attempt may be over its time, lest each of thousands that come due has all others looked at."""


class Ending(Protocol):
    """What has a deadline."""

    def overdue(self) -> None:
        """Its time is up."""
        ...


class Deadlines:
    """Those of what takes at most `timeout` seconds and a hundredth; a deadline is told in the loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._running: dict[Ending, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf

    def next(self) -> float:
        """The deadline of what begins now."""
        return self._loop.time() + self._timeout

    def start(self, ending: Ending, due: float) -> None:
        """Have `ending` told when it is due, unless it is stopped before."""
        self._running[ending] = due
        if due < self._due:
            # One that is past already is no sign of a loop that stood still.
            self._set_timer(max(due, self._loop.time()))

    def stop(self, ending: Ending) -> None:
        """`ending` has no deadline any more."""
        self._running.pop(ending, None)

    def limit(self, due: float) -> Limit:
        """What to do within the time, where a task has to be cancelled."""
        return Limit(self, due)

    def close(self) -> None:
        """No attempt is to be ended any more."""
        self._running.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        now = self._loop.time()
        if now - self._due > _STALL_S:
            # The loop stood still (a slow disk, a machine asleep), and with it the reading of what has long arrived:
            # that comes first.
            self._set_timer(now + _STALL_S)
            return
        for ending in [ending for ending, due in self._running.items() if due <= now]:
            del self._running[ending]
            ending.overdue()
        self._timer, self._due = None, inf
        if self._running:
            self._set_timer(max(min(self._running.values()), now + self._timeout * _GRAIN))

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._loop.call_at(when, self._sweep)


class Limit:
    """What asyncio.timeout_at is, without a timer: raises TimeoutError where it was the deadline alone that cancelled.

    Thousands wait in one when a run begins.
    """

    __slots__ = ("_cancelling", "_deadlines", "_due", "_over", "_task")

    def __init__(self, deadlines: Deadlines, due: float) -> None:
        self._deadlines = deadlines
        self._due = due
        self._over = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.start(self, self._due)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.stop(self)
        if self._over and self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise TimeoutError from exc

    def overdue(self) -> None:
        """Cancel what is done within it."""
        self._over = True
        self._task.cancel()
