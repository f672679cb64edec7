"""Turns the pacer's seconds into waiting.

Each model has its own pace, and one that is at its limit holds up no other: those who wait for it are `held`, and for each of
them the pipeline lets in another, so many that the gate is also what keeps attempts in flight within the run's concurrency.
Requests to a model pass one behind the other, in the order they came: whoever stands at the front asks the pacer, for itself and
for those behind it, so a large request is not overtaken for ever by small ones; nor is it by those to other models, where they
share a ceiling or wait for a place. While the pacer lets everything pass, nothing is awaited, nor does anyone join those who stand
before the gate.
"""

from __future__ import annotations

import sys
import time
from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread

from batchkit.engine.stop import Stop
from batchkit.records import Answer, Failure, FailureKind, Request
from batchkit.rules.forecast import TokenForecast
from batchkit.rules.pacing import Pacer, Reservation

__all__ = ["Clock", "Gate", "Queue", "SystemClock"]

_LONGEST_NAP_S = 1.0
_SHORTEST_NAP_S = 0.001
_REFUSALS = (FailureKind.RATE_LIMITED, FailureKind.OVERLOADED)
_MOST_LANES = 1000
"""A file may name as many models as it has lines; those beyond so many share the first one's pace."""

_MOST_HELD = 4096
_MOST_HELD_BYTES = 64 << 20
"""What of the input may be read ahead of models at their limits, in requests and in bytes of those that wait."""

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


class _Attempt:
    """One that stands before the gate."""

    __slots__ = ("called", "nap", "request", "reserved")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.reserved: Reservation | None = None
        """There as soon as it may start."""
        self.called: Future[None] = get_running_loop().create_future()
        self.nap: anyio.CancelScope | None = None

    def call(self) -> None:
        """It may start, or has come to the front, or may find there that its wait is over."""
        if not self.called.done():
            self.called.set_result(None)
        if self.nap is not None:
            self.nap.cancel()


class _Lane:
    """The requests to one model: their pace, and their queue before the gate."""

    __slots__ = ("forecast", "held", "pacer", "queue")

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.forecast = TokenForecast()
        self.queue: deque[_Attempt] = deque()
        self.held = False
        """Whether those in the queue are there for a limit of their own model."""

    def call(self) -> None:
        """Have the one at the front ask again."""
        if self.queue:
            self.queue[0].call()


