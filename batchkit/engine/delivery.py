"""One request to its outcome: admit, send, decide, wait, and again.

The decision is made once after each attempt, by the rules; tenacity carries it out. It is entered only after a first
failure, since most requests have none and its machinery costs as much as a good part of sending one.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import anyio
import tenacity
from anyio.abc import TaskGroup

from batchkit.engine.gate import Clock, Gate
from batchkit.engine.hedging import HEDGED, OVERTAKEN, Hedge, Hedging
from batchkit.engine.purse import Claim, Purse
from batchkit.engine.stop import Stop
from batchkit.engine.under_way import UnderWay, Watch
from batchkit.errors import EndpointRefused
from batchkit.events import AttemptFailed, Event, Notice
from batchkit.records import Answer, Billed, Failure, Outcome, Reply, Request, Trace
from batchkit.rules.money import sum_of
from batchkit.rules.outage import Outage
from batchkit.rules.retry import (
    Decision,
    Remedy,
    RetryAfter,
    RetryPolicy,
    StopRun,
    is_fault,
    never_reached,
    never_sent,
    remedy_of,
)
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer

__all__ = ["Delivery"]

_NO_REASONS: Final[Mapping[str, int]] = {}


class _History(UnderWay):
    """What happened to one request so far."""

    attempts: int = 0
    faults: int = 0
    latency_s: float = 0.0
    maybe_billed: int = 0
    gateway_retries: int = 0
    billed: tuple[Billed, ...] = ()
    """What the repeated attempts took, as far as they said so."""
    decision: Decision | None = None
    refused: bool = False
    """Whether the last attempt was, for its model's limit."""
    retries_fault: bool = False
    """Whether the next attempt, or the one under way, repeats one that failed by a fault, and is paid by the budget."""
    probes: bool = False
    """Whether the attempt under way finds out if an endpoint that was out of reach is back."""
    claim: Claim | None = None
    """What each attempt may cost, in a run with a `max_cost`."""
    maybe_cost: Decimal = Decimal(0)
    hedge: Hedge | None = None
    """What is under way beside the attempt."""

    reasons: Mapping[str, int] = _NO_REASONS

    def count(self, reason: str) -> None:
        """Count an attempt that did not bring the outcome."""
        self.reasons = {**self.reasons, reason: self.reasons.get(reason, 0) + 1}


