"""How many may start while nothing is known."""

import pytest

from batchkit.rules.beginning import Beginning


def started(beginning, now):
    """How many start at one moment."""
    count = 0
    while beginning.wait(now) == 0.0:
        beginning.unproven += 1
        count += 1
    return count


def started_until(beginning, now, seconds):
    """How many start in so many seconds, looked at every millisecond."""
    count, end = 0, now + seconds
    while now < end - 1e-9:
        count += started(beginning, now)
        now += 0.001
    return count


def test_twice_as_many_start_in_each_quarter_second_without_a_refusal():
    beginning = Beginning()
    each = [started_until(beginning, 0.25 * quarter, 0.25) for quarter in range(9)]
    assert each == pytest.approx([4, 8, 16, 32, 64, 128, 256, 1024, 4096], rel=0.1)


def test_those_of_a_step_start_one_after_the_other():
    """So a refusal that comes back within 50 ms keeps most of them from the server."""
    beginning = Beginning()
    for quarter in range(4):
        started_until(beginning, 0.25 * quarter, 0.25)
    assert [started_until(beginning, 1.0 + 0.05 * part, 0.05) for part in range(4)] == pytest.approx(
        [16, 13, 13, 13], abs=1
    )


def test_where_few_start_no_more_are_let_start():
    beginning = Beginning()
    for quarter in range(10):
        assert beginning.wait(0.25 * quarter) == 0.0
        beginning.unproven += 1
    assert started_until(beginning, 2.5, 0.25) == 4


def test_whoever_is_answered_lets_another_start():
    beginning = Beginning()
    assert started(beginning, 0.0) == 4
    beginning.unproven -= 1
    assert started(beginning, 0.0) == 1


def test_an_answer_that_comes_at_once_lets_some_more_start_at_once():
    beginning = Beginning()
    assert started(beginning, 0.0) == 4
    beginning.unproven -= 1
    beginning.answered_soon()
    assert started(beginning, 0.01) == 17


def test_it_is_over_once_thousands_were_taken_in_a_row_and_not_because_many_were_answered():
    beginning = Beginning()
    for _ in range(1000):
        beginning.answered_soon()
    assert beginning.wait(0.0) == 0.0
    assert not beginning.over
    assert started(beginning, 0.1) > 4096
    assert beginning.wait(0.25) == 0.0
    assert beginning.over


def test_once_as_many_may_start_as_come_they_come_when_they_like():
    beginning = Beginning()
    for quarter in range(8):
        started_until(beginning, 0.25 * quarter, 0.25)
    assert started(beginning, 2.0) < 10
    beginning.unproven = 100  # no more came in that quarter second
    assert started(beginning, 2.25) > 500


def refused(beginning, now, start, count=1, started=1000):
    """Whether one of `count` refusals in a row was one too many for strays."""
    return any(beginning.refused(now, start + each, 1 + each, started) for each in range(count))


def test_a_refusal_keeps_the_others_of_its_step_for_a_moment_and_growing_goes_on():
    beginning = Beginning()
    started_until(beginning, 0.0, 0.25)
    started(beginning, 0.25)
    assert not refused(beginning, 0.3, 5.0)
    assert beginning.wait(0.34) == pytest.approx(0.01)
    assert started_until(beginning, 0.35, 0.15) == pytest.approx(4, abs=1)
    assert started_until(beginning, 0.5, 0.25) == pytest.approx(16, abs=1)


def test_what_was_kept_for_a_moment_does_not_start_all_at_once_behind_it():
    beginning = Beginning()
    for quarter in range(6):
        started_until(beginning, 0.25 * quarter, 0.25)
    started_until(beginning, 1.5, 0.1)
    assert not refused(beginning, 1.6, 200.0)
    assert started_until(beginning, 1.6, 0.05) == 0
    assert started(beginning, 1.65) < 3
    assert started_until(beginning, 1.65, 0.05) == pytest.approx(51, abs=3)


def test_a_refusal_keeps_nobody_where_no_more_are_let_start_than_before():
    """One in a hundred is refused for no reason, for as long as a job takes."""
    beginning = Beginning()
    started(beginning, 0.0)
    beginning.unproven = 1
    assert started(beginning, 0.25) == 4
    beginning.unproven = 1
    assert not refused(beginning, 0.3, 5.0)
    assert started(beginning, 0.3) == 3


@pytest.mark.parametrize(
    ("count", "of", "too_many"), [(2, 4, False), (3, 9, True), (3, 1000, True), (2, 1000, False)]
)
def test_three_refusals_are_no_strays_if_they_are_a_third_or_in_a_row(count, of, too_many):
    assert refused(Beginning(), 1.0, 5.0, count, of) is too_many


def test_refusals_far_from_one_another_are_strays():
    beginning = Beginning()
    for each in range(20):
        assert not beginning.refused(1.0, 100.0 * each, each + 1, 100 * each + 100)


def test_refusals_that_come_back_in_another_order_are_no_row():
    beginning = Beginning()
    assert not any(beginning.refused(1.0, start, 1, 1000) for start in (900.0, 500.0, 100.0))
