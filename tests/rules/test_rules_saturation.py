"""What more in flight does not bring is found, and a server that does more with more is not slowed down."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, log
from random import Random

import pytest

from batchkit.rules.pacing import Pacer, Reservation

IN_FLIGHT = 1000
Took = Callable[[float, Random], tuple[float, float]]
"""The seconds that a request takes at a server with nothing else to do, begun at a moment, and its tokens."""


def usual(_: float, random: Random) -> tuple[float, float]:
    return random.lognormvariate(log(4.0), 0.5), 300.0


@dataclass
class Server:
    """Works on `slots(now)` requests at once, in the order they came, for the seconds that `took` gives."""

    slots: Callable[[float], float] = lambda _: inf
    took: Took = usual
    random: Random = field(default_factory=lambda: Random(1))
    free_at: list[float] = field(default_factory=list)

    def done_at(self, now: float) -> tuple[float, float]:
        seconds, tokens = self.took(now, self.random)
        slots = self.slots(now)
        if slots == inf:
            return now + seconds, tokens
        while self.free_at and (self.free_at[0] <= now and len(self.free_at) >= slots):
            heapq.heappop(self.free_at)
        start = now if len(self.free_at) < slots else max(now, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, start + seconds)
        return start + seconds, tokens


def work(server: Server, seconds: float) -> tuple[Pacer, list[tuple[float, int]]]:
    """As many as the pacer lets start; the moments of the answers, and how many were in flight."""
    pacer, answers = Pacer(), []
    under_way: list[tuple[float, int, float, Reservation]] = []
    now, number = 0.0, 0
    while now < seconds:
        wait = inf
        while len(under_way) < IN_FLIGHT and (wait := pacer.reserve(now, 500.0)) == 0.0:
            done_at, tokens = server.done_at(now)
            heapq.heappush(under_way, (done_at, number, tokens, pacer.reserved(now, 500.0)))
            number += 1
        ready = now + wait if len(under_way) < IN_FLIGHT else inf
        if under_way and under_way[0][0] <= ready:
            now, _, tokens, reserved = heapq.heappop(under_way)
            pacer.accepted(now, reserved, tokens)
            answers.append((now, len(under_way)))
        else:
            now = ready
    return pacer, answers


def done(answers: list[tuple[float, int]], since: float, until: float) -> int:
    return sum(since <= at < until for at, _ in answers)


@pytest.mark.parametrize(("median_s", "found"), [(0.1, True), (0.002, False)])
def test_where_answers_come_within_a_tenth_of_a_second_nobody_is_held_back(median_s, found):
    """A thousand in flight at a server of 100 places take ten times as long as a hundred would: 20 ms are no wait."""

    def took(_: float, random: Random) -> tuple[float, float]:
        return random.lognormvariate(log(median_s), 0.5), 300.0

    pacer, _ = work(Server(lambda _: 100, took), 300.0 * median_s)
    assert (pacer.most_in_flight is not None) is found


@pytest.mark.parametrize("seed", range(2))
def test_a_server_that_works_on_200_at_once_has_not_many_more_in_the_end_and_does_as_much(seed):
    pacer, answers = work(Server(lambda _: 200, random=Random(seed)), 600.0)
    assert pacer.most_in_flight is not None
    assert not pacer.is_open
    assert 200 <= pacer.most_in_flight <= 360
    assert len(answers) >= 0.97 * 200 / 4.0 / 1.133 * 600.0
    late = [in_flight for at, in_flight in answers if at > 400.0]
    assert sum(late) / len(late) < 360


def test_a_server_that_grows_is_followed():
    pacer, answers = work(Server(lambda now: 200 if now < 450 else 400), 1500.0)
    assert pacer.most_in_flight is not None
    assert pacer.most_in_flight >= 400
    assert done(answers, 1300.0, 1500.0) >= 0.97 * 400 / 4.53 * 200.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "took",
    [
        usual,
        lambda _, random: (random.lognormvariate(log(4.0), 1.0), 300.0),
        # Answers of very different lengths, and a file that is sorted by them.
        lambda _, random: (0.5 + (tokens := random.lognormvariate(5.5, 1.0)) / 75.0, tokens),
        lambda now, _: (0.5 + (tokens := 50.0 + 5.0 * now) / 75.0, tokens),
    ],
    ids=["usual", "wide", "of all lengths", "ever longer"],
)
def test_a_server_that_does_more_with_more_is_never_slowed_down(took, seed):
    pacer, answers = work(Server(took=took, random=Random(seed)), 200.0)
    assert pacer.most_in_flight is None
    late = [in_flight for at, in_flight in answers if at > 10.0]
    assert min(late) == IN_FLIGHT - 1


@pytest.mark.parametrize("seed", range(2))
def test_a_server_that_becomes_slow_for_everybody_loses_next_to_nothing(seed):
    """It is suspected then, and a trial shows that less in flight is less done."""

    def took(now: float, random: Random) -> tuple[float, float]:
        return random.lognormvariate(log(4.0 if now < 300.0 else 12.0), 0.5), 300.0

    pacer, answers = work(Server(took=took, random=Random(seed)), 1500.0)
    assert pacer.most_in_flight is None
    ideal = IN_FLIGHT / 12.0 / 1.133 * 1100.0
    assert done(answers, 400.0, 1500.0) >= 0.97 * ideal


def test_few_in_flight_are_not_made_fewer():
    """A concurrency of a few has nothing to compare with."""
    pacer = Pacer()
    for number in range(3000):
        assert pacer.reserve(float(number)) == 0.0
        pacer.accepted(number + 0.5 + number / 500.0, pacer.reserved(float(number)), 300.0)
    assert pacer.most_in_flight is None
