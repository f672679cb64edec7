"""A provider on a bad day: every fault it can have in one run, limits that hold, waits that are kept."""

import time
from collections import Counter

from batchkit.simulator.settings import FaultKind

REQUESTS = 100


def test_every_kind_of_fault_in_one_run_ends_in_results(command, simulate, files, write_requests):
    # As many of each kind, and half of the bodies without any.
    simulator = simulate(faults=dict.fromkeys(FaultKind, 0.05))
    words = ["run", write_requests(REQUESTS), "-o", files.results_path, "--base-url", simulator.base_url]
    summary = command(*words, "--timeout", 1, "--concurrency", 100, "--json").json
    files.assert_summary_is_a_fold(summary, REQUESTS)
    assert summary["requests"]["succeeded"] == REQUESTS
    assert simulator.stats.answered == REQUESTS
    assert simulator.stats.received == summary["attempts"]["total"]
    assert summary["attempts"]["retried"] == simulator.stats.faulted > 0
    reasons = summary["attempts"]["by_reason"]
    assert set(reasons) == {
        "rate_limited",  # 429
        "overloaded",  # 503
        "server_error",  # 500 and error200
        "timeout",  # hang
        "connection_error",  # reset and cut
        "not_an_api",  # html
        "invalid_response",  # empty
    }
    # A cut answer and one without choices were billed, and nothing else that failed.
    assert simulator.stats.billed_prompt_tokens > summary["usage"]["prompt_tokens"]


def test_a_fault_that_stays_spends_the_attempts_and_is_a_failure(command, simulate, files, write_requests):
    simulator = simulate(faults={"500": 0.2}, fault_times=100)
    words = ["run", write_requests(50), "-o", files.results_path, "--base-url", simulator.base_url]
    summary = command(*words, "--max-attempts", 2, "--json", code=1).json
    files.assert_summary_is_a_fold(summary, 50)
    assert files.errors
    for failed in files.errors:
        assert failed["response"]["status_code"] == 500
        assert failed["error"]["code"] == "server_error"
        assert failed["batchkit"]["attempts"] == 2
        assert failed["batchkit"]["retries"] == {"server_error": 1}
    assert summary["errors"]["server_error"]["count"] == len(files.errors)


def test_rpm_holds_in_every_second(command, simulate, files, write_requests):
    simulator = simulate()
    words = ["run", write_requests(120), "-o", files.results_path, "--base-url", simulator.base_url]
    summary = command(*words, "--rpm", 2_400, "--json").json
    finished = sorted(line["batchkit"]["finished_at"] for line in files.results)
    # 40 a second; 50 ms of them may come at once, and an answer may be late by as much again.
    assert max(sum(start <= each < start + 1 for each in finished) for start in finished) <= 40 * 1.1 + 1
    assert 2.7 <= finished[-1] - finished[0] <= 10
    assert summary["attempts"]["by_reason"] == {}


def test_no_request_returns_before_the_wait_it_was_told(command, record, files, write_requests):
    arrivals: dict[int, float] = {}

    def respond(number):
        arrivals[number] = time.monotonic()
        if number == 1:
            error = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
            return 429, {"Retry-After": "2"}, error
        return None

    endpoint = record(respond=respond)
    words = ["run", write_requests(8), "-o", files.results_path, "--base-url", endpoint.base_url]
    summary = command(*words, "--concurrency", 1, "--json").json
    assert summary["attempts"]["by_reason"] == {"rate_limited": 1}
    bodies = [body for _, body in endpoint.received]
    ((first, again),) = (
        [at for at, other in enumerate(bodies) if other == body]
        for body, count in Counter(bodies).items()
        if count > 1
    )
    assert arrivals[again] - arrivals[first] >= 2


def test_a_page_instead_of_an_api_ends_the_run(command, record, files, write_requests):
    endpoint = record(respond=lambda _: (200, {}, "It works!"))
    words = ["run", write_requests(8), "-o", files.results_path, "--base-url", endpoint.base_url]
    stopped = command(*words, "--json", code=3).json
    assert stopped["stop_reason"] == "not_an_api"
    assert len(endpoint.received) == 1
    assert not files.errors
