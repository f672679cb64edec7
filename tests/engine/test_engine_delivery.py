"""One request to its outcome, over a scripted endpoint and a clock that nobody waits for."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.errors import EndpointRefused, Interrupted
from batchkit.events import AttemptFailed, Event
from batchkit.records import Billed, Failure, FailureKind, PortkeyFields, Reply, Request, Usage
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer, derive_trace_id
from batchkit.testing import ManualClock, ScriptedEndpoint, failure, reply


class Scene:
    """A delivery with everything around it that a run has."""

    def __init__(self, script: dict[str, list[Any]], *, latency_s: float = 0.0, jitter: float = 0.5) -> None:
        self.clock = ManualClock()
        self.stop = Stop()
        self.events: list[Event] = []
        self.pacer = Pacer()
        self.budget = RetryBudget(workers=256)
        self.endpoint = ScriptedEndpoint(script, clock=self.clock, latency_s=latency_s)
        self.delivery = Delivery(
            self.endpoint.attempt,
            gate=Gate(self.pacer, self.clock, self.stop),
            policy=RetryPolicy(),
            budget=self.budget,
            stop_rule=StopRule("m"),
            tracer=Tracer("job", 7),
            stop=self.stop,
            clock=self.clock,
            jitter=lambda: jitter,
            emit=self.events.append,
        )


def ask(custom_id: str = "a", index: int = 0, **fields: Any) -> Request:
    return Request(index, custom_id, b"{}", "m", **fields)


async def test_a_good_answer_is_one_attempt():
    scene = Scene({"a": [reply("Yes.")]}, latency_s=1.25)
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert outcome.succeeded
    assert (outcome.attempts, outcome.latency_s, dict(outcome.retries)) == (1, 1.25, {})
    assert outcome.finished_at == scene.clock.time()
    assert outcome.trace_id == derive_trace_id("job", 0)
    assert scene.events == []


async def test_a_transient_fault_is_tried_again_after_full_jitter_and_told():
    scene = Scene({"a": [failure("server_error"), failure("timeout"), reply()]}, jitter=0.5)
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert outcome.succeeded
    assert (outcome.attempts, dict(outcome.retries)) == (3, {"server_error": 1, "timeout": 1})
    # 0.5 · 0.5·2¹ after the first, 0.5 · 0.5·2² after the second.
    assert scene.clock.now() == pytest.approx(0.5 + 1.0)
    told = [
        (event.attempt, event.failure.kind.value, event.wait_s)
        for event in scene.events
        if isinstance(event, AttemptFailed)
    ]
    assert told == [(1, "server_error", 0.5), (2, "timeout", 1.0)]


async def test_an_attempt_that_is_repeated_though_it_said_what_it_took_stands_in_the_outcome():
    took, gave = Usage(10, 2, 12), Usage(9, 0, 9)
    scene = Scene(
        {
            "a": [
                replace(failure("invalid_response", status=200), model="m", usage=took),
                failure("server_error"),
                replace(failure("server_error", status=500), usage=gave),
                reply(),
            ],
            # The last is the outcome itself, and no attempt that was repeated.
            "b": [replace(failure("invalid_response", status=200), usage=took)],
        }
    )
    outcome = await scene.delivery.deliver(ask(metadata={"team": "blue"}))
    assert outcome is not None
    assert outcome.billed == (Billed("m", took), Billed("", gave))
    assert outcome.metadata == {"team": "blue"}
    outcome = await scene.delivery.deliver(ask("b", 1))
    assert outcome is not None
    assert (outcome.attempts, outcome.billed) == (3, (Billed("", took),) * 2)


async def test_after_max_attempts_the_last_failure_is_the_outcome():
    scene = Scene({"a": [failure("server_error", status=500)]})
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert isinstance(outcome.answer, Failure)
    assert outcome.attempts == len(scene.endpoint.attempts) == 6
    assert dict(outcome.retries) == {"server_error": 5}


async def test_a_network_that_is_gone_for_ten_minutes_costs_no_attempt():
    gone = [failure("connection_error")] * 30
    scene = Scene({"a": [reply()], "b": [*gone, failure("server_error"), reply()]}, jitter=0.99)
    await scene.delivery.deliver(ask("a"))
    outcome = await scene.delivery.deliver(ask("b", 1))
    assert scene.clock.now() > 600
    assert outcome is not None
    assert outcome.succeeded
    assert dict(outcome.retries) == {"connection_error": 30, "server_error": 1}


async def test_a_failure_for_good_is_not_tried_again():
    scene = Scene({"a": [failure("invalid_request", code="context_length_exceeded", status=400)]})
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert outcome.attempts == 1
    assert isinstance(outcome.answer, Failure)
    assert outcome.answer.code == "context_length_exceeded"


async def test_being_rate_limited_a_hundred_times_costs_no_attempt():
    scene = Scene({"a": [*[failure("rate_limited", retry_after=30.0)] * 100, reply()]})
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert outcome.succeeded
    assert (outcome.attempts, dict(outcome.retries)) == (101, {"rate_limited": 100})


async def test_being_rate_limited_is_not_paid_by_the_budget_of_retries_and_a_fault_is():
    scene = Scene({"a": [*[failure("rate_limited")] * 20, failure("server_error"), reply()]})
    before = scene.budget._left
    await scene.delivery.deliver(ask())
    # The price of one, and what the answer earned.
    assert before - scene.budget._left == 10 - 1


async def test_what_a_gateway_tried_as_often_as_it_was_told_to_is_tried_once_more():
    spent = replace(failure("server_error", status=502), gateway_retries=-1)
    scene = Scene({"a": [spent]})
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert (outcome.attempts, outcome.gateway_retries) == (2, 2)


async def test_an_outcome_tells_how_many_attempts_may_have_been_billed_and_what_a_gateway_added():
    lost = replace(failure("timeout"), maybe_billed=True)
    scene = Scene({"a": [lost, lost, failure("server_error"), replace(reply(), gateway_retries=3)]})
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert (outcome.maybe_billed, outcome.gateway_retries) == (2, 3)


async def test_retry_after_is_obeyed():
    scene = Scene({"a": [failure("rate_limited", retry_after=42.0), reply()]}, jitter=0.0)
    await scene.delivery.deliver(ask())
    assert scene.clock.now() >= 42.0


async def test_the_trace_stays_and_the_span_is_new_for_each_attempt():
    scene = Scene({"a": [failure("server_error"), failure("server_error"), reply()]})
    await scene.delivery.deliver(ask())
    traces = [trace for _, trace in scene.endpoint.attempts]
    assert {trace.trace_id for trace in traces} == {derive_trace_id("job", 0)}
    assert len({trace.span_id for trace in traces}) == 3


async def test_a_records_own_ids_are_kept_and_later_attempts_are_children_of_its_span():
    scene = Scene({"a": [failure("server_error"), reply()]})
    own = PortkeyFields(trace_id="mine", span_id="span", parent_span_id="parent")
    outcome = await scene.delivery.deliver(ask(portkey=own))
    first, second = (trace for _, trace in scene.endpoint.attempts)
    assert outcome is not None
    assert outcome.trace_id == first.trace_id == second.trace_id == "mine"
    assert (first.span_id, first.parent_span_id) == ("span", "parent")
    assert second.span_id != "span"
    assert second.parent_span_id == "span"


async def test_a_refused_key_ends_the_run_and_leaves_the_request_open():
    scene = Scene({"a": [failure("key_refused", code="invalid_api_key", status=401)]})
    assert await scene.delivery.deliver(ask()) is None
    assert isinstance(scene.stop.cause, EndpointRefused)
    assert scene.stop.cause.code == "invalid_api_key"
    assert len(scene.endpoint.attempts) == 1


async def test_a_stop_cuts_a_wait_short_and_leaves_the_request_open():
    scene = Scene({"a": [failure("rate_limited", retry_after=300.0), reply()]})

    def emit(event: Event) -> None:
        scene.events.append(event)
        scene.stop.request(Interrupted(2, "enough"))

    scene.delivery._emit = emit
    assert await scene.delivery.deliver(ask()) is None
    assert scene.clock.now() < 1.0
    assert len(scene.endpoint.attempts) == 1


async def test_an_answer_that_came_while_the_run_stops_is_kept():
    scene = Scene({"a": [reply()]}, latency_s=5.0)
    attempt = scene.endpoint.attempt

    async def stopped_meanwhile(request: Request, trace: Any) -> Any:
        answer = await attempt(request, trace)
        scene.stop.request(Interrupted(2, "enough"))
        return answer

    scene.delivery._send = stopped_meanwhile
    outcome = await scene.delivery.deliver(ask())
    assert outcome is not None
    assert isinstance(outcome.answer, Reply)


async def test_a_second_request_for_a_model_that_is_not_there_is_not_sent():
    scene = Scene({"a": [failure("not_found", code="model_not_found", message="no such model", status=404)]})
    first = await scene.delivery.deliver(Request(0, "a", b"{}", "own"))
    assert first is not None
    assert isinstance(first.answer, Failure)
    assert first.answer.kind is FailureKind.NOT_FOUND
    assert await scene.delivery.deliver(Request(1, "b", b"{}", "own")) is None
    assert len(scene.endpoint.attempts) == 1
    assert scene.stop.cause is not None


async def test_an_answer_that_a_filter_withheld_is_counted_though_it_ends_the_run():
    scene = Scene({"a": [failure("content_filter", status=200)]})
    outcomes = [await scene.delivery.deliver(ask(index=index)) for index in range(20)]
    assert scene.stop.cause is not None
    assert [outcome is None for outcome in outcomes] == [False] * 19 + [True]
    assert [outcome.index for outcome in scene.delivery.left_open] == [19]