class Delivery:
    """Brings requests to their outcomes over an `attempt` that reports failures as values.

    `jitter` gives random numbers in [0, 1); `emit` tells the observers; `purse` is None in a run without a `max_cost`. `patient`
    says that attempts which lie far beyond their peers are given up, while `under_way.run` goes on, and `hedge` which share of the
    answers there may be of second attempts.
    """

    def __init__(
        self,
        attempt: Callable[[Request, Trace], Awaitable[Answer]],
        *,
        gate: Gate,
        policy: RetryPolicy,
        budget: RetryBudget,
        stop_rule: StopRule,
        tracer: Tracer,
        stop: Stop,
        clock: Clock,
        jitter: Callable[[], float],
        emit: Callable[[Event], None],
        purse: Purse | None = None,
        patient: bool = True,
        hedge: float | None = None,
    ) -> None:
        self._send = attempt
        self.under_way = Watch(clock, patient=patient)
        self._hedges: dict[Hedge, None] = {}
        if hedge is not None:
            self._hedging = Hedging(
                hedge, answered=lambda: self.under_way.answered()[0], has_room=self._has_room
            )
            self.under_way.hedge = self._hedge
        self._purse = purse
        self._gate = gate
        self._policy = policy
        self._budget = budget
        self._retries = gate.queue()
        self._outage = Outage()
        self._cut_off = gate.queue()
        self._told_of_retries = False
        self._is_well = False
        """Whether the last answer was a completion, and one more would change nothing."""
        self._stop_rule = stop_rule
        self._tracer = tracer
        self._stop = stop
        self._clock = clock
        self._jitter = jitter
        self._emit = emit
        self.in_flight = 0
        """Attempts that were sent and not answered yet."""

    @property
    def proven(self) -> bool:
        """Whether the endpoint has given a usable completion in this run."""
        return self._stop_rule.proven

    @property
    def unpaid(self) -> int:
        """Requests that wait until they may cost what they can."""
        return 0 if self._purse is None else self._purse.waiting

    def connected(self) -> None:
        """A connection to the endpoint came about: nobody needs to wait for an answer over it to know that it is back."""
        self._reached(self._clock.now(), probe=True)

    async def deliver(self, request: Request) -> Outcome | None:
        """The request's outcome; None when the run stops before there is one, and the request stays open."""
        under_way = self.under_way
        history = _History(request, under_way.patience_with(request.model), self._clock.now())
        under_way.requests[history] = None
        trace_id = self._tracer.trace_id(request)
        try:
            answer = await self._try(request, trace_id, history)
            if isinstance(answer, Failure) and isinstance(history.decision, RetryAfter):
                answer = await self._try_again(request, trace_id, history, answer)
        finally:
            del under_way.requests[history]
            if history.hedge is not None:
                history.hedge.scope.cancel()
        if answer is None:
            return None
        return Outcome(
            request.index,
            request.custom_id,
            answer,
            trace_id,
            history.attempts,
            # Rounded here and not where it is written: the totals of a run and those rebuilt from its files are one. To a
            # whole number, which is a fraction of the work of round(…, 6).
            round(history.latency_s * 1e6) / 1e6,
            round(self._clock.time() * 1e6) / 1e6,
            history.reasons or {},
            request.input_crc32,
            history.maybe_billed,
            history.gateway_retries,
            history.billed,
            history.maybe_cost,
            request.metadata,
        )

    async def _try_again(
        self, request: Request, trace_id: str, history: _History, first: Failure
    ) -> Answer | None:
        answers: list[Answer] = [first]

        async def attempt() -> Answer | None:
            return answers.pop() if answers else await self._try(request, trace_id, history)

        async def sleep(seconds: float) -> None:
            await (self._gate.rest(request, seconds) if history.refused else self._gate.sleep(seconds))

        def wait(_: tenacity.RetryCallState) -> float:
            return history.decision.seconds if isinstance(history.decision, RetryAfter) else 0.0

        return await tenacity.AsyncRetrying(
            retry=lambda _: isinstance(history.decision, RetryAfter),
            wait=wait,
            stop=tenacity.stop_never,
            sleep=sleep,
        )(attempt)

    async def _try(self, request: Request, trace_id: str, history: _History) -> Answer | None:
        """One attempt and the decision after it. None when the run stops first or with it."""
        history.decision = None
        if not self._stop_rule.proven and (verdict := self._stop_rule.before(request)) is not None:
            self._end_run(verdict)
            return None
        if (history.retries_fault or self._outage.since is not None) and not await self._turn(history):
            return None
        if self._purse is not None and not await self._reserve(self._purse, request, history):
            return None
        while self._hedges and self._gate.full:
            await self._end_a_hedge()
        reserved = self._gate.admit_now(request) or await self._gate.admit(request)
        if reserved is None or self._stop.cause is not None:
            if self._purse is not None and history.claim is not None:
                self._purse.release(history.claim)
            return None
        history.attempts += 1
        trace = self._tracer.attempt(request, trace_id, history.attempts)
        self.in_flight += 1
        history.started = started = self._clock.now()
        history.answered_before = history.patience.answered
        try:
            answer = await self._send(request, trace)
        except CancelledError:
            ending = history.ended_with()
            if ending is None:
                raise
            answer = ending
        finally:
            self.in_flight -= 1
            history.started = None
            if history.ending is not None:
                history.ended_with()  # its own answer was there first
        now = self._clock.now()
        history.latency_s = now - started
        history.gateway_retries += abs(answer.gateway_retries)
        self._gate.settle(request, answer, reserved)
        if self._purse is not None and history.claim is not None:
            unsure = self._purse.settle(history.claim, answer)
            history.maybe_cost = sum_of((history.maybe_cost, unsure))
        if history.hedge is not None:
            answer = await self._first_of_both(history, answer)
            now = self._clock.now()
        verdict = None
        if not (self._is_well and isinstance(answer, Reply)) or history.retries_fault:
            verdict = self._stop_rule.judge(request, answer, now) or self._learn(history, answer, now)
            self._is_well = self._stop_rule.well and self._budget.well and self._outage.since is None
        if isinstance(answer, Reply):
            if not answer.from_cache:
                history.patience.learn(history.latency_s, answer.usage, request.max_tokens)
                if history.latency_s <= history.given_up_after:
                    history.patience.was_right()
            return answer
        history.maybe_billed += answer.maybe_billed
        if verdict is not None:
            self._end_run(verdict)
            return None
        return self._decide(request, history, answer, now)

    def _has_room(self) -> bool:
        """Whether an attempt more would be in nobody's way, as far as can be told."""
        return (
            not self._gate.full
            and not self._gate.waiting
            and not self.unpaid
            and not self._budget.spent
            and self._outage.since is None
            and self._stop.cause is None
        )

    def _hedge(self, group: TaskGroup, under_way: Iterator[tuple[UnderWay, float]]) -> None:
        if not self._hedging.affordable:
            return
        for each, took in under_way:
            if self._hedging.begins(each, took) and isinstance(each, _History):
                each.hedge = Hedge()
                group.start_soon(self._beside, each, each.hedge)

    async def _beside(self, history: _History, hedge: Hedge) -> None:
        """A second attempt, until it is answered or not needed any more."""
        try:
            with hedge.scope:
                await self._try_beside(history, hedge)
        finally:
            if hedge.answer is None:
                # It was not sent: others that began in the same moment had the room.
                self._hedging.withdrawn(history)
                if history.hedge is hedge:
                    history.hedge = None
            hedge.done.set()

    async def _try_beside(self, history: _History, hedge: Hedge) -> None:
        request, claim = history.request, None
        if not self._has_room():
            return
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
        self.in_flight += 1
        started = self._clock.now()
        hedge.answer = OVERTAKEN
        self._hedges[hedge] = None
        try:
            hedge.answer = await self._send(request, trace)
        finally:
            self.in_flight -= 1
            del self._hedges[hedge]
            hedge.seconds = self._clock.now() - started
            history.gateway_retries += abs(hedge.answer.gateway_retries)
            self._gate.settle(request, hedge.answer, reserved)
            if claim is not None and self._purse is not None:
                history.maybe_cost = sum_of((history.maybe_cost, self._purse.settle(claim, hedge.answer)))
        if isinstance(hedge.answer, Reply) and history.started is not None:
            history.end(OVERTAKEN)

    async def _end_a_hedge(self) -> None:
        """Make room for a first attempt, which comes before any second."""
        hedge = next(iter(self._hedges))
        hedge.scope.cancel()
        await hedge.done.wait()

    async def _first_of_both(self, history: _History, answer: Answer) -> Answer:
        """The first usable one of an attempt's `answer` and that of the one beside it; what the other took is counted."""
        hedge, history.hedge = history.hedge, None
        assert hedge is not None
        ends = isinstance(answer, Reply) or remedy_of(answer) is Remedy.FAIL
        if ends:
            hedge.scope.cancel()
        # What was answered is not given away for having to be counted.
        with anyio.CancelScope(shield=ends):
            await hedge.done.wait()
        other = hedge.answer
        if other is None:
            return answer
        if isinstance(other, Reply) and not isinstance(answer, Reply):
            answer, other = other, answer
            history.latency_s = hedge.seconds
        unseen = other.usage is None
        if isinstance(other, Failure):
            unseen = other.maybe_billed
            history.count(HEDGED if other is OVERTAKEN else other.kind.value)
        else:
            history.count(HEDGED)
        if not (isinstance(other, Reply) and other.from_cache):
            history.maybe_billed += unseen
            if other.usage is not None:
                history.billed += (Billed(other.model, other.usage),)
        return answer

    async def _reserve(self, purse: Purse, request: Request, history: _History) -> bool:
        """Wait until the attempt may cost its worst. False if the run stops.

        Before the gate, where nobody waits for money, and after the turn, which whoever holds money may wait long for.
        """
        if history.claim is None:
            history.claim = purse.claim(request)
        return history.claim is not None and await purse.reserve(history.claim)

    async def _turn(self, history: _History) -> bool:
        """Wait for it: a retry in the budget's queue, everyone while the endpoint is out of reach. False if the run stops."""
        self._is_well = False
        if history.retries_fault and not await self._retries.wait(
            lambda: self._budget.ask(self._clock.now())
        ):
            return False
        if self._outage.since is not None:
            if not await self._cut_off.wait(lambda: self._outage.ask(self._clock.now())):
                return False
            history.probes = self._outage.since is not None
        return True

    def _learn(self, history: _History, answer: Answer, now: float) -> StopRun | None:
        """What the answer says of the network and of the server. Whether the run ends with it."""
        if isinstance(answer, Reply) and not history.retries_fault and self._outage.since is None:
            self._outage.reached(probe=False)
            self._budget.answered()
            self._retries.stirred()
            return None
        probe, history.probes = history.probes, False
        paid, history.retries_fault = history.retries_fault, False
        if isinstance(answer, Failure) and never_sent(answer):
            if probe:
                self._outage.withdrawn()
                self._cut_off.stirred()
            if paid:
                self._budget.ended()
                self._retries.stirred()
            return None
        since = self._outage.since
        if isinstance(answer, Failure) and never_reached(answer):
            if self._outage.missed(now, self._jitter(), probe=probe) and since is not None:
                at = datetime.fromtimestamp(self._clock.time() - (now - since), UTC)
                self._emit(
                    Notice(
                        f"the endpoint cannot be reached since {at:%H:%M:%S} UTC; the run waits, and probes: {answer.message}"
                    )
                )
            if probe:
                self._cut_off.stirred()
        else:
            self._reached(now, probe=probe)
        verdict = None
        if paid:
            self._budget.ended()
        if isinstance(answer, Reply) or remedy_of(answer) is Remedy.FAIL:
            self._budget.answered()
        elif is_fault(answer):
            history.retries_fault = True
            verdict = self._budget.failed(answer, now, self._jitter(), retry=paid)
            if self._budget.waiting_it_out and not self._told_of_retries:
                self._told_of_retries = True
                self._emit(
                    Notice(
                        "most attempts fail: new requests go on, but retries are few and far between until the server "
                        f"answers again: {answer.message}"
                    )
                )
        self._retries.stirred()
        return verdict

    def _reached(self, now: float, *, probe: bool) -> None:
        since = self._outage.since
        if self._outage.reached(probe=probe) and since is not None:
            self._cut_off.stirred()
            self._emit(Notice(f"the endpoint is reached again, after {now - since:.0f} s"))

    def _decide(self, request: Request, history: _History, failure: Failure, now: float) -> Failure | None:
        history.faults += is_fault(failure)
        history.refused = remedy_of(failure) is Remedy.RATE
        decision = self._policy.decide(
            failure,
            attempt=history.attempts,
            faults=history.faults,
            same=history.reasons.get(failure.kind.value, 0) + 1,
            jitter=self._jitter(),
        )
        if isinstance(decision, RetryAfter):
            if self._stop.cause is not None:
                return None
            if self._outage.since is not None and never_reached(failure):
                # All wait for the same thing, so nobody waits longer for having tried more often.
                decision = RetryAfter(self._outage.next_probe_in(now))
            history.count(failure.kind.value)
            if failure.usage is not None:
                history.billed += (Billed(failure.model, failure.usage),)
            self._emit(AttemptFailed(request.index, history.attempts, failure, decision.seconds))
        history.decision = decision
        return failure

    def _end_run(self, verdict: StopRun) -> None:
        self._stop.request(EndpointRefused(verdict.message, code=verdict.code))
