"""A tally as JSON values, and back: how a checkpoint keeps it, and how another process hands it over.

What is read is checked for being what a tally can be; it says nothing of whether it is right, which its keeper has to see to.
Whoever changes what is written here puts the version of `formats.checkpoint` up.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any

from batchkit.rules.bill import BAND_EDGES, FROM_CACHE, NO_CELL, OUTCOMES, Bill, Cells
from batchkit.rules.latencies import BUCKETS, Latencies
from batchkit.rules.over_time import MAX_BINS, MAX_MODELS, MIN_EXPONENT, Found, OverTime
from batchkit.rules.runs import Run, Runs
from batchkit.rules.tally import Tally

__all__ = ["state_of", "tally_of"]


def state_of(tally: Tally) -> dict[str, Any]:
    """All of a tally as JSON values; `tally_of` gives it back, exactly."""
    return {
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "truncated": tally.truncated,
        "attempts": tally.attempts,
        "gateway_retries": tally.gateway_retries,
        "maybe_billed": tally.maybe_billed,
        "maybe_cost": str(tally.maybe_cost),
        "by_reason": tally.by_reason,
        "models": {
            model: {
                outcome: {str(band): list(cell) for band, cell in sorted(bands.items())}
                for outcome, bands in zip(OUTCOMES, cells, strict=True)
            }
            for model, cells in sorted(tally.bill.cells.items())
        },
        "latency": {
            "max": tally.latencies.longest_s,
            "buckets": {str(bucket): count for bucket, count in sorted(tally.latencies.buckets.items())},
        },
        "errors": {code: list(error) for code, error in sorted(tally.codes.items())},
        "over_time": {
            "exponent": tally.over_time.exponent,
            "bins": {str(number): list(cell) for number, cell in sorted(tally.over_time.bins.items())},
            "limits": {
                model: {str(number): list(told) for number, told in sorted(found.items())}
                for model, found in sorted(tally.over_time.found.items())
            },
        },
        "stray": list(tally.runs.stray) if tally.runs.stray else None,
        "runs": [
            [run.started_at, run.last, run.simulated, run.in_flight_before, str(run.unseen_cost)]
            for run in tally.runs.worked
        ],
    }


def tally_of(state: Any) -> Tally:
    """The tally whose `state_of` this is. Raises ValueError if it is none."""
    try:
        return _tally_of(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not the state of a tally: {error!r}") from error


def _tally_of(state: Any) -> Tally:
    tally = Tally()
    tally.succeeded = _count(state["succeeded"])
    tally.failed = _count(state["failed"])
    tally.truncated = _count(state["truncated"])
    tally.attempts = _count(state["attempts"])
    tally.gateway_retries = _count(state["gateway_retries"])
    tally.maybe_billed = _count(state["maybe_billed"])
    tally.maybe_cost = _amount(state["maybe_cost"])
    tally.reasons = {_text(reason): _count(count) for reason, count in state["by_reason"].items()}
    tally.bill = Bill({_text(model): _cells(cells) for model, cells in state["models"].items()})
    latency = state["latency"]
    tally.latencies = Latencies(
        {_bucket(bucket): _count(n) for bucket, n in latency["buckets"].items()}, _seconds(latency["max"])
    )
    tally.codes = {
        _text(code): [_count(count), _count(index), _text(example)]
        for code, (count, index, example) in state["errors"].items()
    }
    tally.over_time = _over_time(state["over_time"])
    runs = [
        Run(_seconds(start), _seconds(last), _flag(simulated), _count(in_flight), _amount(unseen_cost))
        for start, last, simulated, in_flight, unseen_cost in state["runs"]
    ]
    starts = [run.started_at for run in runs]
    if starts != sorted(set(starts)) or any(run.last < run.started_at for run in runs):
        raise ValueError("runs are out of order")
    stray = state["stray"]
    if stray is not None:
        first, last = stray
        stray = _seconds(first), _seconds(last)
    tally.runs = Runs(runs, stray)
    return tally


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _amount(value: Any) -> Decimal:
    try:
        amount = Decimal(_text(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{value!r} is no amount")
    return amount


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _band(value: Any) -> int:
    band = int(value)
    if not FROM_CACHE <= band <= len(BAND_EDGES):
        raise ValueError(f"{value!r} is no band")
    return band


def _bucket(value: Any) -> int:
    bucket = int(value)
    if bucket not in BUCKETS:
        raise ValueError(f"{value!r} is no bucket")
    return bucket


def _over_time(value: Any) -> OverTime:
    exponent, bins, found = value["exponent"], value["bins"], value["limits"]
    if (
        type(exponent) is not int
        or exponent < MIN_EXPONENT
        or len(bins) > MAX_BINS
        or len(found) > MAX_MODELS
    ):
        raise ValueError("these are no bins")
    return OverTime(
        exponent,
        {int(number): _bin(cell) for number, cell in bins.items()},
        {
            _text(model): {int(number): _found(*told) for number, told in by_bin.items()}
            for model, by_bin in found.items()
        },
    )


def _bin(value: Any) -> list[int]:
    results, failures, refused, tokens = map(_count, value)
    return [results, failures, refused, tokens]


def _found(at: Any, index: Any, *limits: Any) -> Found:
    requests, tokens, in_flight = map(_seconds, limits)
    return _seconds(at), _count(index), requests, tokens, in_flight


def _cells(value: Any) -> Cells:
    results, failures, retries = (
        {_band(band): _cell(cell) for band, cell in value[outcome].items()} for outcome in OUTCOMES
    )
    return results, failures, retries


def _cell(value: Any) -> list[int]:
    if len(value) != len(NO_CELL):
        raise ValueError(f"{value!r} is no cell of sums")
    return [_count(each) for each in value]
