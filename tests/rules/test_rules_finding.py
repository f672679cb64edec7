"""What refusals tell of a rate."""

import pytest

from batchkit.rules.budget import Reservation
from batchkit.rules.finding import FoundRate
from batchkit.rules.strays import Strays


def announced(limit=50.0):
    return FoundRate.announced(100.0, limit, 0.0)


def refused(rate, at, spent, *, is_first=False):
    """A single refusal of what began then, when all had spent so much."""
    return rate.refused(at, Reservation(at, 0.0, spent), 1.0, is_first=is_first)


def lower(rate, at, spent, strays=None):
    return rate.lower(at, Reservation(at, 0.0, spent), 1.0, strays or Strays())


def grown_beyond(rate, share):
    """As if nothing had been refused until then."""
    rate.bucket.change(100.0, (1.0 + share) * rate.limit)


def test_the_first_guess_is_half_of_what_was_started_lately():
    rate = FoundRate.guessed(100.0, Reservation(99.9, 0.0, 60.0), 60, 1.5, 1.0)
    assert (rate.bucket.per_s, rate.limit, rate.pause_s) == (20.0, None, 0.25)
    assert rate.bucket.wait(100.0, 1.0) == 0.0
    assert rate.bucket.wait(100.0, 10.0) == pytest.approx(0.45)


def test_a_refusal_beyond_the_limit_measures_it_and_98_percent_of_that_begin():
    rate = announced()
    grown_beyond(rate, 0.05)
    pause_s = refused(rate, 104.0, 203.5)
    assert rate.limit == pytest.approx(51.0)
    assert rate.bucket.per_s == pytest.approx(0.98 * 51.0)
    assert pause_s == pytest.approx(0.1)


def test_what_was_refused_meanwhile_was_not_taken():
    rate = announced()
    for at in (101.0, 102.0, 103.0):
        rate.not_taken(at, 1.0)
    rate.not_taken(99.0, 1.0)
    grown_beyond(rate, 0.05)
    refused(rate, 104.0, 206.5)
    assert rate.limit == pytest.approx(51.0)


def test_far_beyond_the_limit_it_has_risen_whatever_was_measured():
    rate = announced()
    grown_beyond(rate, 3.0)
    refused(rate, 104.0, 150.0)
    assert rate.limit == pytest.approx(0.55 * 200.0)


def test_a_single_refusal_below_the_limit_takes_next_to_nothing_and_no_one_waits_for_it():
    rate = announced()
    assert refused(rate, 104.0, 10.0) is None
    assert rate.limit == pytest.approx(49.75)
    assert rate.bucket.per_s == 49.0


def test_where_strays_came_below_the_limit_one_beyond_it_tells_nothing_either():
    rate = announced()
    for at in (101.0, 102.0):
        refused(rate, at, 10.0)
    limit = rate.limit
    grown_beyond(rate, 0.05)
    assert refused(rate, 104.0, 20.0) is None
    assert rate.limit == limit


def test_refusals_that_are_no_strays_set_the_limit_to_what_was_taken_since_the_first():
    rate = announced()
    refused(rate, 110.0, 500.0, is_first=True)
    assert lower(rate, 112.0, 539.5)
    assert rate.limit == pytest.approx(20.0)
    assert rate.bucket.per_s == pytest.approx(19.6)


def test_too_early_to_tell_is_left_at_that():
    rate = announced()
    refused(rate, 110.0, 500.0, is_first=True)
    before = rate.limit, rate.bucket.per_s
    assert not lower(rate, 110.1, 520.0)
    assert not lower(rate, 112.0, 505.0)
    assert (rate.limit, rate.bucket.per_s) == before


def test_where_most_is_refused_a_limit_is_lowered_once_and_then_the_rate_halved_with_ever_longer_pauses():
    rate, told = announced(), []
    for round_ in range(6):
        at = 110.0 + 10.0 * round_
        rate.not_taken(at, 1000.0)
        assert lower(rate, at, 100.0)
        told.append((rate.bucket.per_s, rate.pause_s))
    assert told == [(0.85 * 49.0 / 2**n, pause_s) for n, pause_s in enumerate((0.5, 1.0, 2.0, 4.0, 5.0, 5.0))]
    assert rate.limit == 0.85 * 49.0


def test_no_rate_is_lowered_to_nothing():
    rate = announced()
    for round_ in range(100):
        at = 110.0 + 10.0 * round_
        rate.not_taken(at, 1000.0)
        lower(rate, at, 100.0)
    assert rate.bucket.per_s == 0.02


def test_a_given_limit_bounds_how_a_rate_grows_and_lowers_none():
    rate = announced()
    rate.more_left = True
    for most, per_s in ((49.5, 49.5), (40.0, 49.5)):
        rate.grow(110.0, 1.0, most, paused_until=0.0, held_back_at=110.0)
        assert rate.bucket.per_s == per_s


def test_another_unit_changes_nothing_but_the_figures():
    rate = announced()
    rate.scale(400.0)
    assert (rate.limit, rate.bucket.per_s) == (50.0 * 400.0, 49.0 * 400.0)
