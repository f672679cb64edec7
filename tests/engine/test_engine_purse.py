"""Attempts are paid for before they start: in order, never past the cap, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.purse import Purse, in_dollars
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted, MaxCostReached
from batchkit.events import Event, Notice
from batchkit.records import Answer, Outcome, Request, Usage
from batchkit.rules.pacing import Pacer
from batchkit.rules.pricing import PriceList
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.spending import Spending
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer
from batchkit.rules.worst_case import WorstCases
from batchkit.testing import ManualClock, ScriptedEndpoint, failure, reply

D = Decimal
PRICES = PriceList(
    at=0.0,
    # A dollar for a token of either kind; prompts are told by their bytes and answers by their limit.
    given={"m": {"prompt": D(0), "completion": D(1_000_000)}},
)


def ask(index: int, most: int = 1, model: str = "m") -> Request:
    body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": most}
    return Request(index, f"r{index}", orjson.dumps(body), model, most)


def answered(tokens: int, **fields: Any) -> Answer:
    return replace(reply(model="m", usage=Usage(5, tokens, 5 + tokens)), **fields)


class Scene:
    """A delivery that may spend so many dollars. `marks` is what was authorised, in order."""

    def __init__(
        self,
        cap: int,
        script: dict[str, list[Any]] | None = None,
        *,
        attempts: int = 1,
        rpm: float | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.stop = Stop()
        self.events: list[Event] = []
        self.marks: list[Decimal] = []
        self.used: list[tuple[Decimal, Decimal]] = []
        self.endpoint = ScriptedEndpoint(script, clock=self.clock, latency_s=1.0)
        self.spending = Spending(D(cap))
        self.purse = Purse(
            self.spending,
            WorstCases(PRICES, attempts=attempts),
            body_of=lambda request: orjson.loads(request.body),
            authorise=self.authorise,
            stop=self.stop,
            clock=self.clock,
            emit=self.events.append,
        )
        self.delivery = Delivery(
            self.send,
            gate=Gate(Pacer(rpm), self.clock, self.stop),
            policy=RetryPolicy(),
            budget=RetryBudget(workers=256),
            stop_rule=StopRule("m"),
            tracer=Tracer("job", 7),
            stop=self.stop,
            clock=self.clock,
            jitter=lambda: 0.5,
            emit=self.events.append,
            purse=self.purse,
        )

    async def authorise(self, amount: Decimal) -> bool:
        await self.clock.sleep(0.01)
        self.marks.append(amount)
        return True

    async def send(self, request, trace):
        spending = self.spending
        assert spending.used <= spending.cap
        assert spending.used <= self.marks[-1], "an attempt started that was not authorised"
        return await self.endpoint.attempt(request, trace)

    async def deliver(self, *requests: Request) -> list[Outcome | None]:
        return await asyncio.gather(*map(self.delivery.deliver, requests))

    @property
    def order(self) -> list[int]:
        return [request.index for request, _ in self.endpoint.attempts]

    @property
    def said(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


async def test_who_has_no_room_waits_for_what_is_in_flight_and_then_goes_on():
    scene = Scene(10, {f"r{index}": [answered(1)] for index in range(4)})
    outcomes = await scene.deliver(*(ask(index, 4) for index in range(4)))
    assert all(outcome is not None and outcome.succeeded for outcome in outcomes)
    assert scene.endpoint.most_in_flight == 2
    assert (scene.spending.spent, scene.spending.reserved) == (4, 0)


async def test_who_waits_is_served_in_order_and_a_dear_request_is_not_overtaken_by_cheap_ones():
    scene = Scene(10, {f"r{index}": [answered(1)] for index in range(6)})
    await scene.deliver(ask(0, 6), ask(1, 8), *(ask(index, 1) for index in range(2, 6)))
    assert scene.order == list(range(6))


async def test_when_nothing_is_in_flight_and_it_still_does_not_fit_the_run_stops_and_says_how_it_stands():
    scene = Scene(10, {"r0": [answered(7)], "r1": [answered(4)]})
    outcomes = await scene.deliver(ask(0, 7), ask(1, 4))
    assert [outcome is None for outcome in outcomes] == [False, True]
    assert scene.order == [0]
    assert isinstance(scene.stop.cause, MaxCostReached)
    assert scene.stop.cause.code == "max_cost"
    assert scene.stop.cause.exit_code == 3
    told = str(scene.stop.cause)
    for words in (
        "--max-cost $10",
        "$7 spent",
        "$0 reserved",
        "$3 left",
        "request 1 may cost $4",
        "larger --max-cost",
    ):
        assert words in told


async def test_what_stands_in_the_total_alone_may_have_been_billed_up_to_what_was_reserved():
    usage = [Usage(5, 1, 8), Usage(5, 1, 10**12)]
    answers = {f"r{index}": [answered(1, usage=each)] for index, each in enumerate(usage)}
    scene = Scene(30, answers)
    outcomes = await scene.deliver(ask(0, 6), ask(1, 6))
    assert [outcome.maybe_cost for outcome in outcomes] == [2, 5]
    assert (scene.spending.spent, scene.spending.unsure) == (9, 7)


async def test_a_stop_sends_home_all_who_wait():
    scene = Scene(10, {"r0": [answered(7)]})

    async def stop() -> None:
        await scene.clock.sleep(0.5)
        assert scene.purse.waiting == 2
        scene.stop.request(Interrupted(2))

    outcomes, _ = await asyncio.gather(scene.deliver(ask(0, 7), ask(1, 7), ask(2, 7)), stop())
    assert [outcome is None for outcome in outcomes] == [False, True, True]
    assert scene.order == [0]
    assert scene.spending.reserved == 0


async def test_what_was_reserved_for_an_attempt_that_the_gate_did_not_let_start_comes_back():
    scene = Scene(10, {"r0": [answered(1)]}, rpm=1.0)
    await scene.deliver(ask(0, 1))

    async def stop() -> None:
        await scene.clock.sleep(0.5)
        assert scene.spending.reserved == 5
        scene.stop.request(Interrupted(2))

    outcomes, _ = await asyncio.gather(scene.deliver(ask(1, 5)), stop())
    assert outcomes == [None]
    assert (scene.spending.spent, scene.spending.reserved) == (1, 0)


async def test_far_from_the_cap_nothing_is_counted_and_each_step_is_authorised_once():
    scene = Scene(1_000_000, {f"r{index}": [answered(1)] for index in range(500)})
    await scene.deliver(*(ask(index, 3) for index in range(500)))
    assert scene.marks == [10_003]
    assert scene.spending.spent == 500


LOST = replace(failure("timeout"), maybe_billed=True)


@pytest.mark.parametrize(
    ("answers", "spent", "unsure"),
    [
        ([answered(2)], 2, 0),
        ([answered(2, from_cache=True)], 0, 0),
        ([answered(2, usage=None)], 5, 5),
        ([answered(2, model="another")], 5, 5),
        ([answered(2, model="")], 5, 5),
        ([answered(2, usage=Usage(0, 2, 2))], 5, 5),
        ([LOST, answered(2)], 7, 5),
        ([LOST, LOST, answered(2, usage=None)], 15, 15),
        ([failure("server_error", status=500), answered(2)], 7, 5),
        ([failure("invalid_response", status=200), answered(2)], 7, 5),
        ([failure("rate_limited", status=429), answered(2)], 2, 0),
        ([failure("overloaded", status=529), answered(2)], 2, 0),
        ([failure("connection_error"), answered(2)], 2, 0),
        ([failure("invalid_request", status=400)], 0, 0),
        ([failure("invalid_request")], 0, 0),
        ([failure("invalid_request", status=200)], 5, 5),
        ([failure("content_filter", status=400)], 0, 0),
        ([replace(failure("content_filter", status=200), model="m", usage=Usage(1, 3, 4))], 3, 0),
        ([replace(failure("server_error", status=500), model="m", usage=Usage(1, 3, 4)), answered(2)], 5, 0),
    ],
)
async def test_each_attempt_settles_for_what_it_cost_or_for_its_worst_where_nobody_can_tell(
    answers, spent, unsure
):
    scene = Scene(100, {"r0": answers})
    [outcome] = await scene.deliver(ask(0, 5))
    assert outcome is not None
    assert (scene.spending.spent, scene.spending.unsure, scene.spending.reserved) == (spent, unsure, 0)
    assert outcome.maybe_cost == unsure


async def test_a_gateway_that_may_ask_three_times_reserves_for_three_and_settles_for_what_it_did():
    scene = Scene(
        100, {"r0": [answered(2, gateway_retries=1)], "r1": [answered(2, gateway_retries=-1)]}, attempts=3
    )
    [outcome] = await scene.deliver(ask(0, 5))
    assert outcome is not None
    assert (scene.spending.spent, outcome.maybe_cost) == (7, 5)
    [outcome] = await scene.deliver(ask(1, 5))
    assert outcome is not None
    assert (scene.spending.spent, outcome.maybe_cost) == (19, 10)
    scene = Scene(14, attempts=3)
    assert await scene.deliver(ask(0, 5)) == [None]


async def test_an_answer_that_cost_more_than_it_could_is_spent_as_it_is_and_told_once():
    scene = Scene(100, {"r0": [answered(9)], "r1": [answered(8)]})
    await scene.deliver(ask(0, 5), ask(1, 5))
    assert scene.spending.spent == 17
    assert len(scene.said) == 1
    assert "request 0 cost $9, more than the $5" in scene.said[0]


async def test_a_request_without_a_bound_stops_the_run_before_it_is_sent():
    scene = Scene(100)
    assert await scene.deliver(ask(3, 5, model="no-such-model")) == [None]
    assert scene.order == []
    assert isinstance(scene.stop.cause, MaxCostReached)
    assert "request 3 names the model 'no-such-model'" in str(scene.stop.cause)


async def test_only_near_the_cap_a_prompt_is_counted_and_then_it_may_still_fit():
    text = "word " * 200
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    request = Request(0, "r0", orjson.dumps(body), "gpt-4o", 1)
    cases = WorstCases(PriceList(at=1_763_820_000.0))
    bound, counted = cases.of(body, len(request.body)), cases.counted(body)
    assert counted is not None
    for cap, sent in ((bound, True), (counted, True), (counted - D("1e-9"), False)):
        scene = Scene(1, {"r0": [reply(model="gpt-4o", usage=Usage(1, 1, 2))]})
        scene.spending.cap = cap
        scene.purse._worst_cases = cases
        assert [outcome is not None for outcome in await scene.deliver(request)] == [sent]


async def test_a_hundred_workers_that_all_wait_end_all_the_same():
    """Whatever fails and however dear: in each run everybody comes to an outcome, or to the stop."""
    for cap in (5, 17, 60, 100_000):
        script = {
            f"r{index}": [LOST, failure("server_error", status=500), answered(index % 4)]
            if index % 3
            else [answered(1)]
            for index in range(100)
        }
        scene = Scene(cap, script)
        outcomes = await asyncio.wait_for(
            scene.deliver(*(ask(index, 1 + index % 5) for index in range(100))), 30
        )
        done = [outcome for outcome in outcomes if outcome is not None]
        assert scene.spending.reserved == 0
        assert scene.spending.spent <= cap
        assert (len(done) == 100) == (scene.stop.cause is None) == (cap == 100_000)


@pytest.mark.parametrize(
    ("amount", "shown"), [("0", "$0"), ("12.50", "$12.5"), ("0.000000150", "$0.00000015"), ("1E+3", "$1000")]
)
def test_an_amount_is_shown_with_all_its_digits(amount, shown):
    assert in_dollars(D(amount)) == shown
