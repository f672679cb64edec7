import pytest
from hypothesis import given, strategies as st

from batchkit.records import Failure, FailureKind as Kind
from batchkit.rules.retry import (
    DEFAULT_MAX_ATTEMPTS,
    GiveUp,
    Remedy,
    RetryAfter,
    RetryPolicy,
    is_fault,
    never_reached,
    remedy_of,
)


def failure(kind, **more):
    return Failure(kind, "code", "message", **more)


def decide(kind, *, attempt=1, faults=1, same=1, jitter=0.5, policy=RetryPolicy(), **more):  # noqa: B008 - frozen
    return policy.decide(failure(kind, **more), attempt=attempt, faults=faults, same=same, jitter=jitter)


REMEDIES = {
    Kind.RATE_LIMITED: Remedy.RATE,
    Kind.OVERLOADED: Remedy.RATE,
    Kind.SERVER_ERROR: Remedy.AGAIN,
    Kind.TIMEOUT: Remedy.AGAIN,
    Kind.CONNECTION_ERROR: Remedy.AGAIN,
    Kind.NOT_AN_API: Remedy.AGAIN,
    Kind.INVALID_RESPONSE: Remedy.AGAIN,
    Kind.INVALID_REQUEST: Remedy.FAIL,
    Kind.CONTENT_FILTER: Remedy.FAIL,
    Kind.NOT_FOUND: Remedy.FAIL,
    Kind.BAD_LINE: Remedy.FAIL,
    Kind.KEY_REFUSED: Remedy.AGAIN,
    Kind.QUOTA_EXHAUSTED: Remedy.AGAIN,
    Kind.MISDIRECTED: Remedy.AGAIN,
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_has_its_remedy_and_its_first_decision(kind):
    assert remedy_of(failure(kind)) is REMEDIES[kind]
    assert isinstance(decide(kind), GiveUp if REMEDIES[kind] is Remedy.FAIL else RetryAfter)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_full_jitter_under_a_doubling_cap_of_a_minute(attempt, jitter):
    most = min(60.0, 0.5 * 2 ** min(attempt, 50))
    wait = decide(Kind.RATE_LIMITED, attempt=attempt, jitter=jitter)
    assert wait == RetryAfter(jitter * most)


@given(st.floats(0.001, 300), st.integers(1, 30), st.floats(0, 1, exclude_max=True))
def test_retry_after_is_obeyed_and_passed_by_a_tenth_at_most(asked, attempt, jitter):
    for kind in (Kind.RATE_LIMITED, Kind.SERVER_ERROR):
        wait = decide(kind, attempt=attempt, jitter=jitter, retry_after=asked)
        assert isinstance(wait, RetryAfter)
        assert asked <= wait.seconds <= asked * 1.1 + 1e-9


def test_those_refused_together_do_not_return_together():
    waits = {decide(Kind.RATE_LIMITED, retry_after=30.0, jitter=n / 10) for n in range(10)}
    assert len(waits) == 10


def test_a_retry_after_of_zero_does_not_spend_all_attempts_in_one_breath():
    assert decide(Kind.SERVER_ERROR, attempt=3, jitter=0.5, retry_after=0.0) == RetryAfter(2.0)


@pytest.mark.parametrize("kind", [Kind.SERVER_ERROR, Kind.TIMEOUT, Kind.CONNECTION_ERROR, Kind.KEY_REFUSED])
def test_a_fault_is_tried_again_until_the_attempts_are_spent(kind):
    last = DEFAULT_MAX_ATTEMPTS
    assert isinstance(decide(kind, attempt=last - 1, faults=last - 1, same=last - 1), RetryAfter)
    assert decide(kind, attempt=last, faults=last, same=last) == GiveUp()


@pytest.mark.parametrize(
    ("failed", "reached"),
    [
        (failure(Kind.CONNECTION_ERROR), False),
        (failure(Kind.TIMEOUT), False),
        (Failure(Kind.MISDIRECTED, "host_unknown", "message"), False),
        (failure(Kind.CONNECTION_ERROR, maybe_billed=True), True),
        (failure(Kind.TIMEOUT, maybe_billed=True), True),
        (failure(Kind.TIMEOUT, status=408), True),
        (failure(Kind.SERVER_ERROR, status=500), True),
        (Failure(Kind.MISDIRECTED, "tls_not_verified", "message"), True),
    ],
)
def test_an_endpoint_that_was_not_reached_costs_no_attempt(failed, reached):
    assert never_reached(failed) is not reached
    assert is_fault(failed) is reached


def test_one_attempt_means_no_second():
    assert decide(Kind.TIMEOUT, policy=RetryPolicy(1)) == GiveUp()


@pytest.mark.parametrize("kind", [Kind.RATE_LIMITED, Kind.OVERLOADED])
def test_being_rate_limited_costs_no_attempts(kind):
    assert isinstance(decide(kind, attempt=1000, faults=5, same=995, policy=RetryPolicy(1)), RetryAfter)


@pytest.mark.parametrize(("kind", "most"), [(Kind.INVALID_RESPONSE, 2), (Kind.NOT_AN_API, 3)])
def test_an_answer_that_says_nothing_is_asked_again_only_so_often(kind, most):
    policy = RetryPolicy(100)
    for same in range(1, most + 1):
        assert isinstance(decide(kind, same=same, faults=same, policy=policy), RetryAfter)
    assert decide(kind, same=most + 1, faults=most + 1, policy=policy) == GiveUp()


@pytest.mark.parametrize("kind", [Kind.SERVER_ERROR, Kind.TIMEOUT, Kind.INVALID_RESPONSE])
def test_what_a_gateway_has_spent_its_own_retries_on_is_asked_twice_at_most(kind):
    assert isinstance(decide(kind, gateway_retries=-1), RetryAfter)
    assert decide(kind, attempt=2, faults=2, same=2, gateway_retries=-1) == GiveUp()
    assert decide(kind, gateway_retries=-1, policy=RetryPolicy(1)) == GiveUp()


def test_a_gateway_that_worked_it_out_by_retries_is_asked_as_often_as_any():
    assert isinstance(decide(Kind.SERVER_ERROR, attempt=5, faults=5, same=5, gateway_retries=3), RetryAfter)


def test_a_rate_limit_that_a_gateway_could_not_wait_out_is_waited_out():
    assert isinstance(decide(Kind.RATE_LIMITED, attempt=9, faults=5, same=9, gateway_retries=-1), RetryAfter)


def test_other_faults_before_do_not_shorten_that():
    assert isinstance(decide(Kind.INVALID_RESPONSE, attempt=5, faults=5, same=2), RetryAfter)


def test_x_should_retry_overrides_again():
    assert decide(Kind.SERVER_ERROR, should_retry=False) == GiveUp()


def test_x_should_retry_overrides_fail_but_not_the_count():
    assert isinstance(decide(Kind.INVALID_REQUEST, should_retry=True), RetryAfter)
    assert remedy_of(failure(Kind.INVALID_REQUEST, should_retry=True)) is Remedy.AGAIN
    last = DEFAULT_MAX_ATTEMPTS
    assert decide(Kind.INVALID_REQUEST, should_retry=True, faults=last, same=last) == GiveUp()


@pytest.mark.parametrize("said", [True, False])
def test_x_should_retry_makes_no_fault_of_a_rate_limit(said):
    assert remedy_of(failure(Kind.RATE_LIMITED, should_retry=said)) is Remedy.RATE


def test_a_line_that_cannot_be_sent_is_never_retried():
    assert decide(Kind.BAD_LINE, should_retry=True) == GiveUp()
