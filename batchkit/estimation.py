"""Looks at an input and says what it will take, before it is sent; where that is wished, asks a few of its requests first.

The input is read once, in memory that does not grow with it. The pilot's requests are spread evenly over the whole of it and
go the way of all others: through `stream`, with the same keys, limits and retries.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from decimal import Decimal
from itertools import islice
from statistics import fmean
from typing import Any, Final, cast

import orjson

from batchkit.counting import cores, count_pieces
from batchkit.credentials import Credentials
from batchkit.destination import choose_base_url
from batchkit.errors import UsageError
from batchkit.formats import estimate as estimate_format
from batchkit.formats.requests import parse_line
from batchkit.observers.reading import Reading
from batchkit.records import Line, Reply, Request
from batchkit.rules.bill import UNKNOWN_MODEL
from batchkit.rules.estimating import (
    EXPECTED_TOKENS,
    Demand,
    Forecast,
    Range,
    Sample,
    forecast,
    seconds,
)
from batchkit.rules.pricing import PriceList, cost_of
from batchkit.rules.sampling import EvenSample, spread
from batchkit.rules.tally import Tally
from batchkit.settings import OF_FILES, RunSettings, Settings
from batchkit.source import Source
from batchkit.streaming import stream

__all__ = ["MOST_PILOT_REQUESTS", "estimate_input"]

MOST_PILOT_REQUESTS: Final = 1_000
_PIECE_BYTES: Final = 256 * 1024


def estimate_input(
    path: str,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    pilot: int | None = None,
    processes: int | None = None,
    run_in_loop: Callable[[Callable[[], Awaitable[_Asked]]], _Asked],
) -> dict[str, Any]:
    """The estimate of an input, in the shape of `formats.estimate`; `pilot` is how many of its requests to send.

    `environ` is looked at for the endpoint, which tells whose prices they are, and by the pilot for its keys. `processes`
    is on how many cores to count, all by default. Raises UsageError for an input that cannot be read.
    """
    if pilot is not None and not (type(pilot) is int and 1 <= pilot <= MOST_PILOT_REQUESTS):
        raise UsageError(f"pilot is {pilot!r}; it is a number of requests from 1 to {MOST_PILOT_REQUESTS:,}")
    base_url = _base_url(settings, environ, strictly=pilot is not None)
    prices = PriceList(at=time.time(), base_url=base_url, given=settings.given_prices)
    sample: EvenSample[Line] | None = None if pilot is None else EvenSample(pilot)
    demand = _read(Source(path), settings, sample, cores() if processes is None else processes)
    asked = None
    if sample is not None and pilot is not None:
        requests = _requests(sample.kept, settings, pilot)
        if requests:
            asked = run_in_loop(lambda: _ask(requests, settings, prices))
    forecasts = forecast(demand, prices, None if asked is None else asked.samples)
    basis = estimate_format.Basis(
        EXPECTED_TOKENS,
        prices.name,
        prices.date,
        [name for name in demand.models if (price := prices.find(name)) is not None and price.is_given],
        settings.rpm,
        settings.tpm,
        settings.concurrency,
        None if asked is None else asked.pilot,
    )
    return estimate_format.build(
        _figures(forecasts.total, basis),
        {name: _figures(each, basis) for name, each in forecasts.models.items()},
        basis,
        invalid=demand.invalid,
        images=demand.images,
        uncounted=demand.uncounted,
    )


def _base_url(settings: Settings, environ: Mapping[str, str], *, strictly: bool) -> str:
    """Where a run would send; "" if nothing says so, which is no matter where nothing is sent."""
    if settings.simulate:
        return ""
    credentials = Credentials()
    with suppress(*(() if strictly else (UsageError,))):
        credentials = Credentials.read(environ)
    if settings.base_url is None and not credentials.keys and not strictly:
        return ""
    return choose_base_url(settings, credentials)


def _read(source: Source, settings: Settings, sample: EvenSample[Line] | None, processes: int) -> Demand:
    size = source.identify().size
    reading = Reading(settings.progress, sys.stderr, size)
    demand = Demand()
    read_bytes = 0

    def pieces() -> Iterator[list[Line]]:
        nonlocal read_bytes
        piece: list[Line] = []
        held = 0
        for line in islice(source.lines(), settings.limit):
            if sample is not None:
                sample.add(line)
            piece.append(line)
            held += len(line.raw or b"")
            if held >= _PIECE_BYTES:
                read_bytes = line.offset
                yield piece
                piece, held = [], 0
        if piece:
            yield piece

    try:
        with closing(count_pieces(pieces(), settings.defaults, processes)) as counted:
            for each in counted:
                demand.merge(each)
                reading.tell(read_bytes, demand.requests, demand.prompt_tokens)
    finally:
        reading.close()
    return demand


def _requests(lines: Sequence[Line], settings: Settings, count: int) -> list[tuple[Line, Request]]:
    parsed = ((line, parse_line(line, settings.defaults)) for line in lines)
    return spread([(line, each) for line, each in parsed if isinstance(each, Request)], count)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a pilot brought."""

    samples: Mapping[str, Sample]
    pilot: estimate_format.Pilot


async def _ask(requests: Sequence[tuple[Line, Request]], settings: Settings, prices: PriceList) -> _Asked:
    keywords = {
        each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in OF_FILES
    }
    keywords |= {"limit": None, "max_failures": None}
    tally = Tally()
    tokens: dict[str, list[int]] = {}
    latencies: list[float] = []
    records = [orjson.loads(line.raw or b"") for line, _ in requests]
    async for outcome in stream(records, **cast("RunSettings", keywords)):
        tally.add(outcome)
        if isinstance(outcome.answer, Reply):
            latencies.append(outcome.latency_s)
            if outcome.answer.usage is not None:
                model = requests[outcome.index][1].model or UNKNOWN_MODEL
                tokens.setdefault(model, []).append(outcome.answer.usage.completion_tokens)
    return _Asked(
        {model: Sample.of(each) for model, each in tokens.items()},
        estimate_format.Pilot(
            len(requests),
            len(latencies),
            cost_of(tally, prices).total,
            fmean(latencies) if latencies else None,
            settings.simulate,
        ),
    )


def _figures(each: Forecast, basis: estimate_format.Basis) -> estimate_format.Figures:
    pilot = basis.pilot
    return estimate_format.Figures(
        each.requests,
        each.exact,
        each.prompt_tokens,
        each.completion_tokens.tokens,
        _ends(each.known_cost),
        None if each.batch_cost is None else _ends(each.batch_cost),
        seconds(
            each.requests,
            each.prompt_tokens + int(each.completion_tokens.expected),
            rpm=basis.rpm,
            tpm=basis.tpm,
            latency_s=None if pilot is None else pilot.latency_s,
            concurrency=basis.concurrency,
        ),
        each.completion_tokens.measured,
        each.unpriced_models,
        each.unbounded_models,
    )


def _ends(range_: Range) -> tuple[Decimal, Decimal, Decimal | None]:
    return range_.low, range_.expected, range_.high
