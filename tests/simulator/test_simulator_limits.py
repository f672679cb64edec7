"""A limit of N a minute lets N a minute through, whoever asks and however often."""

import pytest
from hypothesis import given, strategies as st

from batchkit.simulator.limits import Bucket, Limits
from batchkit.simulator.settings import SimulatorSettings


def limits(**options: float) -> Limits:
    return Limits(SimulatorSettings(**options))


def admitted(rules: Limits, seconds: float, step: float, tokens: int = 1) -> int:
    return sum(
        rules.admit(number * step, tokens=tokens, in_flight=0) is None
        for number in range(round(seconds / step))
    )


@pytest.mark.parametrize("rpm", [6, 60, 600, 6_000])
def test_rpm_lets_its_number_a_minute_through_and_one_second_at_once(rpm):
    burst = max(1, rpm // 60)
    assert admitted(limits(rpm=rpm), 60, 0.005) == pytest.approx(rpm + burst, abs=2)
    rules = limits(rpm=rpm)
    assert [rules.admit(5.0, tokens=1, in_flight=0) is None for _ in range(burst + 3)] == [True] * burst + [
        False
    ] * 3


def test_tpm_counts_tokens():
    assert admitted(limits(tpm=60_000), 60, 0.01, tokens=100) == pytest.approx(600 + 10, abs=2)


def test_who_comes_back_when_told_is_let_in():
    rules = limits(rpm=90)
    now = 0.0
    for _ in range(50):
        while (refusal := rules.admit(now, tokens=1, in_flight=0)) is None:
            pass
        assert refusal.limit == "requests"
        assert 0 < refusal.retry_after_s < 60 / 90 + 1e-6
        now += refusal.retry_after_s
        assert rules.admit(now, tokens=1, in_flight=0) is None


def test_a_request_larger_than_a_second_is_let_in_and_leaves_a_debt():
    rules = limits(tpm=6_000)  # 100 a second
    assert rules.admit(0, tokens=500, in_flight=0) is None
    refusal = rules.admit(0, tokens=50, in_flight=0)
    assert refusal.limit == "tokens"
    assert refusal.retry_after_s == pytest.approx(4.5)
    assert rules.standings(0)[0].remaining == 0
    assert rules.standings(0)[0].reset_s == pytest.approx(5)


def test_a_request_larger_than_a_minute_is_never_let_in():
    refusal = limits(tpm=6_000).admit(0, tokens=6_001, in_flight=0)
    assert refusal.retry_after_s is None
    assert refusal.message.startswith("Request too large")


def test_a_request_that_one_limit_refuses_takes_nothing_from_the_other():
    rules = limits(rpm=60, tpm=6_000)
    assert rules.admit(0, tokens=100, in_flight=0) is None
    assert rules.admit(1, tokens=100, in_flight=0) is None
    assert rules.admit(1.5, tokens=10, in_flight=0).limit == "requests"
    assert rules.admit(2, tokens=100, in_flight=0) is None
    assert limits(tpm=6_000, rpm=60).standings(0)[0].remaining == 1


def test_at_most_so_many_are_in_flight():
    rules = limits(max_in_flight=2)
    assert rules.admit(0, tokens=1, in_flight=1) is None
    assert rules.admit(0, tokens=1, in_flight=2).limit == "requests"
    assert rules.standings(0) == []


def test_a_refusal_that_counts_puts_off_the_next_request_let_in():
    rules = limits(rpm=60, refusal_cost=2)
    assert rules.admit(0, tokens=1, in_flight=0) is None
    assert rules.admit(0, tokens=1, in_flight=0).retry_after_s == pytest.approx(3)
    assert rules.admit(2.9, tokens=1, in_flight=0).retry_after_s == pytest.approx(2.1)
    assert rules.admit(5, tokens=1, in_flight=0) is None


def test_hidden_limits_are_kept_and_not_told():
    rules = limits(rpm=60, hide_limits=True)
    assert rules.admit(0, tokens=1, in_flight=0) is None
    assert rules.admit(0, tokens=1, in_flight=0).retry_after_s is None
    assert rules.standings(0) == []


@pytest.mark.parametrize("limit", [{"rpm": 60}, {"tpm": 60}, {"max_in_flight": 1}])
def test_every_refusal_may_be_told_the_same_time(limit):
    rules = limits(**limit, hide_limits=True, retry_after_s=30)
    assert rules.admit(0, tokens=1, in_flight=0) is None
    assert rules.admit(0, tokens=1, in_flight=1).retry_after_s == 30


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 300)), max_size=60), st.integers(1, 30_000))
def test_no_schedule_gets_more_than_the_rate_the_burst_and_one_debt(arrivals, per_minute):
    bucket, now, taken, largest = Bucket(per_minute), 0.0, 0, 0
    for pause, cost in arrivals:
        now += pause
        if bucket.wait(now, cost) == 0:
            bucket.take(now, cost)
            taken, largest = taken + cost, max(largest, cost)
    assert taken <= max(1, per_minute / 60) + now * per_minute / 60 + largest + 1e-3
