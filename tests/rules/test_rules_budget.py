"""A limit a minute: an even pace, and never more in any sixty seconds."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from batchkit.rules.budget import Budget, Ceilings, Reservation

CEILINGS = st.sampled_from([1, 3, 60, 1000])
PAUSES = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 90.0)), min_size=1, max_size=80)
"""Seconds between two who come, beside what they are told to wait."""


def most_in_a_minute(spent):
    return max(sum(cost for at, cost in spent if begin <= at < begin + 60.0) for begin, _ in spent)


@given(CEILINGS, PAUSES)
def test_no_minute_has_more_starts_than_the_ceiling(ceiling, pauses):
    budget, now, starts = Budget(ceiling, exact=True), 0.0, []
    for pause in pauses:
        now += pause
        while (wait := budget.wait(now, 1.0)) > 0.0:
            now += max(wait, 0.001)
        budget.spend(now, 1.0)
        starts.append((now, 1.0))
    assert most_in_a_minute(starts) <= ceiling


@given(st.lists(st.integers(1, 400), min_size=2, max_size=60))
def test_no_minute_has_more_tokens_than_the_ceiling_where_forecasts_are_right(sizes):
    budget, now, spent = Budget(1000), 0.0, []
    for size in sizes:
        while (wait := budget.wait(now, size)) > 0.0:
            now += max(wait, 0.001)
        budget.reserve(now, size)
        budget.settle(now, now, size, size)
        spent.append((now, size))
    assert most_in_a_minute(spent) <= 1000


def test_starts_are_even_and_come_fifty_milliseconds_early_at_most():
    budget, now = Budget(600, exact=True), 0.0
    for at in range(50):
        assert budget.wait(now, 1.0) == pytest.approx(0.0 if at < 2 else 0.05)
        now += budget.wait(now, 1.0)
        budget.spend(now, 1.0)
        now += 0.05
    # A pause is no claim to a burst.
    now += 30.0
    assert budget.wait(now, 1.0) == 0.0
    budget.spend(now, 1.0)
    assert budget.wait(now, 1.0) == pytest.approx(0.05)


def test_what_was_reserved_for_nothing_brings_the_next_start_nearer():
    budget = Budget(60_000)
    budget.reserve(0.0, 3_000)
    assert budget.wait(0.0, 100) == pytest.approx(2.95)
    budget.settle(1.0, 0.0, 3_000, 500)
    assert budget.wait(1.0, 100) == 0.0


@pytest.mark.parametrize(("reserved", "after", "at_once"), [(1_500, 1.5, 1_500), (50_000, 40.0, 2_000)])
def test_time_that_was_waited_for_nothing_is_made_up_for_two_seconds_of_it_at_most(reserved, after, at_once):
    budget = Budget(60_000)
    budget.reserve(0.0, reserved)
    budget.settle(after, 0.0, reserved, 0.0, usual=False)
    started = 0
    while budget.wait(after, 10) == 0.0:
        budget.reserve(after, 10)
        started += 10
    assert at_once <= started <= at_once + 60


def test_an_answer_that_took_more_than_was_reserved_holds_the_next_back():
    budget = Budget(60_000)
    budget.reserve(0.0, 100)
    budget.settle(1.0, 0.0, 100, 5_100)
    assert budget.wait(1.0, 100) == pytest.approx(4.95)


def test_the_first_of_a_minute_may_be_larger_than_a_minutes_worth():
    budget = Budget(1_000)
    assert budget.wait(0.0, 5_000) == 0.0
    budget.reserve(0.0, 5_000)
    budget.settle(0.0, 0.0, 5_000, 5_000)
    # It is paid for at the pace, so that no five minutes have more.
    assert budget.wait(60.5, 100) == pytest.approx(300 - 60.5 - 0.05)


def test_forecasts_that_were_too_low_make_what_is_on_its_way_count_for_more():
    def waits(*actual, reserved=600):
        budget = Budget(100_000)
        for at in range(100):
            budget.reserve(0.0, 100)
            budget.settle(0.0, 0.0, 100, actual[at % len(actual)])
        for at in range(reserved):
            budget.reserve(120.0 + at / 20, 100)
        return budget.wait(180.0, 100) > 0.0

    assert not waits(100)
    assert waits(300)
    # Right on average, and sure of no single one.
    assert not waits(100, reserved=960)
    assert waits(10, 190, reserved=960)


def test_no_ceiling_is_no_wait():
    budget = Budget(None)
    budget.reserve(0.0, 1e12)
    budget.settle(0.0, 0.0, 1e12, 0.0)
    assert budget.wait(0.0, 1e12) == 0.0
    ceilings = Ceilings(None, None)
    ceilings.spend(0.0, 1e12)
    assert not ceilings.given
    assert ceilings.wait(0.0, 1e12) == 0.0


def test_the_tighter_ceiling_is_what_is_waited_for():
    ceilings = Ceilings(600, 60_000)
    ceilings.spend(0.0, 50)
    assert ceilings.wait(0.0, 50) == pytest.approx(0.05)  # of requests: one each 100 ms
    ceilings.spend(0.1, 5_000)
    assert ceilings.wait(0.1, 50) == pytest.approx(4.95)
    ceilings.settle(0.2, Reservation(0.1, 5_000), 50)
    assert ceilings.wait(0.2, 50) == 0.0
