"""What the gateway makes of a provider's answers, and what batchkit makes of that."""

import http.client
import json
import time
from urllib.parse import urlsplit

import pytest

from batchkit.endpoint import open_endpoint
from batchkit.formats.headers import attempt_headers
from batchkit.records import FailureKind as Kind, Reply, Request, Trace

BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"What is 1?"}],"max_tokens":5}'
REQUEST = Request(0, "a", BODY)
TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
LONGEST_S = 30
REFUSED = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
BROKEN = {"error": {"message": "sorry", "type": "server_error"}}
SAYS_MAYBE = {"default.contains": {"operator": "any", "words": ["maybe"]}, "async": False}
"""A guardrail that nothing passes."""


async def ask(address):
    async with open_endpoint(address, timeout=LONGEST_S) as endpoint:
        return await endpoint.attempt(REQUEST, TRACE)


def failing(times, status, headers, body):
    return lambda number: (status, headers, body) if number < times else None


def test_totals_through_the_gateway_are_what_the_provider_billed(
    through, command, simulate, files, write_requests
):
    simulator = simulate()
    summary = command(*through(simulator, write_requests(50))).json
    files.assert_summary_is_a_fold(summary, 50)
    assert summary["requests"]["succeeded"] == simulator.stats.received == 50
    assert summary["usage"]["prompt_tokens"] == simulator.stats.billed_prompt_tokens > 0
    assert summary["usage"]["completion_tokens"] == simulator.stats.billed_completion_tokens > 0
    assert summary["attempts"]["total"] == 50


def test_the_gateway_passes_on_the_providers_key_and_the_body_but_nothing_of_portkeys(
    through, command, record, files, write_requests
):
    upstream = record()
    path = write_requests(1)
    command(*through(upstream, path))
    ((headers, body),) = upstream.received
    assert headers["authorization"] == f"Bearer {command.environ['OPENAI_API_KEY']}"
    assert json.loads(body) == json.loads(path.read_bytes())["body"]
    assert not any(name.startswith("x-portkey") for name in headers)


def test_a_429_is_waited_out_as_long_as_the_provider_asks(through, command, record, files, write_requests):
    arrivals = []

    def respond(_):
        arrivals.append(time.monotonic())
        return (429, {"Retry-After": "1"}, REFUSED) if len(arrivals) == 1 else None

    summary = command(*through(record(respond=respond), write_requests(1)), "--max-attempts", 1).json
    assert summary["requests"]["succeeded"] == 1
    assert summary["attempts"]["by_reason"] == {"rate_limited": 1}
    assert arrivals[1] - arrivals[0] >= 1


def test_a_500_that_stays_spends_the_attempts_and_keeps_the_gateways_words(
    through, command, simulate, files, write_requests
):
    simulator = simulate(faults={"500": 1.0}, fault_times=100)
    summary = command(*through(simulator, write_requests(3)), "--max-attempts", 2, code=1).json
    files.assert_summary_is_a_fold(summary, 3)
    assert simulator.stats.received == 6
    for failed in files.errors:
        assert failed["response"]["status_code"] == 500
        assert failed["response"]["body"]["provider"] == "openai"
        assert failed["error"]["code"] == "server_error"
        assert failed["error"]["message"].startswith("openai error: ")
        assert failed["batchkit"]["retries"] == {"server_error": 1}


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        ("429", 429, Kind.RATE_LIMITED, "rate_limit_exceeded"),
        ("503", 503, Kind.OVERLOADED, "service_unavailable"),
        ("500", 500, Kind.SERVER_ERROR, "server_error"),
        ("error200", 200, Kind.SERVER_ERROR, "server_error"),
        ("empty", 200, Kind.INVALID_RESPONSE, "invalid_response"),
        ("cut", 500, Kind.SERVER_ERROR, "server_error"),
        ("reset", 500, Kind.SERVER_ERROR, "server_error"),
    ],
)
async def test_a_fault_behind_the_gateway_is_read_as_one_in_front_of_it(
    fault, status, kind, code, address, simulate
):
    failure = await ask(address(simulate(faults={fault: 1.0})))
    assert (failure.status, failure.kind, failure.code) == (status, kind, code)
    assert failure.retry_after == (1.0 if fault == "429" else None)


