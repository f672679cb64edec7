"""Hedging: a second attempt beside one that takes long, for the first usable answer of the two.

It is for what is left when the rest is answered, and there it costs what it is allowed to: a share of the attempts. While the
run has better use for an attempt (requests wait, all are in flight that may be) or the server has enough of them (it refuses,
fails, cannot be reached), there is none.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterator

from anyio.abc import TaskGroup

from batchkit.engine.gate import Clock, Gate
from batchkit.engine.history import OVERTAKEN, Hedge, History
from batchkit.engine.purse import Purse
from batchkit.engine.under_way import UnderWay, Watch
from batchkit.records import Answer, Reply, Request, Trace
from batchkit.rules.money import sum_of
from batchkit.rules.retry import Remedy, remedy_of
from batchkit.rules.tracing import Tracer

__all__ = ["Hedging"]


class Hedging:
    """The second attempts of a run: at most `share` of the answers that `watch` knows of, and begun while `has_room` says so."""

    def __init__(
        self,
        share: float,
        attempt: Callable[[Request, Trace], Awaitable[Answer]],
        *,
        watch: Watch,
        gate: Gate,
        purse: Purse | None,
        tracer: Tracer,
        clock: Clock,
        has_room: Callable[[], bool],
    ) -> None:
        self._share = share
        self._send = attempt
        self._watch = watch
        self._gate = gate
        self._purse = purse
        self._tracer = tracer
        self._clock = clock
        self._has_room = has_room
        self._begun = 0
        self._sent: dict[Hedge, None] = {}
        """Those that were sent and not answered yet."""
        watch.hedge = self._look

    @property
    def in_flight(self) -> int:
        """Second attempts that were sent and not answered yet."""
        return len(self._sent)

    async def make_room(self) -> None:
        """End second attempts until there is a place for a first, which comes before any second."""
        while self._sent and self._gate.full:
            hedge = next(iter(self._sent))
            hedge.scope.cancel()
            await hedge.done.wait()

    async def first_of_both(self, history: History, hedge: Hedge, answer: Answer) -> Answer:
        """The first usable one of an attempt's `answer` and that of the `hedge` beside it; what the other took is counted."""
        ends = isinstance(answer, Reply) or remedy_of(answer) is Remedy.FAIL
        if ends:
            hedge.scope.cancel()
        try:
            await hedge.done.wait()
        except CancelledError:
            # The run is left at once; what was answered is not given away for it.
            if not ends:
                raise
        history.hedge = None
        other = hedge.answer
        if other is None:
            return answer
        if isinstance(other, Reply) and not isinstance(answer, Reply):
            answer, other = other, answer
            history.latency_s = hedge.seconds
        history.beside(other)
        return answer

    # --- beginning one ---

    @property
    def _affordable(self) -> bool:
        """Whether there may be one more now."""
        answered, _ = self._watch.answered()
        return self._begun + 1 <= self._share * answered and self._has_room()

    def _look(self, group: TaskGroup, under_way: Iterator[tuple[UnderWay, float]]) -> None:
        if not self._affordable:
            return
        for each, took in under_way:
            if isinstance(each, History) and self._begins(each, took):
                each.hedge = Hedge()
                group.start_soon(self._beside, each, each.hedge)

    def _begins(self, each: UnderWay, took: float) -> bool:
        """Whether there is to be one beside an attempt that is under way for so long; it is counted then."""
        if each.hedged:
            return False
        slow_s = each.patience.slow_s(each.request.max_tokens)
        if slow_s is None or took < slow_s or not self._affordable:
            return False
        self._begun += 1
        each.hedged = True
        return True

    async def _beside(self, history: History, hedge: Hedge) -> None:
        """A second attempt, until it is answered or not needed any more."""
        try:
            with hedge.scope:
                await self._try_beside(history, hedge)
        finally:
            if hedge.answer is None:
                # It was not sent: others that began in the same moment had the room.
                self._begun -= 1
                history.hedged = False
                if history.hedge is hedge:
                    history.hedge = None
            hedge.done.set()

    async def _try_beside(self, history: History, hedge: Hedge) -> None:
        request, claim = history.request, None
        if history.started is None or not self._has_room():
            return  # it was answered meanwhile, or others have the room
        if self._purse is not None and history.claim is not None:
            claim = self._purse.reserve_beside(history.claim)
            if claim is None:
                return
        reserved = self._gate.admit_now(request)
        if reserved is None:
            if claim is not None and self._purse is not None:
                self._purse.release(claim)
            return
        history.attempts += 1
        trace = self._tracer.attempt(request, self._tracer.trace_id(request), history.attempts)
        started = self._clock.now()
        hedge.answer = OVERTAKEN
        self._sent[hedge] = None
        try:
            hedge.answer = await self._send(request, trace)
        finally:
            del self._sent[hedge]
            hedge.seconds = self._clock.now() - started
            history.gateway_retries += abs(hedge.answer.gateway_retries)
            self._gate.settle(request, hedge.answer, reserved)
            if claim is not None and self._purse is not None:
                history.maybe_cost = sum_of((history.maybe_cost, self._purse.settle(claim, hedge.answer)))
        if isinstance(hedge.answer, Reply) and history.started is not None:
            history.end(OVERTAKEN)
