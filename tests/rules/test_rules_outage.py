"""When a run pauses for a network that is gone, and who finds out that it is back."""

from math import inf

import pytest

from batchkit.rules.outage import Outage


def gone(now=0.0):
    outage = Outage()
    for _ in range(3):
        outage.missed(now, 0.0, probe=False)
    return outage


def test_one_connection_that_fails_pauses_nobody():
    outage = Outage()
    for _ in range(100):
        for _ in range(2):
            assert not outage.missed(0.0, 0.5, probe=False)
            assert outage.ask(0.0) == 0.0
        assert not outage.reached(probe=False)


def test_three_in_a_row_do():
    outage = gone(7.0)
    assert outage.since == 7.0
    assert outage.ask(7.0) > 0.0


def test_one_attempt_at_a_time_probes():
    outage = gone()
    wait = outage.ask(0.0)
    assert outage.ask(wait) == 0.0
    assert [outage.ask(wait + later) for later in (0.0, 1.0, 4.9)] == [inf] * 3


def test_a_probe_that_hears_nothing_holds_the_next_back_for_five_seconds():
    outage = gone()
    wait = outage.ask(0.0)
    assert [outage.ask(wait), outage.ask(wait + 5.0), outage.ask(wait + 5.0)] == [0.0, 0.0, inf]


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_probes_are_further_and_further_apart_up_to_half_a_minute(jitter):
    outage, now = gone(), 0.0
    waits = []
    for _ in range(12):
        waits.append(outage.ask(now))
        now += waits[-1]
        assert outage.ask(now) == 0.0
        outage.missed(now, jitter, probe=True)
    assert waits[0] == 0.25  # the third in a row was missed without jitter
    longest = [min(30.0, 0.5 * 2**probe) for probe in range(1, 12)]
    assert waits[1:] == pytest.approx([wait * (1 + jitter) / 2 for wait in longest])


def test_stragglers_neither_move_the_probe_nor_end_it():
    outage = gone()
    wait = outage.ask(0.0)
    assert not outage.missed(0.0, 0.9, probe=False)
    assert outage.ask(0.0) == wait
    assert outage.ask(wait) == 0.0
    assert not outage.missed(wait, 0.9, probe=False)
    assert outage.ask(wait + 4.0) == inf


def test_an_answer_to_an_earlier_attempt_is_no_sign_that_new_ones_get_through():
    outage = gone()
    assert not outage.reached(probe=False)
    assert outage.since == 0.0


def test_the_first_probe_that_gets_through_lets_everyone_go():
    outage = gone()
    assert outage.ask(60.0) == 0.0
    assert outage.reached(probe=True)
    assert outage.since is None
    assert [outage.ask(60.0) for _ in range(1000)] == [0.0] * 1000


def test_it_is_told_once_when_a_probe_too_was_in_vain():
    outage, told = gone(), []
    for _ in range(5):
        outage.ask(outage.next_probe_in(0.0))
        told.append(outage.missed(0.0, 0.0, probe=True))
    assert told == [True, False, False, False, False]


def test_the_next_outage_begins_with_short_waits_again():
    outage = gone()
    for _ in range(10):
        outage.missed(0.0, 0.0, probe=True)
    outage.reached(probe=True)
    for _ in range(3):
        outage.missed(100.0, 0.0, probe=False)
    assert outage.next_probe_in(100.0) == 0.25


def test_a_probe_that_was_not_sent_makes_way_for_the_next_and_ends_nothing():
    outage = gone()
    wait = outage.ask(0.0)
    assert [outage.ask(wait), outage.ask(wait)] == [0.0, inf]
    outage.withdrawn()
    assert outage.since == 0.0
    assert [outage.ask(wait), outage.ask(wait)] == [0.0, inf]
