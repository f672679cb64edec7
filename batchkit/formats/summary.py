"""The summary of a job, for programs.

`build` makes the JSON object that the contract promises from a job's totals; everything else reads that object, so the
text and the report can be had from a summary file as well as from a run. Amounts come in as Decimal and are JSON
numbers from here on; what is not known is null and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from batchkit.formats.over_time import over_time_to_json
from batchkit.records import TimeBin, Usage

__all__ = [
    "Figures",
    "ModelFigures",
    "OutcomeFigures",
    "Totals",
    "build",
    "dumps",
    "figures_to_json",
]

_NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Figures:
    """What answers took, `unknown` of them without saying it.

    `cost` is in US dollars and None where a model has no known price; `known_cost` is then that of the rest.
    """

    answers: int = 0
    usage: Usage = _NO_USAGE
    unknown: int = 0
    cost: Decimal | None = Decimal(0)
    known_cost: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class OutcomeFigures:
    """What answers took by what became of them: results, failures, or retries, whose requests were asked again."""

    results: Figures = Figures()
    failures: Figures = Figures()
    retries: Figures = Figures()


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What one model answered; `cost` in US dollars, None if its price is not known, `unknown` answers without usage."""

    requests: int
    usage: Usage
    cost: Decimal | None
    unknown: int = 0
    outcomes: OutcomeFigures = OutcomeFigures()


@dataclass(frozen=True, slots=True)
class Totals:
    """A job's figures, as the rules count them and price them.

    `errors` is code: (count, custom_id of the first). `latency_s` is p50, p90, p99 and max. `known_cost` is in US
    dollars and leaves `unpriced_models` out, `dearest` what one answer cost at most, `maybe_cost` what may have been billed
    besides, at most, `max_cost` the bound that the last run was given, and `batch_cost` what the providers' own batch APIs
    charge for the same, None where that is not known. Times are Unix times, durations seconds. `bins` tell what ended when, each
    for `bin_s` seconds.
    """

    succeeded: int
    failed: int
    attempts: int
    by_reason: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    models: Mapping[str, ModelFigures] = field(default_factory=dict)
    outcomes: OutcomeFigures = OutcomeFigures()
    unknown_usage: int = 0
    known_cost: Decimal = Decimal(0)
    dearest: Decimal = Decimal(0)
    maybe_cost: Decimal = Decimal(0)
    max_cost: Decimal | None = None
    batch_cost: Decimal | None = None
    unpriced_models: tuple[str, ...] = ()
    price_list: str | None = None
    price_list_date: str | None = None
    latency_s: tuple[float, float, float, float] | None = None
    errors: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    started_at: float | None = None
    finished_at: float | None = None
    active_s: float = 0.0
    simulated: bool = False
    in_flight_at_kills: int = 0
    maybe_billed: int = 0
    gateway_retries: int = 0
    from_cache: int = 0
    bin_s: float = 0.0
    bins: Sequence[TimeBin] = ()


def build(
    totals: Totals, *, job_id: str, status: str, stop_reason: str | None, requests: int | None
) -> dict[str, Any]:
    """The summary of a job with `requests` in its input, None if they are not counted yet.

    `status` is "completed", "stopped", "interrupted" or "running".
    """
    ended = totals.succeeded + totals.failed
    usage = sum((model.usage for model in totals.models.values()), Usage())
    cost: dict[str, Any] = {
        "currency": "USD",
        "total": None if totals.unpriced_models else float(totals.known_cost),
        "unpriced_models": list(totals.unpriced_models),
    }
    if totals.unpriced_models:
        cost["known_total"] = float(totals.known_cost)
    if totals.price_list is not None:
        cost["price_list"] = {"name": totals.price_list, "date": totals.price_list_date}
    if totals.in_flight_at_kills and totals.dearest and not totals.unpriced_models:
        cost["in_flight_at_kills"] = float(totals.dearest * totals.in_flight_at_kills)
    if totals.maybe_cost:
        cost["maybe_cost"] = float(totals.maybe_cost)
    if totals.max_cost is not None:
        cost["max_cost"] = float(totals.max_cost)
    if totals.batch_cost:
        cost["batch_total"] = float(totals.batch_cost)
    return {
        "job_id": job_id,
        "status": status,
        "stop_reason": stop_reason,
        "simulated": totals.simulated,
        "requests": {
            "total": requests,
            "succeeded": totals.succeeded,
            "failed": totals.failed,
            "pending": None if requests is None else max(0, requests - ended),
            "truncated": totals.truncated,
            "from_cache": totals.from_cache,
        },
        "attempts": {
            "total": totals.attempts,
            "retried": sum(totals.by_reason.values()),
            "by_reason": dict(totals.by_reason),
            "in_flight_at_kills": totals.in_flight_at_kills,
            "maybe_billed": totals.maybe_billed,
            "gateway_retries": totals.gateway_retries,
        },
        "usage": _usage(usage, totals.unknown_usage),
        "cost": cost,
        "outcomes": _outcomes(totals.outcomes),
        "models": {
            name: {
                "requests": model.requests,
                "usage": _usage(model.usage, model.unknown),
                "cost": _amount(model.cost),
                "outcomes": _outcomes(model.outcomes),
            }
            for name, model in totals.models.items()
        },
        "latency_s": dict(
            zip(
                ("p50", "p90", "p99", "max"),
                [round(seconds, 4) for seconds in totals.latency_s] if totals.latency_s else [None] * 4,
                strict=True,
            )
        ),
        "throughput": {
            "requests_per_s": _rate(ended, totals.active_s),
            "tokens_per_s": _rate(usage.total_tokens, totals.active_s),
        },
        "errors": {
            code: {"count": count, "example": example} for code, (count, example) in totals.errors.items()
        },
        "time": {
            "started_at": totals.started_at,
            "finished_at": totals.finished_at,
            "active_s": round(totals.active_s, 3),
        },
        **({"over_time": over_time_to_json(totals.bin_s, totals.bins)} if totals.bins else {}),
    }


def dumps(summary: Mapping[str, Any]) -> bytes:
    """The summary as it stands in its file: indented, with a newline at its end."""
    return orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _outcomes(outcomes: OutcomeFigures) -> dict[str, Any]:
    return {
        "results": {"requests": outcomes.results.answers, **figures_to_json(outcomes.results)},
        "failures": {"requests": outcomes.failures.answers, **figures_to_json(outcomes.failures)},
        "retries": {"attempts": outcomes.retries.answers, **figures_to_json(outcomes.retries)},
    }


def figures_to_json(figures: Figures) -> dict[str, Any]:
    """`usage`, `cost` and, where that is not known, `known_cost`."""
    told = {"usage": _usage(figures.usage, figures.unknown), "cost": _amount(figures.cost)}
    if figures.cost is None:
        told["known_cost"] = float(figures.known_cost)
    return told


def _amount(cost: Decimal | None) -> float | None:
    return None if cost is None else float(cost)


def _usage(usage: Usage, unknown: int) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "unknown": unknown,
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 4) if seconds > 0 else None
