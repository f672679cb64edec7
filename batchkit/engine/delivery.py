"""One request to its outcome: admit, send, decide, wait, and again.

The decision is made once after each attempt, by the rules; tenacity carries it out. It is entered only after a first
failure, since most requests have none and its machinery costs as much as a good part of sending one.
"""

from __future__ import annotations

from asyncio import CancelledError, current_task
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import tenacity

from batchkit.engine.gate import Clock, Gate
from batchkit.engine.hedging import Hedging
from batchkit.engine.history import OVERTAKEN, History
from batchkit.engine.purse import Purse
from batchkit.engine.stop import Stop
from batchkit.engine.under_way import Watch
from batchkit.errors import EndpointRefused
from batchkit.events import AttemptFailed, Event, Notice
from batchkit.records import Answer, Failure, Outcome, Reply, Request, Trace
from batchkit.rules.money import sum_of
from batchkit.rules.outage import Outage
from batchkit.rules.retry import (
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
        self.left_open: list[Outcome] = []
        """What came so far of requests that a stop left open, where it may have cost something: each as if it had failed for good."""
        self._hedging: Hedging | None = None
        if hedge is not None:
            self._hedging = Hedging(
                hedge,
                attempt,
                watch=self.under_way,
                gate=gate,
                purse=purse,
                tracer=tracer,
                clock=clock,
                has_room=self._has_room,
            )
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
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Attempts that were sent and not answered yet."""
        return self._in_flight + (0 if self._hedging is None else self._hedging.in_flight)

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
        history = History(request, under_way.patience_with(request.model), self._clock.now(), current_task())
        under_way.requests[history] = None
        trace_id = self._tracer.trace_id(request)
        outcome = None
        try:
            answer = await self._try(request, trace_id, history)
            if isinstance(answer, Failure) and isinstance(history.decision, RetryAfter):
                answer = await self._try_again(request, trace_id, history, answer)
            if answer is not None:
                outcome = self._outcome(request, trace_id, history, answer)
        finally:
            del under_way.requests[history]
            if history.hedge is not None:
                history.hedge.scope.cancel()
            if outcome is None:
                self._leave_open(request, trace_id, history)
        return outcome

    def _leave_open(self, request: Request, trace_id: str, history: History) -> None:
        beside = None if history.hedge is None else history.hedge.answer
        if beside is not None and beside is not OVERTAKEN:
            if history.failure is None and isinstance(beside, Failure):
                history.failure = beside
            else:
                history.beside(beside)
        if history.failure is not None and history.may_have_cost:
            self.left_open.append(self._outcome(request, trace_id, history, history.failure))

    def _outcome(self, request: Request, trace_id: str, history: History, answer: Answer) -> Outcome:
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
        self, request: Request, trace_id: str, history: History, first: Failure
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

    async def _try(self, request: Request, trace_id: str, history: History) -> Answer | None:
        """One attempt and the decision after it. None when the run stops first or with it."""
        history.decision = None
        if not self._stop_rule.proven and (verdict := self._stop_rule.before(request)) is not None:
            self._end_run(verdict)
            return None
        if (history.retries_fault or self._outage.since is not None) and not await self._turn(history):
            return None
        if self._purse is not None and not await self._reserve(self._purse, request, history):
            return None
        if self._hedging is not None:
            await self._hedging.make_room()
        reserved = self._gate.admit_now(request) or await self._gate.admit(request)
        if reserved is None or self._stop.cause is not None:
            if self._purse is not None and history.claim is not None:
                self._purse.release(history.claim)
            return None
        history.attempts += 1
        trace = self._tracer.attempt(request, trace_id, history.attempts)
        self._in_flight += 1
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
            self._in_flight -= 1
            history.started = None
            if history.ending is not None:
                history.ended_with()  # its own answer was there first
        now = self._clock.now()
        history.latency_s = now - started
        history.gateway_retries += abs(answer.gateway_retries)
        if history.failure is not None:
            history.repeated(history.failure)
        self._gate.settle(request, answer, reserved)
        if self._purse is not None and history.claim is not None:
            unsure = self._purse.settle(history.claim, answer)
            history.maybe_cost = sum_of((history.maybe_cost, unsure))
        if self._hedging is not None and history.hedge is not None:
            if isinstance(answer, Failure):
                history.failure = answer  # the wait may be cut off
            answer = await self._hedging.first_of_both(history, history.hedge, answer)
            history.failure = None
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
        history.failure = answer
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

    async def _reserve(self, purse: Purse, request: Request, history: History) -> bool:
        """Wait until the attempt may cost its worst. False if the run stops.

        Before the gate, where nobody waits for money, and after the turn, which whoever holds money may wait long for.
        """
        if history.claim is None:
            history.claim = purse.claim(request)
        return history.claim is not None and await purse.reserve(history.claim)

    async def _turn(self, history: History) -> bool:
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

    def _learn(self, history: History, answer: Answer, now: float) -> StopRun | None:
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

    def _decide(self, request: Request, history: History, failure: Failure, now: float) -> Failure | None:
        history.faults += is_fault(failure)
        history.refused = remedy_of(failure) is Remedy.RATE
        decision = self._policy.decide(
            failure,
            attempt=history.attempts,
            faults=history.faults,
            same=history.counted(failure.kind.value) + 1,
            jitter=self._jitter(),
        )
        if isinstance(decision, RetryAfter):
            if self._stop.cause is not None:
                return None
            if self._outage.since is not None and never_reached(failure):
                # All wait for the same thing, so nobody waits longer for having tried more often.
                decision = RetryAfter(self._outage.next_probe_in(now))
            self._emit(AttemptFailed(request.index, history.attempts, failure, decision.seconds))
        history.decision = decision
        return failure

    def _end_run(self, verdict: StopRun) -> None:
        self._stop.request(EndpointRefused(verdict.message, code=verdict.code))
