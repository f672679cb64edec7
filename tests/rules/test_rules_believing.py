"""What is announced, and when it counts."""

import pytest

from batchkit.records import Announced, AnnouncedLimit
from batchkit.rules.believing import Belief
from batchkit.rules.budget import Reservation
from batchkit.rules.weighing import Unit


def minute(limit, left=0.0):
    return AnnouncedLimit(limit, left, window_s=60.0)


def hear(belief, requests=None, tokens=None, *, at=10.0, taken=0, unit=None):
    return belief.hear(11.0, Announced(requests, tokens), at, unit or Unit(), taken, 0.0)


def believed(requests=None, tokens=None, *, unit=None):
    belief = Belief()
    assert [hear(belief, requests, tokens, unit=unit) for _ in range(3)] == [False, False, True]
    return belief


def of_size(tokens):
    unit = Unit()
    unit.started(tokens)
    return unit


def test_nine_tenths_of_what_is_left_begin_before_the_limit_counts():
    belief = believed(minute(600, 100))
    assert belief.left_until(Reservation(10.0, 0.0, 7.0), Unit()) == pytest.approx(97.0)
    assert belief.left_until(Reservation(9.9), Unit()) is None


def test_news_that_is_older_than_the_last_is_not_heard_but_that_of_the_same_moment_is():
    belief = believed(minute(600))
    assert not hear(belief, minute(600), at=9.7)
    assert hear(belief, minute(600), at=9.8)


def test_more_taken_than_the_limit_allows_refutes_it():
    belief = believed(minute(60))
    assert hear(belief, minute(60), taken=106)
    assert not hear(belief, minute(60), taken=107)


def test_tokens_that_do_not_suffice_for_one_request_are_no_limit():
    unit = of_size(3000.0)
    belief = Belief()
    assert not any(hear(belief, tokens=minute(30), unit=unit) for _ in range(5))
    assert belief.tokens_told


def test_starts_that_the_limit_had_to_refuse_are_explained_by_it():
    belief = believed(minute(600))
    assert [belief.explains(started, 2.0, Unit()) for started in (19, 20)] == [False, True]
    assert [belief.explains(started, 0.0, Unit()) for started in (2, 3)] == [False, True]
    unit = of_size(100.0)
    assert believed(tokens=minute(60_000), unit=unit).explains(20, 2.0, unit)


def test_a_limit_that_was_guessed_is_overruled_by_one_that_is_lower():
    belief = believed(minute(600))
    assert belief.overrules(None, 11.0, Unit())
    assert not belief.overrules(None, 9.0, Unit())


def test_a_limit_that_was_found_is_overruled_by_one_that_is_announced_anew():
    belief = believed(minute(600))
    belief.put_in_force(10.0)
    assert not belief.overrules(5.0, 5.0, Unit())
    assert [hear(belief, minute(1200)) for _ in range(3)] == [False, False, True]
    assert belief.overrules(5.0, 5.0, Unit())


def test_the_other_limit_overrules_the_one_in_force_where_it_allows_less_unless_that_was_moved():
    unit = of_size(500.0)
    belief = believed(minute(600), minute(60_000), unit=unit)
    belief.put_in_force(10.0)
    assert [belief.overrules(limit, limit, unit) for limit in (9.5, 8.0)] == [True, False]


@pytest.mark.parametrize(
    ("limit", "stands"), [(10.9, True), (9.1, True), (11.1, False), (8.9, False), (None, False)]
)
def test_a_limit_that_was_moved_by_more_than_a_tenth_is_not_the_one_that_was_announced(limit, stands):
    belief = believed(minute(600))
    belief.put_in_force(10.0)
    assert belief.stands(limit) is stands


@pytest.mark.parametrize(("left", "more"), [(299, False), (301, True)])
def test_where_more_than_half_is_left_there_is_more(left, more):
    assert believed(minute(600, left)).more_left is more
