"""Time that passes only while nobody has anything to do, and then all at once.

An event loop asks its selector to wait until the next timer is due. This one's does not wait: it puts the clock there. So the
loop itself says when everything stands still, every wait in a run is one of this clock, those of libraries too, and a run
that waits for nothing is found out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

LONGEST_RUN_S = 7 * 86_400.0

T = TypeVar("T")


class VirtualClock:
    """An `engine.gate.Clock` for what runs in its `loop()`; `epoch` is the Unix time at `now() == 0`.

    What is done in a thread elsewhere is done at once and takes no time. A run in which everyone waits and nobody for time,
    or which is not over after `LONGEST_RUN_S`, ends with an AssertionError.
    """

    def __init__(self, epoch: float) -> None:
        self._epoch = epoch
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def time(self) -> float:
        return self._epoch + self._now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return work()

    def loop(self) -> asyncio.AbstractEventLoop:
        """A new event loop that goes by this clock."""
        return _Loop(self)

    def jump(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._now += seconds
        assert self._now < LONGEST_RUN_S, "the run does not end"


class _Selector:
    """Nothing ever comes from outside, so there is nothing to wait for but time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def select(self, timeout: float | None) -> tuple[()]:
        assert timeout is not None, "everyone waits, and nobody for time"
        if timeout > 0:
            self._clock.jump(timeout)
        return ()


class _Loop(asyncio.BaseEventLoop):
    """Without sockets, signals and threads, so that it is quickly made: each run has its own."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._selector = _Selector(clock)
        self.time = clock.now

    def _process_events(self, events: tuple[()]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""
