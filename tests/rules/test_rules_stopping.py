import pytest

from batchkit.records import Failure, FailureKind as Kind, Reply, Request
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.retry import StopRun
from batchkit.rules.stopping import StopRule

OK = Reply(200, "r", b"{}")


def request(model="m", index=0):
    return Request(index, f"line-{index}", b"{}", model)


def failure(kind, code="code", message="message", **more):
    return Failure(kind, code, message, **more)


REFUSED = failure(Kind.KEY_REFUSED, "invalid_api_key", "wrong key")
HTML = failure(Kind.NOT_AN_API, "not_an_api", "HTML")


def judge(rule, *answers, now=0.0):
    return [rule.judge(request(), answer, now) for answer in answers]


def proven():
    rule = StopRule("m")
    assert rule.judge(request(), OK, 0.0) is None
    return rule


def test_a_key_refused_at_first_stops_the_run():
    verdict = StopRule().judge(request(), REFUSED, 0.0)
    assert isinstance(verdict, StopRun)
    assert verdict.code == "invalid_api_key"
    assert "wrong key" in verdict.message


def test_a_key_refused_before_any_success_stops_also_after_other_failures():
    rule = StopRule()
    assert judge(rule, failure(Kind.TIMEOUT), failure(Kind.SERVER_ERROR)) == [None, None]
    assert rule.judge(request(), REFUSED, 1.0) is not None


def test_after_a_success_a_key_must_be_refused_three_times_within_a_minute():
    rule = proven()
    assert [rule.judge(request(), REFUSED, now) for now in (0.0, 30.0)] == [None, None]
    assert rule.judge(request(), REFUSED, 60.0) is not None


def test_refusals_further_apart_than_a_minute_are_hiccups():
    rule = proven()
    assert [rule.judge(request(), REFUSED, 31.0 * n) for n in range(50)] == [None] * 50


@pytest.mark.parametrize("rule", [StopRule(), proven()])
def test_a_used_up_quota_stops_always(rule):
    verdict = rule.judge(request(), failure(Kind.QUOTA_EXHAUSTED, "insufficient_quota"), 0.0)
    assert verdict is not None
    assert verdict.code == "insufficient_quota"


def test_a_model_of_the_runs_that_is_not_there_stops():
    not_found = failure(Kind.NOT_FOUND, "model_not_found", "The model does not exist")
    rule = StopRule("m", url="https://here/v1/chat/completions")
    assert rule.judge(request("m"), not_found, 0.0) == StopRun(
        "model_not_found",
        "https://here/v1/chat/completions does not know this model or path: The model does not exist",
    )


def test_a_path_that_is_not_there_stops_whoever_named_the_model():
    assert StopRule().judge(request("own"), failure(Kind.NOT_FOUND, "404", "no such page"), 0.0) is not None


def test_a_model_of_one_records_own_fails_alone_until_another_record_names_it():
    rule = StopRule("m")
    not_found = failure(Kind.NOT_FOUND, "model_not_found", "The model does not exist")
    assert rule.judge(request("own"), not_found, 0.0) is None
    assert rule.before(request("m")) is None
    verdict = rule.before(request("own"))
    assert verdict is not None
    assert verdict.code == "model_not_found"
    assert rule.judge(request("m"), OK, 0.0) is None
    assert rule.before(request("own")) is None


def test_a_missing_model_after_a_success_is_that_requests_failure():
    rule = proven()
    for model in ("m", "own", None):
        assert rule.judge(request(model), failure(Kind.NOT_FOUND, "model_not_found", "model"), 0.0) is None


def test_what_is_no_api_at_first_stops():
    verdict = StopRule().judge(request(), HTML, 0.0)
    assert verdict is not None
    assert verdict.code == "not_an_api"


def test_what_is_no_api_later_stops_when_it_comes_twenty_times_in_a_row():
    rule = proven()
    assert judge(rule, *[HTML] * 19, OK, *[HTML] * 19, failure(Kind.TIMEOUT), *[HTML] * 19) == [None] * 59
    assert rule.judge(request(), HTML, 0.0) is not None


@pytest.mark.parametrize("code", ["redirected", "certificate", "host_unknown"])
def test_a_wrong_address_stops_at_the_start(code):
    assert StopRule().judge(request(), failure(Kind.MISDIRECTED, code), 0.0) is not None


def test_after_a_success_an_unknown_host_is_a_network_that_is_gone():
    assert proven().judge(request(), failure(Kind.MISDIRECTED, "host_unknown"), 0.0) is None
    assert proven().judge(request(), failure(Kind.MISDIRECTED, "redirected"), 0.0) is not None


def test_the_same_failure_for_each_of_the_first_twenty_stops():
    rule = StopRule()
    bad = failure(Kind.INVALID_REQUEST, "unsupported_parameter")
    assert judge(rule, *[bad] * 19) == [None] * 19
    verdict = rule.judge(request(), bad, 0.0)
    assert verdict is not None
    assert verdict.code == "unsupported_parameter"


