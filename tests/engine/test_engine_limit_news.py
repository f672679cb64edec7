"""The lines of a run tell which limits it found, each once."""

from dataclasses import dataclass, field

from batchkit.engine.limit_news import LimitNews
from batchkit.records import FoundLimit, Outcome
from batchkit.testing import ManualClock, reply


@dataclass
class Pace:
    """As much of a pacer as is looked at."""

    limit_per_minute: tuple[float, str] | None = None
    most_in_flight: int | None = None


@dataclass
class Paces:
    """As much of a gate."""

    pacers: dict[str | None, Pace] = field(default_factory=dict)


OUTCOME = Outcome(0, "a", reply(), "t", 1, 1.0, 100.0)


async def told(news, clock, *, after=1.0):
    """The limits on the next line, some seconds later."""
    await clock.sleep(after)
    return news.told_with(OUTCOME).limits


async def test_a_limit_is_told_once_and_again_when_it_changed_by_more_than_a_twentieth():
    clock, pace = ManualClock(), Pace()
    news = LimitNews(Paces({"m": pace}), clock)
    assert news.told_with(OUTCOME) is OUTCOME
    assert await told(news, clock) == ()
    pace.limit_per_minute = (481.23, "requests")
    assert await told(news, clock) == (FoundLimit("m", 481.0),)
    assert await told(news, clock) == ()
    for little_by_little in (490.0, 500.0):
        pace.limit_per_minute = (little_by_little, "requests")
        assert await told(news, clock) == ()
    pace.limit_per_minute = (510.0, "requests")
    assert await told(news, clock) == (FoundLimit("m", 510.0),)


async def test_a_limit_that_became_another_kind_or_none_is_told():
    clock, pace = ManualClock(), Pace((30_000.4, "tokens"))
    news = LimitNews(Paces({"m": pace}), clock)
    assert await told(news, clock) == (FoundLimit("m", None, 30_000.0),)
    pace.limit_per_minute, pace.most_in_flight = None, 20
    assert await told(news, clock) == (FoundLimit("m", None, None, 20),)
    pace.most_in_flight = None
    assert await told(news, clock) == (FoundLimit("m"),)
    assert await told(news, clock) == ()


async def test_each_model_has_its_own_and_those_without_a_name_have_none():
    clock = ManualClock()
    paces = Paces(
        {"m": Pace((480.0, "requests")), None: Pace(None, 5), "free": Pace(), "x" * 999: Pace(None, 7)}
    )
    limits = await told(LimitNews(paces, clock), clock)
    assert limits == (FoundLimit("m", 480.0), FoundLimit("", in_flight=5), FoundLimit("x" * 200, in_flight=7))


async def test_limits_are_looked_at_now_and_then_and_not_for_each_line():
    clock, pace = ManualClock(), Pace()
    news = LimitNews(Paces({"m": pace}), clock)
    assert await told(news, clock, after=0.0) == ()
    pace.most_in_flight = 5
    assert await told(news, clock, after=0.4) == ()
    assert await told(news, clock, after=0.2) == (FoundLimit("m", in_flight=5),)
