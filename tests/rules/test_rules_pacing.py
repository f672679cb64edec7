"""The pacer against a small provider, both on a clock of numbers: minutes pass in a blink."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from batchkit.records import Request, Usage
from batchkit.rules.forecast import TokenForecast
from batchkit.rules.pacing import Pacer, Reservation


@dataclass
class Provider:
    """Takes `rate_at(now)` requests a second with a burst of one second, and refuses the others at once."""

    rate_at: Callable[[float], float]
    hint: float | None = None
    latency_s: float = 4.0
    level: float = 0.0
    at: float = 0.0

    def takes(self, now: float) -> bool:
        rate = self.rate_at(now)
        self.level = min(rate, self.level + (now - self.at) * rate) if self.at else rate
        self.at = now
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True


@dataclass
class Ran:
    """What happened, in seconds from the beginning."""

    started: list[float] = field(default_factory=list)
    tokens: list[tuple[float, float]] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def answers(self, since: float, until: float) -> int:
        return sum(since <= at < until for at in self.answered)


def run(pacer, provider, *, seconds, workers=400, seed=1, tokens=lambda _: (0.0, None)):
    """`workers` ask the pacer one after the other, send, wait for the answer or out their refusal, and ask again."""
    dice, ran, order, free, gate_waits = random.Random(seed), Ran(), count(), workers, False
    events = [(0.0, next(order), "ask", None)]
    reserved, actual = tokens(dice)
    while events:
        now, _, what, settle = heapq.heappop(events)
        if now > seconds:
            break
        if what == "ask":
            gate_waits = False
        elif what == "refusal":
            pacer.refused(now, provider.hint, settle[0])
            ran.refused.append(now)
            wait = dice.random() * 2 if provider.hint is None else provider.hint * (1 + 0.1 * dice.random())
            heapq.heappush(events, (now + wait, next(order), "return", None))
        else:
            free += 1
            if what == "answer":
                pacer.accepted(now, *settle)
                ran.answered.append(now)
        while free and not gate_waits:
            wait = pacer.reserve(now, reserved)
            if wait > 0.0:
                # As the gate does it.
                heapq.heappush(events, (now + max(0.001, min(wait, 1.0)), next(order), "ask", None))
                gate_waits = True
                continue
            free -= 1
            ran.started.append(now)
            ran.tokens.append((now, actual or 0.0))
            reservation = pacer.reserved(now, reserved)
            if provider.takes(now):
                at = now + dice.lognormvariate(0, 0.5) * provider.latency_s
                heapq.heappush(events, (at, next(order), "answer", (reservation, actual)))
            else:
                heapq.heappush(events, (now + 0.05, next(order), "refusal", (reservation,)))
            reserved, actual = tokens(dice)
    return ran


def steady(rate):
    return lambda _: rate


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("hint", [None, 1.0, 30.0])
def test_a_hidden_limit_is_found_and_used(seed, hint):
    """Nine of ten answers that a limit of 50/s allows, one refusal in ten answers at most; also when told to wait long."""
    ran = run(Pacer(), Provider(steady(50.0), hint), seconds=300, seed=seed)
    assert len(ran.answered) >= 0.9 * 300 * 50
    assert len(ran.refused) <= 0.1 * len(ran.answered)


def test_a_low_hidden_limit_costs_refusals_only_at_the_start():
    ran = run(Pacer(), Provider(steady(5.0)), seconds=300)
    assert len(ran.answered) >= 0.9 * 300 * 5
    assert sum(at > 10 for at in ran.refused) <= 0.02 * len(ran.answered)


def test_it_follows_a_limit_down_and_up_again():
    ran = run(Pacer(), Provider(lambda now: 20.0 if 200 <= now < 400 else 50.0), seconds=600)
    for since, until, rate in ((10, 200, 50), (210, 400, 20), (430, 600, 50)):
        assert ran.answers(since, until) >= 0.9 * rate * (until - since)
    assert len(ran.refused) <= 0.1 * len(ran.answered)


def test_a_long_pause_asked_for_in_mid_run_is_followed_by_the_old_pace():
    """A server takes nothing for 20 s and asks for 60; it is left alone, and neither stormed nor crawled at afterwards."""
    provider = Provider(lambda now: 0.0 if 100 <= now < 120 else 50.0, hint=60.0)
    ran = run(Pacer(), provider, seconds=400)
    back = next(at for at in ran.answered if at > 150)
    assert back < 190
    # The refused sleep out their minute; the pace is found again within another half.
    assert ran.answers(200, 400) >= 0.9 * 50 * 200
    assert sum(at > 120 for at in ran.refused) <= 0.1 * len(ran.answered)


def test_a_server_without_a_limit_is_never_held_back():
    ran = run(Pacer(), Provider(steady(1e9), latency_s=0.5), seconds=20, workers=100)
    assert len(ran.answered) >= 0.9 * 20 * 100 / 0.5 / 1.14  # the mean of the lognormal
    assert not ran.refused


def most_in_a_minute(happened):
    """The most in any 60 s, wherever they begin."""
    first, total, most = 0, 0.0, 0.0
    for at, size in happened:
        total += size
        while happened[first][0] <= at - 60.0:
            total -= happened[first][1]
            first += 1
        most = max(most, total)
    return most


@pytest.mark.parametrize("rpm", [1, 30, 600, 6000])
def test_rpm_is_never_exceeded_in_any_minute_and_used_up(rpm):
    ran = run(Pacer(rpm=rpm), Provider(steady(1e9)), seconds=300, workers=1000)
    assert most_in_a_minute([(at, 1.0) for at in ran.started]) <= rpm
    assert len(ran.started) >= 0.98 * rpm * 5


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("tpm", [30_000.0, 600_000.0])
@pytest.mark.parametrize("latency_s", [1.0, 20.0])
def test_tpm_is_never_exceeded_in_any_minute_also_where_the_forecast_is_wrong(tpm, share, latency_s):
    """Requests really take `share` of what is reserved for them: what is on its way is doubted as those before it deserved."""

    def tokens(dice):
        actual = dice.uniform(100, 900)
        return actual / share, actual

    ran = run(
        Pacer(tpm=tpm), Provider(steady(1e9), latency_s=latency_s), seconds=300, workers=600, tokens=tokens
    )
    assert most_in_a_minute(ran.tokens) <= tpm
    since_a_minute = sum(size for at, size in ran.tokens if at >= 60.0)
    assert since_a_minute >= (0.9 if tpm > 100_000 or share > 1.0 else 0.8) * 4 * tpm


@pytest.mark.parametrize("tpm", [60_000.0, 600_000.0])
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_tpm_is_never_exceeded_in_any_minute_where_answers_vary_as_they_do(seed, tpm):
    """Every answer is a surprise: prompts of 200 tokens, completions lognormal around 360."""

    def tokens(dice):
        return 560.0, 200.0 + dice.lognormvariate(math.log(360) - 0.18, 0.6)

    ran = run(Pacer(tpm=tpm), Provider(steady(1e9)), seconds=300, seed=seed, tokens=tokens)
    assert most_in_a_minute(ran.tokens) <= tpm
    assert sum(size for at, size in ran.tokens if at >= 60.0) >= 0.9 * 4 * tpm


def test_rpm_is_a_ceiling_over_what_is_found():
    pacer = Pacer(rpm=3000)
    run(pacer, Provider(lambda now: 10.0 if now < 60 else 1e9), seconds=400)
    assert pacer.found
    assert pacer.per_s == pytest.approx(50.0)


def test_a_lower_limit_than_rpm_is_found():
    ran = run(Pacer(rpm=6000), Provider(steady(50.0)), seconds=300)
    assert len(ran.answered) >= 0.9 * 300 * 50
    assert len(ran.refused) <= 0.1 * len(ran.answered)


def started(pacer, count, since=10.0):
    """So many starts, each answered at once."""
    for _ in range(count):
        assert pacer.reserve(since) == 0.0
        pacer.accepted(since, pacer.reserved(since))


def refuse(pacer, count, at, hint=None):
    """So many starts at one moment, all of them refused a moment later."""
    reserved = []
    for _ in range(count):
        assert pacer.reserve(at) == 0.0
        reserved.append(pacer.reserved(at))
    for each in reserved:
        pacer.refused(at + 0.1, hint, each)


def test_when_nothing_is_known_a_few_may_start_and_twice_as_many_in_each_quarter_second():
    pacer = Pacer()
    assert [pacer.reserve(10.0) for _ in range(5)] == [0.0] * 4 + [pytest.approx(0.25)]
    assert [pacer.reserve(10.25) for _ in range(5)] == [0.0] * 4 + [pytest.approx(0.03125)]
    assert [pacer.reserve(10.5 - 1e-9) for _ in range(5)] == [0.0] * 4 + [pytest.approx(0.0, abs=1e-8)]


def test_while_nothing_is_known_whoever_is_answered_makes_room():
    pacer = Pacer()
    held = [pacer.reserve(10.0) for _ in range(5)][-1]
    assert held > 0.0
    pacer.accepted(10.0, Reservation(9.0))
    assert [pacer.reserve(10.0) for _ in range(2)] == [0.0, held]


def test_it_is_open_while_whoever_comes_may_start_and_no_limit_is_known():
    pacer = Pacer()
    started(pacer, 1)
    assert pacer.is_open
    for limited in (Pacer(rpm=60), Pacer(tpm=60_000)):
        assert not limited.is_open


def test_it_is_not_open_while_what_was_started_is_not_proven_to_be_taken():
    pacer = Pacer()
    for _ in range(4):
        assert pacer.is_open
        assert pacer.reserve(10.0) == 0.0
    assert not pacer.is_open
    pacer.accepted(10.1, Reservation(10.0))
    assert pacer.is_open


def test_it_is_not_open_once_a_rate_is_found():
    pacer = Pacer()
    refuse(pacer, 4, 10.0)
    assert pacer.found
    assert not pacer.is_open


def test_it_is_not_open_once_a_bound_on_those_in_flight_is_found():
    """Ten at once, of which those beyond are refused at any rate."""
    pacer, now, under_way = Pacer(), 10.0, []
    while pacer.most_in_flight is None and now < 300.0:
        now += 0.05
        while under_way and under_way[0].at < now - 2.0:
            pacer.accepted(now, under_way.pop(0))
        if pacer.reserve(now) == 0.0:
            reserved = pacer.reserved(now)
            if len(under_way) < 10:
                under_way.append(reserved)
            else:
                pacer.refused(now, None, reserved)
    assert (pacer.most_in_flight, pacer.found) == (10, False)
    assert not pacer.is_open


def test_a_limit_that_is_lifted_is_left_behind():
    """Nothing is refused up to ten times the rate and more: what is told of then is not the limit that was."""
    pacer = Pacer()
    run(pacer, Provider(lambda now: 5.0 if now < 30 else 1e9, latency_s=0.5), seconds=150, workers=100)
    limit, _ = pacer.limit_per_minute
    assert limit > 10 * 60 * 5.0


def test_a_single_refusal_among_a_hundred_holds_nobody_up():
    pacer = Pacer()
    started(pacer, 100)
    refuse(pacer, 1, 10.0, hint=60.0)
    assert (pacer.per_s, pacer.paused_for(10.1)) == (None, 0.0)
    assert pacer.reserve(10.1) == 0.0


def test_a_server_that_takes_nothing_is_left_alone_for_as_long_as_it_asks():
    pacer = Pacer()
    refuse(pacer, 4, 10.0, hint=60.0)
    assert pacer.paused_for(10.1) == pytest.approx(60.0)
    assert pacer.paused_for(71.0) == 0.0


def test_a_pause_of_the_pacers_own_is_none_that_the_server_asked_for():
    pacer = Pacer()
    refuse(pacer, 4, 10.0, hint=None)
    assert pacer.reserve(10.2) > 0.0
    assert pacer.paused_for(10.2) == 0.0


def test_waiting_out_a_pause_does_not_raise_the_rate():
    pacer = Pacer()
    refuse(pacer, 4, 10.0, hint=60.0)
    rate = pacer.per_s
    assert rate is not None
    for second in range(11, 70):
        assert pacer.reserve(float(second)) > 0.0
    assert pacer.per_s == rate


def test_a_refusal_that_comes_when_nothing_was_started_lately_says_nothing():
    pacer = Pacer()
    started(pacer, 1, 0.0)
    assert pacer.reserve(0.0) == 0.0
    pacer.refused(100.0, 60.0, pacer.reserved(0.0))
    assert (pacer.per_s, pacer.found, pacer.paused_for(100.0)) == (None, False, 0.0)


def test_a_rate_far_below_the_limit_does_not_stay_there_for_minutes():
    """A server that takes one request in ten seconds for a minute, and then everything."""
    ran = run(Pacer(), Provider(lambda now: 0.1 if now < 60 else 1e9, latency_s=0.1), seconds=120)
    assert ran.answers(110, 120) > 10 * 500


def test_a_pace_that_nobody_waited_for_at_first_is_outgrown_later_whenever_the_clock_began():
    """Time before there was a rate is none in which it went unused."""
    now = 100_000.0
    pacer = Pacer()
    refuse(pacer, 4, now, hint=5.0)
    low = pacer.per_s
    assert low is not None
    for tenth in range(100, 200):
        while pacer.reserve(now + tenth / 10) == 0.0:
            pacer.accepted(now + tenth / 10, pacer.reserved(now + tenth / 10))
    assert pacer.per_s > 100 * low


def test_a_server_that_refuses_everything_for_a_day_is_asked_on():
    pacer = Pacer()
    for minute in range(1440):
        assert pacer.reserve(60.0 * minute) == 0.0
        pacer.refused(60.0 * minute + 0.1, None, pacer.reserved(60.0 * minute))


def test_a_wait_begun_at_a_low_rate_is_shortened_when_the_rate_grows():
    pacer = Pacer()
    for second in range(40):
        pacer.reserve(float(second))
        pacer.refused(second + 0.5, None, Reservation(float(second)))
    low = pacer.per_s
    assert low is not None
    assert low < 0.1
    starts = [now / 10 for now in range(410, 1000) if pacer.reserve(now / 10) == 0.0]
    assert len(starts) > 30


def test_tokens_of_a_refused_request_are_given_back():
    pacer = Pacer(tpm=60_000)
    assert pacer.counts_tokens
    assert pacer.reserve(0.0, 10_000) == 0.0
    assert pacer.reserve(1.0, 10) == pytest.approx(9.0, abs=0.1)
    pacer.refused(1.0, None, Reservation(0.0, 10_000))
    assert pacer.reserve(1.3, 10) == 0.0


def test_a_request_larger_than_a_minute_waits_its_turn_and_is_paid_off():
    pacer = Pacer(tpm=6_000)
    assert pacer.reserve(0.0, 12_000) == 0.0
    assert pacer.reserve(60.0, 10) == pytest.approx(60.0, abs=0.11)
    assert pacer.reserve(120.1, 10) == 0.0


def test_more_tokens_than_reserved_are_paid_for_although_time_has_passed():
    pacer = Pacer(tpm=6_000)
    assert pacer.reserve(0.0, 10) == 0.0
    pacer.accepted(50.0, Reservation(0.0, 10), 1010)
    assert pacer.reserve(50.0, 10) == pytest.approx(10.0, abs=0.1)


def test_limits_that_are_given_are_not_called_found():
    assert (Pacer().per_s, Pacer().found, Pacer().counts_tokens) == (None, False, False)
    assert (Pacer(rpm=120).per_s, Pacer(rpm=120).found) == (2.0, False)


def test_a_forecast_begins_high_and_learns_from_answers():
    forecast = TokenForecast()
    short = Request(0, "a", b"x" * 300, max_tokens=100)
    unlimited = Request(0, "a", b"x" * 300)
    assert forecast.tokens(short) == pytest.approx(200)
    assert forecast.tokens(unlimited) == pytest.approx(100 + 1024)
    for _ in range(20):
        forecast.learn(400, Usage(100, 150, 250))
    assert forecast.tokens(short) == pytest.approx(75 + 100)  # the mean is 150, its own limit 100
    assert forecast.tokens(unlimited) == pytest.approx(75 + 150)


def test_a_forecast_follows_answers_that_grow_longer():
    forecast = TokenForecast()
    for _ in range(2000):
        forecast.learn(400, Usage(100, 100, 200))
    for _ in range(1000):
        forecast.learn(400, Usage(100, 300, 400))
    assert forecast.tokens(Request(0, "a", b"x" * 400)) == pytest.approx(400, rel=0.01)


def _burst_of_a_thousand(pacer):
    now, burst = 1.0, []
    while len(burst) < 1000:
        if pacer.reserve(now) == 0.0:
            burst.append(pacer.reserved(now))
        else:
            now += 0.001
    assert now < 3.5
    return burst


@pytest.mark.parametrize(("refused", "found"), [(slice(50, None, 100), False), (slice(-40, None), True)])
def test_what_of_a_burst_is_refused_is_a_limit_if_it_began_in_a_row_and_strays_if_it_did_not(refused, found):
    pacer = Pacer()
    for reserved in _burst_of_a_thousand(pacer)[refused]:
        pacer.refused(3.5, None, reserved)
    assert pacer.limited is found


def test_strays_among_many_in_flight_tell_no_limit_on_how_many_are():
    pacer = Pacer()
    burst = _burst_of_a_thousand(pacer)
    for second in range(4, 150):
        for n in range(len(burst) // 10):
            reserved = burst.pop(0)
            if n:
                pacer.accepted(second, reserved)
            else:
                pacer.refused(second, None, reserved)
        # Fewer may be tried for a while, since these take longer than the first ones did.
        while len(burst) < 1000 and pacer.reserve(second) == 0.0:
            burst.append(pacer.reserved(second))
    assert len(burst) == 1000
    assert pacer.most_in_flight is None