@pytest.mark.parametrize("other", [OK, failure(Kind.INVALID_REQUEST, "another")])
@pytest.mark.parametrize("before", [1, 10, 19])
def test_one_that_ends_otherwise_shows_that_it_is_about_the_requests(other, before):
    rule = StopRule()
    bad = failure(Kind.INVALID_REQUEST, "context_length_exceeded")
    assert judge(rule, *[bad] * before, other, *[bad] * 100) == [None] * (before + 1 + 100)


def test_attempts_that_are_repeated_neither_count_nor_show_anything():
    rule = StopRule()
    bad, slow = failure(Kind.INVALID_REQUEST, "bad"), failure(Kind.RATE_LIMITED, "slow_down")
    assert judge(rule, *[slow] * 30, *[bad, slow] * 19) == [None] * (30 + 38)
    assert rule.judge(request(), bad, 0.0) is not None


@pytest.mark.parametrize("kind", [Kind.RATE_LIMITED, Kind.OVERLOADED, Kind.SERVER_ERROR, Kind.TIMEOUT])
def test_what_passes_by_itself_never_stops_a_run(kind):
    assert judge(StopRule(), *[failure(kind, maybe_billed=kind is Kind.TIMEOUT)] * 500) == [None] * 500


def test_only_a_completion_proves_the_endpoint():
    rule = StopRule()
    assert not rule.proven
    judge(rule, failure(Kind.TIMEOUT))
    assert not rule.proven
    judge(rule, OK)
    assert rule.proven


def test_an_endpoint_that_nobody_answers_at_stops_after_six_connections_in_vain():
    rule = StopRule()
    refused = failure(Kind.CONNECTION_ERROR, "connection_error")
    assert judge(rule, *[refused] * 5) == [None] * 5
    verdict = rule.judge(request(), refused, 0.0)
    assert verdict is not None
    assert verdict.code == "unreachable"


def test_connections_that_come_about_and_break_are_not_an_endpoint_out_of_reach():
    broken = failure(Kind.CONNECTION_ERROR, "connection_error", maybe_billed=True)
    assert judge(StopRule(), *[broken] * 50) == [None] * 50


def test_connecting_in_vain_for_the_whole_timeout_is_an_endpoint_out_of_reach():
    verdicts = judge(StopRule(), *[failure(Kind.TIMEOUT)] * 6)
    assert verdicts[:5] == [None] * 5
    assert verdicts[5].code == "unreachable"


GONE = [
    failure(Kind.CONNECTION_ERROR),
    failure(Kind.TIMEOUT),
    failure(Kind.MISDIRECTED, "host_unknown"),
]


@pytest.mark.parametrize("gone", GONE, ids=lambda gone: gone.kind.value)
def test_after_a_success_the_network_may_go_away_for_an_hour(gone):
    rule = proven()
    assert [rule.judge(request(), gone, now) for now in range(0, 3600, 10)] == [None] * 360
    verdict = rule.judge(request(), gone, 3600.0)
    assert verdict is not None
    assert verdict.code == "unreachable"


def test_an_answer_in_between_begins_the_hour_anew():
    rule = proven()
    for at, answer in ((0.0, GONE[0]), (3000.0, failure(Kind.SERVER_ERROR, status=500)), (3500.0, GONE[0])):
        assert rule.judge(request(), answer, at) is None
    assert rule.judge(request(), GONE[0], 7000.0) is None


LIMITED = failure(Kind.RATE_LIMITED, "rate_limit_exceeded", "slow down")


def test_an_hour_of_nothing_but_refusals_for_the_rate_ends_the_run():
    rule = proven()
    assert [rule.judge(request(), LIMITED, now) for now in (10.0, 1800.0, 3609.0)] == [None] * 3
    verdict = rule.judge(request(), LIMITED, 3610.0)
    assert isinstance(verdict, StopRun)
    assert verdict.code == "rate_limited"
    assert "slow down" in verdict.message


def test_any_other_answer_begins_the_hour_of_refusals_anew():
    for other in (OK, failure(Kind.SERVER_ERROR), failure(Kind.INVALID_REQUEST)):
        rule = proven()
        assert rule.judge(request(), LIMITED, 0.0) is None
        assert rule.judge(request(), other, 3000.0) is None
        assert rule.judge(request(), LIMITED, 3600.0) is None
        assert rule.judge(request(), LIMITED, 7199.0) is None
        assert rule.judge(request(), LIMITED, 7200.0) is not None


def test_failures_that_are_asked_again_in_a_job_with_results_may_fail_alike_and_a_refused_key_ends_the_run_all_the_same():
    again = StopRule(asked_again=DoneIndexes([(0, 1)]))
    assert judge(again, *[failure(Kind.CONTENT_FILTER, "content_filter")] * 100) == [None] * 100
    # The others are news.
    others = [
        again.judge(request(index=5), failure(Kind.CONTENT_FILTER, "content_filter"), 0.0) for _ in range(20)
    ]
    assert [verdict is not None for verdict in others] == [False] * 19 + [True]
    assert isinstance(again.judge(request(), REFUSED, 0.0), StopRun)
    verdicts = judge(StopRule(), *[failure(Kind.CONTENT_FILTER, "content_filter")] * 20)
    assert isinstance(verdicts[-1], StopRun)
