"""A provider that hides limits from whoever asks it, in simulated time, and the rows of the table of `pacing.py`.

It takes a median of 4 s (lognormal, sigma 0.5) for an answer and 50 ms for a refusal.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).parents[1] / "tests" / "simulation"))

from virtual_time import VirtualClock

from batchkit.records import (
    Announced,
    AnnouncedLimit,
    Answer,
    Failure,
    FailureKind,
    Reply,
    Request,
    Trace,
    Usage,
)

__all__ = ["ROWS", "WORKERS", "Provider", "Row", "VirtualClock", "one", "requests", "steady"]

WORKERS = 1000
MEDIAN_S = 4.0
SIGMA = 0.5
REFUSED_S = 0.05
PER_S = 50.0
LARGE = 20_000
"""Tokens: more than a second's worth of a million a minute."""


@dataclass(frozen=True)
class Limit:
    """What a provider takes of one model; whatever is None or zero is not limited."""

    per_s: Callable[[float], float] | None = None
    """Requests a second at a moment: a bucket of so many seconds' worth, and of one request at least."""
    burst_s: float = 1.0
    tokens_per_s: float | None = None
    in_flight: int | None = None
    """Refuses beyond so many at once."""
    slots: int | None = None
    """Works on so many at once; the others wait."""
    refusal_costs: float = 0.0
    """Requests that each refusal takes out of the bucket."""
    hint: float | None = None
    """The Retry-After of every refusal."""
    stray: float = 0.0
    """The share of requests that are refused for no reason."""
    announced: float | None = None
    """What all answers announce: the limit times this; None is nothing."""


@dataclass(frozen=True)
class Row:
    """One provider, and the requests that are sent to it for so many seconds."""

    limits: Mapping[str, Limit]
    seconds: float = 900.0
    shares: Mapping[str, float] = field(default_factory=lambda: {"m": 1.0})
    """The share of each model among the requests."""
    mixed_sizes: bool = False
    large: float = 0.0
    """The share of requests with a prompt of `LARGE` tokens."""
    median_s: float = MEDIAN_S
    """Of the lognormal time that an answer takes."""
    workers: int = WORKERS


def steady(rate: float) -> Callable[[float], float]:
    return lambda _: rate


def one(**limit: object) -> Mapping[str, Limit]:
    return {"m": Limit(**limit)}  # type: ignore[arg-type]


ROWS: Mapping[str, Row] = {
    "50/s": Row(one(per_s=steady(PER_S))),
    "5/s": Row(one(per_s=steady(5.0))),
    "0.5/s": Row(one(per_s=steady(0.5))),
    "50→20→50": Row(one(per_s=lambda now: 20.0 if 300 <= now < 600 else PER_S)),
    "Retry-After 30": Row(one(per_s=steady(PER_S), hint=30.0)),
    "a refusal counts": Row(one(per_s=steady(PER_S), refusal_costs=1.0)),
    "a refusal costs 2": Row(one(per_s=steady(PER_S), refusal_costs=2.0)),
    "200 in flight": Row(one(in_flight=200)),
    "20 in flight": Row(one(in_flight=20)),
    "slow beyond 200": Row(one(slots=200), seconds=600.0),
    "tokens": Row(one(tokens_per_s=25_000.0), mixed_sizes=True),
    "50/s, announced": Row(one(per_s=steady(PER_S), announced=1.0)),
    "50/s by the minute": Row(one(per_s=steady(PER_S), burst_s=60.0, announced=1.0)),
    "tokens, announced": Row(one(tokens_per_s=25_000.0, announced=1.0), mixed_sizes=True),
    "announced fourfold": Row(one(per_s=steady(PER_S), announced=4.0)),
    "ten keys, announced": Row(one(per_s=steady(PER_S), burst_s=60.0, announced=0.1)),
    "1M tokens a minute": Row(one(tokens_per_s=1e6 / 60), mixed_sizes=True, large=0.02),
    "two models": Row(
        {"m": Limit(per_s=steady(PER_S)), "n": Limit(per_s=steady(5.0))}, shares={"m": 10.0, "n": 1.0}
    ),
    "no limit": Row(one(), seconds=120.0),
    "no limit, 10 ms": Row(one(), seconds=0.9, median_s=0.01, workers=256),
    "1 % strays": Row(one(stray=0.01), seconds=240.0),
    "50/s, 1 % strays": Row(one(per_s=steady(PER_S), stray=0.01)),
    "out for 10 min": Row(one(per_s=lambda now: 0.0 if 300 <= now < 900 else PER_S), seconds=1500.0),
}


