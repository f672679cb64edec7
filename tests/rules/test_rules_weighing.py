"""Which of the two is limited."""

import pytest

from batchkit.rules.weighing import Unit


def mixed():
    """A unit that has seen small and large requests."""
    unit = Unit()
    for _ in range(200):
        unit.started(100.0)
        unit.started(900.0)
    return unit


def refusals_until_told(unit, *sizes):
    for number in range(200):
        if unit.refused(sizes[number % len(sizes)]):
            return number + 1
    return None


def test_where_the_large_are_refused_it_is_tokens_and_where_any_are_it_is_not():
    assert 5 <= refusals_until_told(mixed(), 900.0) <= 20
    assert refusals_until_told(mixed(), 100.0, 900.0) is None
    assert refusals_until_told(mixed(), 0.0) is None


def test_where_the_small_are_refused_while_tokens_are_counted_it_is_requests():
    unit = mixed()
    unit.change()
    assert refusals_until_told(unit, 900.0) is None
    assert 5 <= refusals_until_told(unit, 100.0) <= 40


def test_there_and_back_is_as_before():
    unit = mixed()
    assert unit.cost == 1.0
    factor = unit.change()
    assert factor == unit.cost == pytest.approx(500.0, rel=0.05)
    assert unit.requests(factor) == pytest.approx(1.0)
    assert factor * unit.change() == pytest.approx(1.0)
    assert unit.requests(7.0) == 7.0


def test_a_start_costs_something_where_the_server_says_that_nothing_takes_any_tokens():
    unit = Unit()
    unit.change()
    assert unit.cost == 1.0
