"""How many may start while nothing is known."""

import pytest

from batchkit.rules.beginning import PER_ANSWER, Beginning


def started(beginning, now):
    """How many start at one moment."""
    count = 0
    while beginning.wait(now) == 0.0:
        beginning.unproven += 1
        count += 1
    return count


def test_twice_as_many_start_after_each_quarter_second_without_a_refusal():
    beginning = Beginning()
    assert [started(beginning, 0.25 * quarter) for quarter in range(5)] == [4, 8, 16, 32, 64]
    assert beginning.wait(1.125) == pytest.approx(0.125)


def test_where_few_start_no_more_are_let_start():
    beginning = Beginning()
    for quarter in range(10):
        assert beginning.wait(0.25 * quarter) == 0.0
        beginning.unproven += 1
    assert beginning.free == 4


def test_it_is_over_once_thousands_were_taken_in_a_row_and_not_because_many_were_answered():
    beginning = Beginning()
    beginning.free += 1000 * PER_ANSWER
    assert beginning.wait(0.0) == 0.0
    assert not beginning.over
    assert started(beginning, 0.1) > 4096
    assert beginning.wait(0.25) == 0.0
    assert beginning.over


def test_growing_goes_on_after_a_stray():
    beginning = Beginning()
    assert started(beginning, 0.0) == 4
    assert not beginning.refused(1, 4)
    assert beginning.wait(0.1) == 0.0


@pytest.mark.parametrize(("refused", "started", "too_many"), [(2, 4, False), (3, 9, True), (3, 10, False)])
def test_three_refusals_are_no_strays_if_they_are_a_third(refused, started, too_many):
    assert Beginning().refused(refused, started) is too_many