class Provider:
    """Answers, refuses, and counts both."""

    def __init__(self, row: Row, clock: VirtualClock, seed: int) -> None:
        self._clock = clock
        self._random = Random(seed)
        self._limits = row.limits
        self._median_s = row.median_s
        self._levels = dict.fromkeys(row.limits, math.inf)
        self._token_levels = dict(self._levels)
        self._filled_at = dict.fromkeys(row.limits, 0.0)
        self.in_flight = dict.fromkeys(row.limits, 0)
        self._served = {
            model: None if limit.slots is None else asyncio.Semaphore(limit.slots)
            for model, limit in row.limits.items()
        }
        self.answered: list[float] = []
        self.refused = 0
        self.freed = asyncio.Event()

    async def attempt(self, request: Request, trace: Trace | None = None) -> Answer:  # noqa: ARG002 - as an endpoint's
        model = request.model or ""
        limit = self._limits[model]
        if self.against(request) is not None or (limit.stray and self._random.random() < limit.stray):
            if limit.refusal_costs:
                self._levels[model] -= limit.refusal_costs
            self.refused += 1
            announced = self._announced(model)
            await self._clock.sleep(REFUSED_S)
            return Failure(
                FailureKind.RATE_LIMITED,
                "rate_limit_exceeded",
                "slow down",
                429,
                retry_after=limit.hint,
                announced=announced,
            )
        self._levels[model] -= 1.0
        size = tokens_of(request)
        self._token_levels[model] -= size
        announced = self._announced(model)
        takes_s = self._random.lognormvariate(math.log(self._median_s), SIGMA)
        self.in_flight[model] += 1
        served = self._served[model]
        if served is None:
            await self._clock.sleep(takes_s)
        else:
            async with served:
                await self._clock.sleep(takes_s)
        self.in_flight[model] -= 1
        self.freed.set()
        self.answered.append(self._clock.now())
        prompt = len(request.body) // 4
        return Reply(200, "", b"{}", model, Usage(prompt, size - prompt, size), "stop", announced=announced)

    def against(self, request: Request) -> float | None:
        """None if `request` is taken now; else the seconds until it may be, infinite until another is answered."""
        model = request.model or ""
        limit, now = self._limits[model], self._clock.now()
        passed, self._filled_at[model] = now - self._filled_at[model], now
        wait = 0.0
        if limit.per_s is not None:
            rate = limit.per_s(now)
            most = max(1.0, rate * limit.burst_s) if rate else 0.0
            level = self._levels[model] = min(most, self._levels[model] + passed * rate)
            if level < 1.0 - 1e-9:
                wait = (1.0 - level) / rate if rate else 1.0
        if limit.tokens_per_s is not None:
            rate = limit.tokens_per_s
            level = self._token_levels[model] = min(rate, self._token_levels[model] + passed * rate)
            missing = min(rate, tokens_of(request)) - level
            if missing > 1e-6:
                wait = max(wait, missing / rate)
        if limit.in_flight is not None and self.in_flight[model] >= limit.in_flight:
            wait = math.inf
        return wait or None

    def _announced(self, model: str) -> Announced | None:
        """As OpenAI's headers have it: the limit a minute, what is left of it now, and when all of it is there again."""
        limit = self._limits[model]
        if limit.announced is None:
            return None
        requests = tokens = None
        if limit.per_s is not None:
            rate = limit.per_s(self._clock.now())
            requests = _announced(limit.announced, rate, rate * limit.burst_s, self._levels[model])
        if limit.tokens_per_s is not None:
            rate = limit.tokens_per_s
            tokens = _announced(limit.announced, rate, rate, self._token_levels[model])
        return Announced(requests, tokens)


def _announced(factor: float, rate: float, capacity: float, level: float) -> AnnouncedLimit:
    return AnnouncedLimit(
        round(60.0 * rate * factor), max(0, int(level * factor)), round((capacity - level) / rate, 3)
    )


def tokens_of(request: Request) -> int:
    """Prompt and completion of a request; the completion is told by its custom_id, where no controller looks."""
    return len(request.body) // 4 + int(request.custom_id)


def requests(row: Row, seed: int) -> Callable[[], Request]:
    random, number = Random(seed + 1), count()
    models, weights = list(row.shares), list(row.shares.values())

    def following() -> Request:
        model = random.choices(models, weights)[0] if len(models) > 1 else models[0]
        prompt, completion = 200, 300
        if row.mixed_sizes:
            prompt, completion = int(random.lognormvariate(5.3, 1.0)), int(random.lognormvariate(5.2, 0.8))
            if row.large and random.random() < row.large:
                prompt = LARGE
        return Request(next(number), str(completion), bytes(4 * prompt), model, max_tokens=4096)

    return following