class Gate:
    """Lets attempts start at the pace of their model. Each model has a pacer as `pacer` is, under the same ceilings.

    At most `concurrency` are in flight, from `admit` to `settle`. What requests take is forecast; where tokens are
    what is limited, `count_prompt` gives those of a request's prompt, or None for one that can only be forecast.
    """

    def __init__(
        self,
        pacer: Pacer,
        clock: Clock,
        stop: Stop,
        concurrency: int = sys.maxsize,
        count_prompt: Callable[[Request], int | None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._stop = stop
        self._places = concurrency
        self._count_prompt = count_prompt
        self._counted: tuple[Request, int | None] | None = None
        self._lanes: dict[str | None, _Lane] = {}
        self._first = _Lane(pacer)
        self._ceilings = pacer.ceilings
        self._turns: deque[_Lane] = deque()
        """Those whose front waits for what all share, a place or a ceiling, in the order in which it came to that."""
        self._held = 0
        self._waiting_bytes = 0
        self.waiting = 0
        """Attempts that stand before the gate."""

    @property
    def pacer(self) -> Pacer:
        """The pacer of the model before which most attempts stand."""
        return max(self._lanes.values(), key=lambda lane: len(lane.queue), default=self._first).pacer

    @property
    def pacers(self) -> Mapping[str | None, Pacer]:
        """The pacer of each model that was asked for; None stands for requests that name none."""
        return {model: lane.pacer for model, lane in self._lanes.items()}

    @property
    def full(self) -> bool:
        """Whether as many attempts are in flight as may be."""
        return self._places <= 0

    def held(self) -> int:
        """Attempts that wait for the limit of their own model, for each of which one to another model may be let in.

        0 while all are to one model, or when what waits is as much as may be read ahead.
        """
        if len(self._lanes) < 2 or self._waiting_bytes > _MOST_HELD_BYTES:
            return 0
        return min(self._held, _MOST_HELD)

    def admit_now(self, request: Request) -> Reservation | None:
        """What is reserved for an attempt on `request` that may start at once; None if it would have to wait."""
        lane = self._lanes.get(request.model) or self._lane(request.model)
        if self._places <= 0 or (self.waiting and not self._passes(lane)):
            return None
        pacer = lane.pacer
        now, tokens = self._clock.now(), self._expect(request, lane) if pacer.counts_tokens else 0.0
        if pacer.reserve(now, tokens) > 0.0:
            return None
        self._places -= 1
        return pacer.reserved(now, tokens)

    async def admit(self, request: Request) -> Reservation | None:
        """Wait behind those who wait until an attempt on `request` may start. What is reserved for it, or None when the run is stopping.

        Whoever may pass them is let through by `admit_now`, which is to be asked first.
        """
        lane = self._lane(request.model)
        attempt = _Attempt(request)
        self._enter(lane, attempt)
        try:
            return await self._stand(lane, attempt)
        finally:
            if attempt.reserved is None:
                self._leave(lane, attempt)

    async def rest(self, request: Request, seconds: float) -> bool:
        """`sleep`, for a request that its model's limit refused: it is `held` meanwhile."""
        self._held += 1
        self._waiting_bytes += len(request.body)
        try:
            return await self.sleep(seconds)
        finally:
            self._held -= 1
            self._waiting_bytes -= len(request.body)

    def _passes(self, lane: _Lane) -> bool:
        """Whether who comes need not stand behind those who wait, as no limit is known or none that they share."""
        if self._turns:
            return False
        return not (self.waiting if self._ceilings.given else lane.queue) or lane.pacer.is_open

    def _expect(self, request: Request, lane: _Lane) -> float:
        """What an attempt on `request` will take, as far as can be told and anybody wants to know."""
        if not lane.pacer.limits_tokens:
            return lane.forecast.tokens(request)
        if self._counted is None or self._counted[0] is not request:
            # Whoever stands at the front asks again and again.
            self._counted = request, self._count_prompt(request)
        return lane.forecast.tokens(request, self._counted[1])

    def _enter(self, lane: _Lane, attempt: _Attempt) -> None:
        lane.queue.append(attempt)
        self._count(lane, 1, len(attempt.request.body))

    def _leave(self, lane: _Lane, attempt: _Attempt) -> None:
        """Take an attempt that does not start out of the queue."""
        lane.queue.remove(attempt)
        self._count(lane, -1, -len(attempt.request.body))
        if not lane.queue:
            self._give_up_turn(lane)
        lane.call()

    def _count(self, lane: _Lane, attempts: int, size: int) -> None:
        self.waiting += attempts
        self._waiting_bytes += size
        if lane.held:
            self._held += attempts

    def _hold(self, lane: _Lane, *, held: bool) -> None:
        if lane.held != held:
            lane.held = held
            self._held += len(lane.queue) if held else -len(lane.queue)

    def _give_up_turn(self, lane: _Lane) -> None:
        if lane in self._turns:
            self._turns.remove(lane)
            if self._turns:
                self._turns[0].call()

    async def _stand(self, lane: _Lane, attempt: _Attempt) -> Reservation | None:
        """Wait before the gate until the attempt may start: what is reserved for it, or None when the run is stopping."""
        while self._stop.cause is None:
            if lane.queue[0] is attempt:
                wait = self._let_pass(lane)
                if attempt.reserved is None:
                    await self._wait(attempt, wait)
                else:
                    lane.call()  # the next is the one to ask now
            else:
                await attempt.called
            if attempt.reserved is not None:
                return attempt.reserved
            attempt.called = get_running_loop().create_future()
        return None

    async def _wait(self, attempt: _Attempt, seconds: float) -> None:
        """Wait at the front until called, or not so long."""
        with anyio.CancelScope() as scope:
            self._stop.ends(scope)
            try:
                if seconds == inf:
                    await attempt.called
                else:
                    attempt.nap = scope
                    # Not longer than a second at once: settled tokens and a grown rate bring the moment nearer.
                    await self._clock.sleep(max(_SHORTEST_NAP_S, min(seconds, _LONGEST_NAP_S)))
            finally:
                attempt.nap = None
                self._stop.forget(scope)

    def _let_pass(self, lane: _Lane) -> float:
        """Let those start who may, from the front on. The seconds until the next should ask, infinite for when it is called."""
        pacer, queue = lane.pacer, lane.queue
        while queue:
            request = queue[0].request
            now, tokens = self._clock.now(), self._expect(request, lane) if pacer.counts_tokens else 0.0
            if (wait := pacer.wait(now, tokens)) > 0.0:
                self._hold(lane, held=pacer.limited or pacer.paused_for(now) > 0.0)
                self._give_up_turn(lane)
                return wait
            if len(queue) == 1:
                # Not sooner: who comes next would let in anew whom this one sent away.
                self._hold(lane, held=False)
            if lane not in self._turns:
                self._turns.append(lane)
            if self._turns[0] is not lane or self._places <= 0:
                return inf
            if (wait := pacer.reserve(now, tokens)) > 0.0:
                return wait
            self._places -= 1
            attempt = queue.popleft()
            self._count(lane, -1, -len(request.body))
            attempt.reserved = pacer.reserved(now, tokens)
            attempt.call()
            self._give_up_turn(lane)
        return inf

    def _lane(self, model: str | None) -> _Lane:
        lane = self._lanes.get(model)
        if lane is None:
            if len(self._lanes) >= _MOST_LANES:
                return self._first
            lane = self._lanes[model] = _Lane(self._first.pacer.another()) if self._lanes else self._first
        return lane

    def settle(self, request: Request, answer: Answer, reserved: Reservation) -> None:
        """Tell the pacer what came of an attempt that `admit` let start."""
        self._places += 1
        now = self._clock.now()
        lane = self._lanes.get(request.model) or self._lane(request.model)
        pacer, usage = lane.pacer, answer.usage
        if answer.announced is not None:
            pacer.announced(now, answer.announced, reserved)
        if isinstance(answer, Failure) and answer.kind in _REFUSALS:
            pacer.refused(now, answer.retry_after, reserved)
        else:
            pacer.accepted(now, reserved, None if usage is None else usage.total_tokens)
            if usage is not None and pacer.counts_tokens and not isinstance(answer, Failure):
                lane.forecast.learn(len(request.body), usage)
        if self.waiting:
            self._call(lane)

    def _call(self, lane: _Lane) -> None:
        """Have those at the front ask again who may have waited for an attempt to end, be it for a limit that is not there any more."""
        if lane.queue and (lane.queue[0].nap is None or lane.pacer.awaits_answers):
            lane.call()
        if self._turns:
            self._turns[0].call()

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
        self._turn = anyio.Lock(fast_acquire=True)
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
