"""A second attempt beside one that takes long, on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

import anyio
import pytest
from msgspec.structs import replace

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.purse import Purse
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted
from batchkit.records import Answer, Billed, Outcome, Request, Trace, Usage
from batchkit.rules.pacing import Pacer
from batchkit.rules.pricing import PriceList
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.spending import Spending
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer
from batchkit.rules.worst_case import WorstCases
from batchkit.testing import ManualClock, failure, reply

TOOK = Usage(5, 10, 15)
GOOD = replace(reply(usage=TOOK), model="")
BAD = failure("server_error", status=500)


class Run:
    """Requests whose attempts take `answers(index, attempt)`: seconds, and then an answer; 200 took 2 s each before."""

    def __init__(
        self,
        answers: Callable[[int, int], tuple[float, Answer]],
        *,
        share: float | None = 0.02,
        concurrency: int = 8,
        dollars: str | None = None,
        rpm: float | None = None,
    ) -> None:
        self.answers = answers
        self.clock, self.stop = ManualClock(), Stop()
        self.asked: Counter[int] = Counter()
        self.traces: list[tuple[int, Trace]] = []
        self.in_flight = self.most_in_flight = 0
        self.gate = Gate(Pacer(rpm), self.clock, self.stop, concurrency)
        self.spending = None if dollars is None else Spending(Decimal(dollars), authorised=Decimal(dollars))
        self.delivery = Delivery(
            self.ask_server,
            gate=self.gate,
            policy=RetryPolicy(),
            budget=RetryBudget(8),
            stop_rule=StopRule(),
            tracer=Tracer("job", 7),
            stop=self.stop,
            clock=self.clock,
            jitter=lambda: 0.5,
            emit=lambda _: None,
            purse=self.purse(),
            hedge=share,
        )
        for _ in range(200):
            self.delivery.under_way.patience_with("m").learn(2.0, TOOK, None)

    def purse(self) -> Purse | None:
        async def authorise(_: Decimal) -> bool:
            return True

        if self.spending is None:
            return None
        return Purse(
            self.spending,
            WorstCases(PriceList(at=0.0, given={"m": {"prompt": Decimal(1), "completion": Decimal(1)}})),
            body_of=lambda _: {"model": "m", "messages": [], "max_tokens": 10},
            authorise=authorise,
            stop=self.stop,
            clock=self.clock,
            emit=lambda _: None,
        )

    async def ask_server(self, request: Request, trace: Trace) -> Answer:
        return await self.attempt(request, trace)  # which a test may replace

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        self.asked[request.index] += 1
        self.traces.append((request.index, trace))
        seconds, answer = self.answers(request.index, self.asked[request.index])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.clock.sleep(seconds)
        finally:
            self.in_flight -= 1
        return answer

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.delivery.under_way.run)
            yield
            group.cancel_scope.cancel()

    async def ask(self) -> Outcome:
        """Bring one request to its outcome."""
        (outcome,) = await self.work(1)
        return outcome

    async def work(self, requests: int) -> list[Outcome]:
        """Bring so many requests to their outcomes, one after the other."""
        outcomes = []
        async with self.watched():
            for index in range(requests):
                outcome = await self.delivery.deliver(Request(index, f"r{index}", b"{}", "m"))
                assert outcome is not None
                outcomes.append(outcome)
        assert self.in_flight == self.delivery.in_flight == self.gate.pacer.in_flight == 0
        return outcomes


def told(outcome: Outcome) -> tuple[bool, int, dict[str, int], int]:
    return outcome.succeeded, outcome.attempts, dict(outcome.retries), outcome.maybe_billed


def slow(seconds: float, first: Answer = GOOD, *, second: Answer = GOOD, takes: float = 2.0) -> Run:
    """A first attempt that takes long, and what a second one beside it brings."""
    return Run(lambda _, attempt: (seconds, first) if attempt == 1 else (takes, second))


async def test_the_second_attempt_answers_for_one_that_takes_long():
    run = slow(300.0)
    outcome = await run.ask()
    assert told(outcome) == (True, 2, {"hedged": 1}, 1)
    assert outcome.latency_s == pytest.approx(2.0)
    assert run.clock.now() < 5.0
    first, second = (trace for _, trace in run.traces)
    assert first.trace_id == second.trace_id == outcome.trace_id
    assert first.span_id != second.span_id


async def test_the_first_attempt_answers_while_the_second_is_under_way():
    outcome = await slow(3.0).ask()
    assert told(outcome) == (True, 2, {"hedged": 1}, 1)
    assert outcome.latency_s == 3.0


async def test_a_second_attempt_that_fails_leaves_the_first_to_answer():
    outcome = await slow(10.0, second=replace(BAD, usage=TOOK)).ask()
    assert told(outcome) == (True, 2, {"server_error": 1}, 0)
    assert outcome.latency_s == 10.0
    assert outcome.billed == (Billed("", TOOK),)


async def test_a_first_attempt_that_fails_leaves_the_second_to_answer():
    outcome = await slow(2.5, BAD, takes=9.0).ask()
    assert told(outcome) == (True, 2, {"server_error": 1}, 0)
    assert outcome.latency_s == pytest.approx(9.0)


async def test_when_both_fail_the_request_is_asked_again():
    run = Run(lambda _, attempt: (4.0 if attempt == 1 else 1.0, BAD if attempt < 3 else GOOD))
    assert told(await run.ask()) == (True, 3, {"server_error": 2}, 0)


async def test_a_failure_for_good_ends_the_second_attempt():
    run = slow(3.0, failure("invalid_request", status=400), takes=20.0)
    assert told(await run.ask()) == (False, 2, {"hedged": 1}, 1)
    assert run.clock.now() < 5.0


async def test_both_answers_that_come_at_one_moment_are_paid_for():
    run = Run(lambda *_: (2.0, GOOD))
    both = anyio.Event()

    async def attempt(request: Request, trace: Trace) -> Answer:
        run.asked[request.index] += 1
        if run.asked[request.index] == 2:
            both.set()
        else:
            await both.wait()
        return GOOD

    run.attempt = attempt
    outcome = await run.ask()
    assert (outcome.succeeded, outcome.attempts, dict(outcome.retries)) == (True, 2, {"hedged": 1})
    # One is the result, and the other stands in one of the two books.
    assert (outcome.billed, outcome.maybe_billed) in ((((Billed("", TOOK)),), 0), ((), 1))


async def test_an_answer_that_was_not_needed_any_more_is_billed_as_it_says():
    run = slow(3.0, takes=20.0)

    async def attempt(request: Request, trace: Trace) -> Answer:
        run.asked[request.index] += 1
        if run.asked[request.index] == 1:
            await run.clock.sleep(3.0)
        else:
            with anyio.CancelScope(shield=True):
                await run.clock.sleep(3.0)
        return replace(GOOD, model="m")

    run.attempt = attempt
    outcome = await run.ask()
    assert told(outcome) == (True, 2, {"hedged": 1}, 0)
    assert outcome.billed == (Billed("m", TOOK),)


EMPTY = replace(failure("invalid_response", status=200), usage=TOOK)


@pytest.mark.parametrize(
    ("took", "left_after", "answered"),
    [
        # The second is answered while the first is under way, the first while the second is, and so with those that follow.
        ([(99.0, EMPTY), (1.0, EMPTY)], 5.0, 1),
        ([(3.0, EMPTY), (99.0, EMPTY)], 5.0, 1),
        ([(1.0, EMPTY), (3.0, EMPTY), (99.0, EMPTY)], 8.0, 2),
        ([(99.0, EMPTY), (99.0, EMPTY)], 5.0, 0),
    ],
)
async def test_what_was_answered_stays_counted_when_the_run_is_left_at_once(took, left_after, answered):
    run = Run(lambda _, attempt: took[attempt - 1])
    async with run.watched():
        asking = asyncio.create_task(run.delivery.deliver(Request(0, "r0", b"{}", "m")))
        await run.clock.sleep(left_after)
        assert run.asked[0] == len(took)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    usages = [
        usage
        for outcome in run.delivery.left_open
        for usage in (outcome.answer.usage, *(billed.usage for billed in outcome.billed))
    ]
    assert usages == [TOOK] * answered
    assert [outcome.attempts for outcome in run.delivery.left_open] == [len(took)] * bool(answered)


async def test_an_answer_that_came_is_kept_when_the_run_is_left_before_the_second_attempt_has_ended():
    run = slow(3.0, takes=20.0)

    async def attempt(request: Request, trace: Trace) -> Answer:
        run.asked[request.index] += 1
        if run.asked[request.index] == 1:
            await run.clock.sleep(3.0)
            asyncio.get_running_loop().call_soon(asking.cancel)
        else:
            with anyio.CancelScope(shield=True):
                await run.clock.sleep(5.0)
        return GOOD

    run.attempt = attempt
    async with run.watched():
        asking = asyncio.create_task(run.delivery.deliver(Request(0, "r0", b"{}", "m")))
        outcome = await asking
    assert outcome is not None
    assert told(outcome) == (True, 2, {"hedged": 1}, 1)


@pytest.mark.parametrize("share", [0.005, 0.02])
async def test_there_are_no_more_than_the_share_that_was_stated(share):
    run = Run(lambda index, attempt: (20.0 if attempt == 1 and index % 25 == 0 else 0.5, GOOD), share=share)
    outcomes = await run.work(400)
    hedged = sum(outcome.retries.get("hedged", 0) for outcome in outcomes)
    assert 0.5 * share * 600 < hedged <= share * 600
    assert run.asked.total() == 400 + hedged


@pytest.mark.parametrize("standing", ["off", "full", "stopping", "before_the_gate", "no_money"])
async def test_there_is_none(standing):
    run = Run(
        lambda *_: (40.0, GOOD),
        share=None if standing == "off" else 0.5,
        concurrency=1 if standing == "full" else 8,
        # The prompt's two bytes and ten tokens: room for one, and not for two.
        dollars="0.00002" if standing == "no_money" else None,
    )
    run.gate.waiting = int(standing == "before_the_gate")
    async with run.watched(), anyio.create_task_group() as group:
        group.start_soon(run.delivery.deliver, Request(0, "a", b"{}", "m"))
        if standing == "stopping":
            await run.clock.sleep(1.0)
            run.stop.request(Interrupted(2, "enough"))
    assert run.asked[0] == 1


async def test_with_max_cost_both_are_reserved_and_the_one_cut_off_stays_so():
    run = slow(300.0)
    run = Run(run.answers, dollars="1")
    assert run.spending is not None
    outcome = await run.ask()
    assert told(outcome) == (True, 2, {"hedged": 1}, 1)
    assert run.spending.reserved == 0
    assert run.spending.unsure == outcome.maybe_cost > 0


async def test_a_request_that_is_left_at_once_leaves_no_second_attempt():
    run = Run(lambda *_: (300.0, GOOD))
    async with run.watched():
        async with anyio.create_task_group() as group:
            group.start_soon(run.delivery.deliver, Request(0, "a", b"{}", "m"))
            while run.in_flight < 2:
                await run.clock.sleep(1.0)
            group.cancel_scope.cancel()
        await run.clock.sleep(1.0)
        assert run.in_flight == run.delivery.in_flight == 0


async def test_there_is_none_beside_an_attempt_that_was_answered_in_that_very_turn():
    run = Run(lambda *_: (3.0, GOOD))
    async with run.watched():
        begun = run.delivery.under_way.hedge
        assert begun is not None

        def begin_as_it_is_answered(group, under_way):
            begun(group, under_way)
            for each in run.delivery.under_way.requests:
                if each.hedge is not None:
                    each.started = None

        run.delivery.under_way.hedge = begin_as_it_is_answered
        outcome = await run.delivery.deliver(Request(0, "a", b"{}", "m"))
    assert outcome is not None
    assert (run.asked[0], outcome.attempts, outcome.maybe_billed) == (1, 1, 0)


async def test_a_second_attempt_makes_room_for_another_requests_first():
    run = Run(lambda index, _: (1.0 if index else 300.0, GOOD), concurrency=2)
    async with run.watched(), anyio.create_task_group() as group:
        group.start_soon(run.delivery.deliver, Request(0, "a", b"{}", "m"))
        while run.in_flight < 2:
            await run.clock.sleep(1.0)
        began = run.clock.now()
        outcome = await run.delivery.deliver(Request(1, "b", b"{}", "m"))
        assert outcome is not None
        assert outcome.succeeded
        assert run.clock.now() - began < 2.0
        assert run.most_in_flight == 2


async def test_a_second_attempt_for_which_there_was_no_room_is_made_when_there_is():
    """Five hang, and one place is free for a second attempt, until those that are in the way are answered."""
    run = Run(
        lambda index, attempt: (20.0 if index >= 5 else 300.0 if attempt == 1 else 1.0, GOOD),
        share=0.05,
        concurrency=11,
    )
    async with run.watched(), anyio.create_task_group() as group:
        for index in range(10):
            group.start_soon(run.delivery.deliver, Request(index, "a", b"{}", "m"))
        await run.clock.sleep(40.0)
        assert [run.asked[index] for index in range(5)] == [2] * 5
        assert run.in_flight == 0