@pytest.mark.parametrize("fault", ["cut", "reset"])
async def test_an_answer_that_the_gateway_lost_may_have_been_billed(fault, address, simulate):
    failure = await ask(address(simulate(faults={fault: 1.0})))
    assert failure.maybe_billed


@pytest.mark.parametrize("fault", ["500", "503", "429"])
async def test_an_error_that_the_provider_gave_itself_was_not_billed(fault, address, simulate):
    failure = await ask(address(simulate(faults={fault: 1.0})))
    assert not failure.maybe_billed


async def test_a_page_that_the_gateway_wraps_in_json_is_no_api(address, simulate):
    failure = await ask(address(simulate(faults={"html": 1.0})))
    assert failure.kind is Kind.NOT_AN_API
    assert b"html-message" in failure.body


def test_a_page_behind_the_gateway_as_the_first_answer_ends_the_run(
    through, command, simulate, files, write_requests
):
    simulator = simulate(faults={"html": 1.0}, fault_times=100)
    run = through(simulator, write_requests(8))
    stopped = command(*run, "--concurrency", 1, code=3).json
    assert stopped["stop_reason"] == "not_an_api"
    assert simulator.stats.received == 1
    assert not files.errors


def test_every_kind_of_breakdown_behind_the_gateway_in_one_run_ends_in_results(
    through, command, simulate, files, write_requests
):
    simulator = simulate(faults=dict.fromkeys(("500", "reset", "cut", "hang", "error200", "empty"), 0.1))
    summary = command(*through(simulator, write_requests(40)), "--timeout", 1).json
    files.assert_summary_is_a_fold(summary, 40)
    assert summary["requests"]["succeeded"] == simulator.stats.answered == 40
    assert summary["attempts"]["retried"] == simulator.stats.faulted > 0
    assert set(summary["attempts"]["by_reason"]) == {
        "server_error",
        "timeout",
        "invalid_response",
    }


@pytest.mark.parametrize("config", [{}, {"request_timeout": 60_000}])
async def test_a_gateway_told_of_the_timeout_answers_408_and_stops_the_provider_whatever_its_config_says(
    config, address, simulate, until
):
    simulator = simulate(faults={"hang": 1.0})
    failure = await ask(address(simulator, timeout=0.3, **config))
    assert (failure.status, failure.kind, failure.code) == (408, Kind.TIMEOUT, "timeout_error")
    assert failure.maybe_billed
    until(lambda: simulator.stats.in_flight == 0)


def test_a_provider_that_hangs_behind_the_gateway_is_a_timeout_and_asked_again(
    through, command, simulate, files, write_requests, until
):
    simulator = simulate(faults={"hang": 1.0})
    summary = command(*through(simulator, write_requests(2)), "--timeout", 1).json
    assert summary["requests"]["succeeded"] == 2
    assert summary["attempts"]["by_reason"] == {"timeout": 2}
    assert simulator.stats.received == 4
    until(lambda: simulator.stats.in_flight == 0)


def post(address):
    """The answer, with its headers, to one request that nobody repeats."""
    to = urlsplit(address.url)
    connection = http.client.HTTPConnection(to.hostname, to.port, timeout=LONGEST_S)
    try:
        connection.request(
            "POST", to.path, BODY, {**address.headers, **attempt_headers(address, None, TRACE)}
        )
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return answer


