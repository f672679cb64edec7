"""Turns the pacer's seconds into waiting.

Requests pass one behind the other, in the order they came: whoever stands at the front asks the pacer, so a large request
is not overtaken for ever by small ones. While the pacer lets everything pass, nothing is awaited.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread

from batchkit.engine.stop import Stop
from batchkit.records import Answer, Failure, FailureKind, Request
from batchkit.rules.pacing import Pacer, Reservation, TokenForecast

__all__ = ["Clock", "Gate", "Queue", "SystemClock"]

_LONGEST_NAP_S = 1.0
_SHORTEST_NAP_S = 0.001


T = TypeVar("T")


class Clock(Protocol):
    """Time, as an argument, and what passes beside it."""

    def now(self) -> float:
        """Seconds on a steady clock."""

    def time(self) -> float:
        """Unix time in seconds."""

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds."""

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what blocks while the event loop goes on."""


class SystemClock:
    """The machine's own clocks and threads."""

    now = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work)


class Gate:
    """Lets attempts start at the pacer's pace."""

    def __init__(self, pacer: Pacer, clock: Clock, stop: Stop) -> None:
        self.pacer = pacer
        self._clock = clock
        self._stop = stop
        self._forecast = TokenForecast()
        self._turn = anyio.Lock()
        self.waiting = 0
        """Attempts that stand before the gate."""

    async def admit(self, request: Request) -> Reservation | None:
        """Wait until an attempt on `request` may start. What is reserved for it, or None when the run is stopping."""
        now = self._clock.now()
        tokens = self._expect(request)
        if not self.waiting and self.pacer.reserve(now, tokens) == 0.0:
            return Reservation(now, tokens)
        self.waiting += 1
        try:
            async with self._turn:
                while True:
                    now = self._clock.now()
                    # Forecast again: while it waited, answers may have told what to expect.
                    tokens = self._expect(request)
                    wait = self.pacer.reserve(now, tokens)
                    if wait == 0.0:
                        return Reservation(now, tokens)
                    # Not longer than a second at once: settled tokens and a grown rate bring the moment nearer.
                    if not await self.sleep(max(_SHORTEST_NAP_S, min(wait, _LONGEST_NAP_S))):
                        return None
        finally:
            self.waiting -= 1

    def _expect(self, request: Request) -> float:
        return self._forecast.tokens(request) if self.pacer.counts_tokens else 0.0

    def settle(self, request: Request, answer: Answer, reserved: Reservation) -> None:
        """Tell the pacer what came of an attempt that `admit` let start."""
        now = self._clock.now()
        if isinstance(answer, Failure):
            if answer.kind in (FailureKind.RATE_LIMITED, FailureKind.OVERLOADED):
                self.pacer.refused(now, answer.retry_after, reserved)
                return
            used = None if answer.usage is None else answer.usage.total_tokens
            self.pacer.accepted(now, reserved, used)
            return
        if answer.usage is None:
            self.pacer.accepted(now, reserved)
            return
        self.pacer.accepted(now, reserved, answer.usage.total_tokens)
        if self.pacer.counts_tokens:
            self._forecast.learn(len(request.body), answer.usage)

    async def sleep(self, seconds: float) -> bool:
        """Wait; False when the run began to stop meanwhile."""
        with anyio.CancelScope() as scope:
            self._stop.ends(scope)
            try:
                await self._clock.sleep(seconds)
            finally:
                self._stop.forget(scope)
        return self._stop.cause is None

    def queue(self) -> Queue:
        """A queue beside the gate, for those who may not come before it yet."""
        return Queue(self.sleep)


class Queue:
    """Requests that wait one behind the other for a turn that a rule gives out.

    Whoever stands at the front asks, and asks again after the seconds it is told, or when the queue is `stirred`.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[bool]]) -> None:
        self._sleep = sleep
        self._turn = anyio.Lock()
        self._nap: anyio.CancelScope | None = None

    async def wait(self, ask: Callable[[], float]) -> bool:
        """Wait until `ask` says 0.0, which is the turn and is not asked for twice; False when the run stops first."""
        async with self._turn:
            while (seconds := ask()) > 0.0:
                awake = True
                with anyio.CancelScope() as self._nap:
                    awake = await self._sleep(max(_SHORTEST_NAP_S, min(seconds, _LONGEST_NAP_S)))
                self._nap = None
                if not awake:
                    return False
        return True

    def stirred(self) -> None:
        """Something happened that the one at the front may have waited for."""
        if self._nap is not None:
            self._nap.cancel()
