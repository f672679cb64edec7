"""The deadlines of all attempts under one timer: a timer for each would cost an attempt some 10 µs on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import inf

__all__ = ["Deadlines"]

_STALL_S = 1.0
"""A timer that comes later than this found an event loop that stood still."""
_GRAIN = 0.01
"""So much of its timeout an attempt may be over its time, lest each of thousands that come due has all others looked at."""


class Deadlines:
    """Those of one endpoint, whose attempts take at most `timeout` seconds; a deadline is told in the loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._running: dict[Callable[[], None], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf

    def next(self) -> float:
        """The deadline of an attempt that begins now."""
        return self._loop.time() + self._timeout

    def start(self, end: Callable[[], None], due: float) -> None:
        """Have `end` called when it is due, unless it is stopped before."""
        self._running[end] = due
        if due < self._due:
            self._set_timer(due)

    def stop(self, end: Callable[[], None]) -> None:
        """There is nothing to `end` any more."""
        self._running.pop(end, None)

    @asynccontextmanager
    async def limit(self, due: float) -> AsyncIterator[None]:
        """What asyncio.timeout_at does: cancels what is done within, and raises TimeoutError if nobody else cancelled it too."""
        async with asyncio.timeout(None) as timeout:
            end = partial(timeout.reschedule, 0.0)
            self.start(end, due)
            try:
                yield
            finally:
                self.stop(end)

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
        for end in [end for end, due in self._running.items() if due <= now]:
            del self._running[end]
            end()
        self._timer, self._due = None, inf
        if self._running:
            self._set_timer(max(min(self._running.values()), now + self._timeout * _GRAIN))

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._loop.call_at(when, self._sweep)
