"""The pacer beside a provider that says what its limit is, or what it is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from test_rules_pacing import Provider, run, steady

from batchkit.records import Announced, AnnouncedLimit
from batchkit.rules.budget import Reservation
from batchkit.rules.pacing import Pacer


@dataclass
class Announcing(Provider):
    """Announces its bucket with each answer, or `factor` times that; the bucket holds so many seconds' worth."""

    factor: float = 1.0
    burst_s: float = 1.0

    def takes(self, now: float) -> bool:
        rate = self.rate_at(now)
        full = rate * self.burst_s
        self.level = min(full, self.level + (now - self.at) * rate) if self.at else full
        self.at = max(now, 1e-9)
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True

    def announced(self) -> Announced:
        rate = self.rate_at(self.at)
        reset_s = round((rate * self.burst_s - self.level) / rate, 3)
        return Announced(AnnouncedLimit(60 * rate * self.factor, int(self.level * self.factor), reset_s))


class Hearing(Pacer):
    """Is told with each answer what the provider announces by then."""

    def __init__(self, provider: Announcing, **given: float) -> None:
        super().__init__(**given)
        self.provider = provider

    def accepted(self, now: float, reserved: Reservation, actual: float | None = None) -> None:
        self.announced(now, self.provider.announced(), reserved)
        super().accepted(now, reserved, actual)

    def refused(self, now: float, hint: float | None, reserved: Reservation) -> None:
        self.announced(now, self.provider.announced(), reserved)
        super().refused(now, hint, reserved)


def ran(provider, **words):
    return run(Hearing(provider), provider, **words)


