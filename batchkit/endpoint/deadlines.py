"""The deadlines of all attempts under one timer: a timer for each would cost an attempt some 10 µs on uvloop."""

from __future__ import annotations

import asyncio

__all__ = ["Deadline", "Deadlines"]

_STALL_S = 1.0
"""A timer that comes later than this found an event loop that stood still."""


class Deadline:
    """When an attempt's time is up, in the loop's time, and whether it was the deadline that cancelled the task.

    What asyncio.timeout does, for less: the deadline cancels the task, and whoever finds the cancellation to be the
    deadline's alone turns it into an answer. An outer one, also at the same moment, leaves `cancelling` raised and goes on
    its way.
    """

    __slots__ = ("_cancelling", "passed", "task", "when")

    def __init__(self, task: asyncio.Task[object], when: float) -> None:
        self.task = task
        self.when = when
        self.passed = False
        self._cancelling = task.cancelling()

    def caught(self) -> bool:
        """Whether the cancellation that reached the task is this deadline's and nobody else's."""
        if not self.passed:
            return False
        self.passed = False
        return self.task.uncancel() <= self._cancelling


class Deadlines:
    """Those of one endpoint: each is as long as the next, so they come due in order. `timeout` is in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> Deadline:
        """The deadline of an attempt that begins now, in the current task."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        deadline = Deadline(task, self._loop.time() + self._timeout)
        self._running[deadline] = None
        if self._timer is None:
            self._set_timer(deadline.when)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """The attempt is over; its deadline cancels nothing any more."""
        self._running.pop(deadline, None)
        if deadline.passed:
            deadline.task.uncancel()

    def close(self) -> None:
        """No attempt is to be ended any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now - self._due > _STALL_S:
            # The loop stood still (a slow disk, a machine asleep), and with it the reading of what has long arrived:
            # that comes first.
            self._set_timer(now + _STALL_S)
            return
        for deadline in list(self._running):
            if deadline.when > now:
                self._set_timer(deadline.when)
                return
            del self._running[deadline]
            deadline.passed = True
            deadline.task.cancel()

    def _set_timer(self, when: float) -> None:
        self._due = when
        self._timer = self._loop.call_at(when, self._sweep)
