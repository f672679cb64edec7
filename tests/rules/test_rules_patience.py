"""How long an attempt is waited for, by what its peers took."""

from __future__ import annotations

from random import Random

import pytest

from batchkit.records import Usage
from batchkit.rules.patience import LEAST_S, Limit, Patience


def told(*answers: tuple[int, float, int], most_tokens: int | None = None) -> Patience:
    """What is known after answers: how many, that took so many seconds, for so many tokens."""
    patience = Patience()
    for number, seconds, tokens in answers:
        for _ in range(number):
            patience.learn(seconds, Usage(1, tokens, 1 + tokens), most_tokens)
    return patience


def test_before_a_hundred_answers_nothing_is_known():
    assert told((99, 1.0, 100)).limit(None) is None
    assert told((99, 1.0, 100)).slow_s(None) is None
    assert told((100, 1.0, 100)).limit(None) is not None


def test_an_attempt_has_several_times_what_99_of_100_took():
    assert told((985, 2.0, 100), (14, 12.0, 100), (1, 500.0, 100)).limit(None) == Limit(60.0, 12.0)


def test_nobody_has_less_than_the_least():
    assert told((100, 0.01, 100)).limit(None) == Limit(LEAST_S, 0.01)


def test_an_answer_that_may_be_long_is_waited_for_as_long_as_the_long_ones_take():
    patience = told((900, 2.0, 100), (100, 20.0, 1000))
    assert patience.limit(100) == Limit(LEAST_S, 2.0)
    for most_tokens in (1000, 100_000, None):
        assert patience.limit(most_tokens) == Limit(100.0, 20.0)


def test_a_length_that_next_to_none_have_makes_nobody_wait():
    assert told((1500, 2.0, 100), (2, 200.0, 16_000)).limit(None) == Limit(LEAST_S, 2.0)
    assert told((1500, 2.0, 100), (4, 200.0, 16_000)).limit(None) == Limit(1000.0, 200.0)


def test_where_few_are_as_short_the_longer_ones_are_its_peers():
    assert told((99, 2.0, 10), (100, 20.0, 1000)).limit(10) == Limit(100.0, 20.0)


@pytest.mark.parametrize(("most_tokens", "known"), [(100, True), (50, False)])
def test_an_answer_that_does_not_say_how_long_it_is_may_be_as_long_as_it_was_allowed(most_tokens, known):
    patience = told((200, 8.0, 1000))
    for _ in range(100):
        patience.learn(7.0, None, 100)
    assert patience.limit(most_tokens) == Limit(35.0 if known else 40.0, 7.0 if known else 8.0)


def test_several_choices_are_as_long_as_one_of_them():
    """`n` answers come beside one another; together they are longer than `max_tokens`."""
    assert told((100, 7.0, 4000), most_tokens=1000).limit(1000) == Limit(35.0, 7.0)


def test_what_was_long_ago_is_forgotten():
    patience = told((5000, 100.0, 100))
    for _ in range(2000):
        patience.learn(1.0, Usage(1, 100, 101), None)
    assert patience.limit(None) == Limit(LEAST_S, 1.0)
    assert (patience.answered, patience.answering_s) == (7000, 502_000.0)


def test_an_attempt_is_slow_after_what_95_of_100_took_that_may_be_as_long():
    patience = told((94, 1.0, 100), (5, 3.0, 100), (1, 9.0, 100), (100, 50.0, 5000))
    assert patience.slow_s(100) == 3.0
    assert patience.slow_s(None) == 50.0


def test_what_is_slow_is_found_anew_once_a_twentieth_of_what_is_remembered_is_new():
    """64 models would be sorted anew ten times a second otherwise, with each answer there was."""
    patience = told((5000, 1.0, 100))
    assert patience.slow_s(100) == 1.0
    for number in range(1, 102):
        patience.learn(9.0, Usage(1, 100, 101), None)
        assert patience.slow_s(100) == (9.0 if number > 100 else 1.0)
    patience = told((99, 1.0, 100))
    assert patience.slow_s(None) is None
    patience.learn(1.0, Usage(1, 100, 101), None)
    assert patience.slow_s(None) is None
    for _ in range(5):
        patience.learn(1.0, Usage(1, 100, 101), None)
    assert patience.slow_s(None) == 1.0


def test_where_all_wait_nobody_is_given_up():
    patience = told((1000, 1.0, 100))
    assert not patience.gives_up(overdue=256, answered=256)
    assert not patience.gives_up(overdue=1, answered=3)
    assert patience.gives_up(overdue=1, answered=4)


def test_those_that_are_not_known_to_have_been_given_up_rightly_are_few():
    patience = told((2000, 1.0, 100))
    given_up = 0
    while patience.gives_up(overdue=1, answered=2000):
        given_up += 1
    assert given_up == 10
    # It is one less, and one more is allowed.
    patience.was_right()
    assert patience.gives_up(overdue=1, answered=2000)
    assert patience.gives_up(overdue=1, answered=2000)
    assert not patience.gives_up(overdue=1, answered=2000)


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0])
def test_latencies_however_they_are_spread_stay_within_the_limit(sigma):
    random, patience = Random(7), Patience()
    beyond = 0
    for number in range(20_000):
        seconds = random.lognormvariate(3.0, sigma)
        if number % 100 == 0 and (limit := patience.limit(None)) is not None:
            beyond += seconds >= limit.seconds
        patience.learn(seconds, Usage(1, 100, 101), None)
    assert beyond == 0
