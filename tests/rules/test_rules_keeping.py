"""A rate at its limit, beside a clock and nothing else."""

import pytest

from batchkit.rules.keeping import Curve


def kept(curve, seconds, *, rate, since=100.0, idle=False, halved=False, more_left=False):
    """The rate after each tenth of so many seconds in which nothing is refused."""
    rates = []
    for tenth in range(1, 10 * seconds + 1):
        now = since + tenth / 10
        rate = curve.grown(
            now,
            rate,
            1.0,
            0.1,
            paused_until=0.0,
            held_back_at=since - 10.0 if idle else now,
            halved=halved,
            more_left=more_left,
        )
        rates.append(rate)
    return rates


def met(limit, times=1, now=100.0):
    curve = Curve()
    for _ in range(times):
        curve.met(limit)
    curve.begin(now)
    return curve


def seconds_below(limit, rates):
    return sum(rate <= limit for rate in rates) / 10


def test_the_rate_begins_just_below_the_limit_stays_there_and_leaves_it_slowly():
    rates = kept(met(50.0), 10, rate=49.0)
    assert rates == sorted(rates)
    assert seconds_below(50.0, rates) == pytest.approx(3.0, abs=0.2)
    assert rates[59] == pytest.approx(51.0, rel=0.01)


def test_a_limit_that_was_met_again_is_tried_more_rarely_up_to_ten_seconds():
    below = [seconds_below(20.0, kept(met(20.0, times), 30, rate=19.6)) for times in (1, 3, 9)]
    assert below == pytest.approx([3.0, 6.0, 10.0], abs=0.2)


def test_a_limit_that_is_another_is_tried_soon_again():
    curve = met(20.0, times=9)
    curve.met(40.0)
    curve.begin(100.0)
    assert seconds_below(40.0, kept(curve, 30, rate=39.2)) == pytest.approx(3.0, abs=0.2)


def test_a_limit_is_left_behind_when_the_rate_grew_tenfold_without_a_refusal():
    curve = met(50.0)
    rates = kept(curve, 30, rate=49.0)
    tenfold = next(rate for rate in rates if rate > 500.0)
    assert curve.limit == pytest.approx(tenfold)
    # The curve begins anew from there, and stays near it for a while.
    after = [rate for rate in rates if rate >= tenfold]
    assert after[15] < 1.02 * tenfold


def test_it_grows_by_a_fifth_a_second_at_most_beyond_the_limit_also_where_more_is_said_to_be_left():
    rates = kept(met(50.0), 20, rate=49.0, more_left=True)
    assert rates[9] == pytest.approx(49.0 * 1.2)
    later = kept(met(50.0), 20, rate=49.0)
    assert max(then / now for now, then in zip(later, later[10:], strict=False)) <= 1.2 * 1.0001


def test_a_rate_far_below_its_limit_doubles_each_second_once_two_were_clean():
    rates = kept(met(50.0), 10, rate=5.0)
    assert rates[18] == 5.0
    assert rates[40] / rates[30] == pytest.approx(2.0)
    assert next(rate for rate in rates if rate > 46.0) == pytest.approx(49.0)


def test_a_guess_below_one_start_a_second_doubles_as_slowly_as_starts_come_unless_it_was_halved_for_all():
    curve = Curve()
    curve.begin(100.0)
    assert kept(curve, 20, rate=0.1)[-1] == pytest.approx(0.1, rel=0.1)
    assert kept(curve, 5, rate=0.1, halved=True)[-1] > 0.3


def test_a_rate_that_holds_nobody_back_does_not_grow_nor_does_that_time_count():
    curve = met(50.0)
    assert set(kept(curve, 10, rate=49.0, idle=True)) == {49.0}
    assert seconds_below(50.0, kept(curve, 10, rate=49.0, since=110.0)) == pytest.approx(3.0, abs=0.2)
