"""Refusals that are strays, told from those that are more."""

import pytest

from batchkit.rules.strays import Strays


def refused(every, count, *, known):
    """Whether there was an alarm after each of so many refusals, one in `every` starts."""
    strays, alarms = Strays(), []
    for number in range(1, count + 1):
        strays.refused(float(every * number), 1.0, known=known)
        alarms.append(strays.alarms)
    return alarms


@pytest.mark.parametrize(("known", "enough"), [(True, 5), (False, 8)])
def test_refusals_in_a_row_alarm_sooner_where_a_rate_is_known(known, enough):
    assert refused(1, enough + 1, known=known) == [False] * enough + [True]


@pytest.mark.parametrize("known", [True, False])
def test_one_refusal_in_a_hundred_starts_never_alarms(known):
    assert not any(refused(100, 1000, known=known))


def test_it_is_the_order_of_starts_that_counts():
    """Those of one burst may be answered in any order, the latest first."""
    strays = Strays()
    for spent in (1000.0, 100.0, 300.0, 200.0, 150.0, 120.0):
        strays.refused(spent, 1.0, known=True)
    assert strays.alarms


def test_the_first_after_a_long_time_is_the_first():
    strays = Strays()
    for spent, first in ((100.0, True), (101.0, False), (1000.0, True)):
        strays.refused(spent, 1.0, known=True)
        assert strays.is_first is first


def test_once_a_limit_was_measured_a_single_refusal_does_not_alarm():
    strays = Strays()
    for _ in range(10):
        strays.refused(100.0, 1.0, known=True)
    strays.measured()
    strays.refused(100.0, 1.0, known=True)
    assert not strays.alarms


def test_costs_in_another_unit_leave_it_as_it_is():
    strays = Strays()
    strays.refused(100.0, 1.0, known=True)
    strays.scale(400.0)
    strays.refused(101.0 * 400.0, 400.0, known=True)
    assert not strays.is_first
    strays.refused(1000.0 * 400.0, 400.0, known=True)
    assert strays.is_first