@pytest.mark.parametrize(
    ("times", "status", "count", "received"), [(0, 200, "0", 1), (1, 200, "1", 2), (9, 500, "-1", 2)]
)
def test_the_gateway_counts_its_own_retries_and_says_minus_one_when_they_are_spent(
    times, status, count, received, address, record
):
    upstream = record(respond=failing(times, 500, {}, BROKEN))
    answer = post(address(upstream, retry={"attempts": 1}))
    assert answer.status == status
    assert answer.headers["x-portkey-retry-attempt-count"] == count
    assert answer.headers["x-portkey-trace-id"] == TRACE.trace_id
    assert answer.headers["x-portkey-last-used-option-index"] == "config"
    assert len(upstream.received) == received


def test_retries_of_the_gateways_stand_in_the_line_beside_our_own_attempts(
    through, command, record, files, write_requests
):
    upstream = record(respond=failing(1, 500, {}, BROKEN))
    command(*through(upstream, write_requests(1), retry={"attempts": 2}))
    (line,) = files.results
    assert len(upstream.received) == 2
    assert line["batchkit"]["attempts"] == 1
    assert line["batchkit"]["gateway_retries"] == 1


def test_retries_of_the_gateways_multiply_with_ours(through, command, record, files, write_requests):
    upstream = record(respond=failing(9, 500, {}, BROKEN))
    run = through(upstream, write_requests(1), retry={"attempts": 1})
    command(*run, "--max-attempts", 2, code=1)
    (line,) = files.errors
    assert line["batchkit"]["attempts"] == 2
    assert len(upstream.received) == 4


@pytest.mark.parametrize("side", ["input_guardrails", "output_guardrails"])
def test_246_is_a_result_that_carries_a_flag_and_the_guardrails_findings(
    side, through, command, simulate, files, write_requests
):
    simulator = simulate()
    guarded = {side: [{**SAYS_MAYBE, "deny": False}]}
    summary = command(*through(simulator, write_requests(3), **guarded)).json
    assert summary["usage"]["completion_tokens"] == simulator.stats.billed_completion_tokens > 0
    for line in files.results:
        assert line["response"]["status_code"] == 246
        assert line["response"]["body"]["hook_results"]
        assert "guardrail" in line["batchkit"]["flags"]


@pytest.mark.parametrize(("side", "asked"), [("input_guardrails", 0), ("output_guardrails", 3)])
def test_446_is_a_failure_at_once_whichever_side_the_guardrail_stands_on(
    side, asked, through, command, record, files, write_requests
):
    upstream = record()
    guarded = {side: [{**SAYS_MAYBE, "deny": True}]}
    summary = command(*through(upstream, write_requests(3), **guarded), code=1).json
    assert summary["attempts"]["total"] == 3
    assert len(upstream.received) == asked
    assert summary["errors"]["guardrail_denied"]["count"] == 3
    assert {line["response"]["status_code"] for line in files.errors} == {446}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"refuse_key": True}, "invalid_api_key"), ({"quota": 0}, "insufficient_quota")],
)
def test_a_key_or_quota_that_the_provider_refuses_ends_the_run_through_the_gateway(
    settings, reason, through, command, simulate, files, write_requests
):
    simulator = simulate(**settings)
    stopped = command(*through(simulator, write_requests(8)), "--concurrency", 1, code=3).json
    assert stopped["stop_reason"] == reason
    assert stopped["requests"]["pending"] == 8
    assert simulator.stats.received == 1


def test_a_config_that_the_gateway_refuses_ends_the_run_before_the_provider_is_asked(
    through, command, record, files, write_requests
):
    upstream = record()
    run = through(upstream, write_requests(30), retry={"attempts": "many"})
    stopped = command(*run, "--concurrency", 1, code=3).json
    assert stopped["requests"]["failed"] <= 20
    assert not upstream.received
    assert files.errors[0]["error"]["message"] == "Invalid config passed"


async def test_the_gateway_answers_a_single_attempt_with_the_providers_own_completion(address, simulate):
    reply = await ask(address(simulate()))
    assert isinstance(reply, Reply)
    assert reply.model == "gpt-4o-mini-2024-07-18"
    assert reply.usage is not None
    assert reply.request_id.startswith("req_")