@pytest.mark.parametrize("rate", [500 / 60, 50.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_announced_limit_is_kept_from_the_first_refusals_on(rate, seed):
    ran_ = ran(Announcing(steady(rate)), seconds=300, seed=seed)
    assert len(ran_.answered) >= 0.97 * (300 - 4.5) * rate
    assert len(ran_.refused) <= 0.01 * len(ran_.answered) + 40
    assert sum(at > 1 for at in ran_.refused) <= 0.01 * len(ran_.answered)


def test_a_minutes_bucket_is_used_up_and_then_its_rate_kept():
    """Nothing is lost of what may begin at once, and the limit behind it is not run into."""
    ran_ = ran(Announcing(steady(10.0), burst_s=60.0, latency_s=0.5), seconds=120)
    assert ran_.answers(0, 30) >= 600
    assert len(ran_.answered) >= 0.97 * (600 + 10 * 119)
    assert len(ran_.refused) <= 0.01 * len(ran_.answered)


def test_a_job_that_fits_into_what_is_left_is_not_held_back():
    ran_ = ran(Announcing(steady(50.0), burst_s=60.0, latency_s=1.0), seconds=10, workers=100)
    free = run(Pacer(), Provider(steady(1e9), latency_s=1.0), seconds=10, workers=100)
    assert len(ran_.answered) == len(free.answered)


def test_an_announced_limit_that_is_too_high_is_lowered_by_refusals():
    ran_ = ran(Announcing(steady(50.0), factor=4.0), seconds=300)
    assert len(ran_.answered) >= 0.9 * 300 * 50
    assert sum(at > 10 for at in ran_.refused) <= 0.02 * len(ran_.answered)


def test_an_announced_limit_that_is_too_low_is_outgrown():
    ran_ = ran(Announcing(steady(50.0), factor=0.2), seconds=400)
    assert ran_.answers(200, 400) >= 0.95 * 200 * 50


def test_a_gateway_with_ten_keys_gives_what_all_of_them_allow():
    """Each answer announces a tenth, of which most is left; a refusal tells that there is no more."""
    ran_ = ran(Announcing(steady(50.0), burst_s=60.0, factor=0.1), seconds=300, workers=1000)
    assert len(ran_.answered) >= 0.97 * (3000 + 50 * 290)
    assert len(ran_.refused) <= 0.005 * len(ran_.answered)


def test_a_limit_that_is_announced_anew_counts_from_then_on():
    provider = Announcing(lambda now: 10.0 if now < 100 else 40.0)
    ran_ = ran(provider, seconds=200)
    assert ran_.answers(115, 200) >= 0.95 * 85 * 40


def reservation(pacer, now, tokens=0.0):
    assert pacer.reserve(now, tokens) == 0.0
    return pacer.reserved(now, tokens)


def minute(limit, left=0.0):
    return AnnouncedLimit(limit, left, window_s=60.0)


def told(pacer, announced, *, times=3, tokens=0.0, now=1.0):
    for _ in range(times):
        reserved = reservation(pacer, now, tokens)
        pacer.announced(now, announced, reserved)
        pacer.accepted(now, reserved)


def test_whichever_of_requests_and_tokens_allows_less_is_kept():
    for tokens, limit, counted in ((50.0, 600, "requests"), (500.0, 60_000, "tokens")):
        pacer = Pacer()
        told(pacer, Announced(minute(600), minute(60_000)), tokens=tokens)
        pacer.wait(1.0, tokens)
        assert pacer.limit_per_minute == (pytest.approx(limit), counted)


def test_tokens_bind_later_where_requests_grow():
    pacer = Pacer()
    announced = Announced(minute(6000), minute(600_000))
    told(pacer, announced, tokens=50.0)
    now = 1.0
    for _ in range(300):
        now += max(0.02, pacer.wait(now, 400.0) + 1e-9)
        told(pacer, announced, times=1, tokens=400.0, now=now)
    assert pacer.limit_per_minute == (pytest.approx(600_000, rel=0.05), "tokens")
    assert pacer.per_s == pytest.approx(600_000 / 60 / 400, rel=0.1)


def test_a_forecast_of_tokens_is_asked_for_once_they_are_announced():
    pacer = Pacer()
    assert not pacer.counts_tokens
    told(pacer, Announced(tokens=minute(60_000, 60_000)))
    assert pacer.counts_tokens
    assert pacer.per_s is None


def test_a_ceiling_that_is_given_stands_above_what_is_announced():
    pacer = Pacer(rpm=60)
    told(pacer, Announced(minute(6000)), times=1)
    assert pacer.per_s == 1.0


def test_what_older_attempts_were_told_is_left_does_not_count_any_more():
    pacer = Pacer()
    old, new = reservation(pacer, 1.0), reservation(pacer, 2.0)
    for _ in range(3):
        pacer.announced(3.0, Announced(minute(600, 0)), new)
    pacer.announced(3.0, Announced(minute(600, 500)), old)
    assert pacer.wait(3.0) >= 0.0
    assert pacer.per_s == pytest.approx(9.8)


@pytest.mark.parametrize(("limit", "per_s"), [(60, 0.98), (60_000, None)])
def test_a_refusal_is_laid_to_an_announced_limit_only_where_as_much_began(limit, per_s):
    pacer = Pacer()
    told(pacer, Announced(minute(limit, limit)))
    reserved = reservation(pacer, 1.0)
    pacer.refused(1.05, None, reserved)
    assert pacer.per_s == (None if per_s is None else pytest.approx(per_s))


def test_news_that_is_older_than_the_last_is_not_heard():
    """A slow answer tells how it was when it began."""
    pacer = Pacer()
    old = [reservation(pacer, 1.0) for _ in range(3)]
    told(pacer, Announced(minute(1200)), now=2.0)
    for reserved in old:
        pacer.announced(3.0, Announced(minute(3000)), reserved)
    pacer.wait(3.0)
    assert pacer.limit_per_minute == (1200, "requests")


def test_what_is_announced_below_one_request_is_not_believed():
    pacer = Pacer()
    told(pacer, Announced(tokens=minute(30)), tokens=3000.0)
    assert pacer.wait(1.0, 3000.0) == 0.0
    assert not pacer.limited


def test_what_is_announced_below_what_was_taken_is_not_believed():
    pacer = Pacer()
    for _ in range(40):
        pacer.accepted(1.0, reservation(pacer, 1.0, 0.0))
    told(pacer, Announced(requests=minute(10)))
    assert pacer.wait(1.0) == 0.0
    assert not pacer.limited


def test_it_is_not_open_once_what_was_left_is_used():
    pacer = Pacer()
    told(pacer, Announced(minute(600, 10)))
    for _ in range(9):
        assert pacer.is_open
        pacer.accepted(2.0, reservation(pacer, 2.0))
    assert not pacer.is_open
