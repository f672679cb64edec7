"""The summary of a job: as JSON for programs, as text for people.

`build` makes the JSON object that the contract promises from a job's totals; everything else reads that object, so the
text and the report can be had from a summary file as well as from a run. Amounts come in as Decimal and are JSON
numbers from here on; what is not known is null and never 0.

The text is for a terminal, and much in it was written by strangers: names, codes and ids are shown with control
characters made visible, so that none of them can move the cursor or hide another.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from batchkit.formats.over_time import limits_in_words, over_time_to_json, refusals_in_words, sparkline
from batchkit.records import TimeBin, Usage

__all__ = [
    "Figures",
    "ModelFigures",
    "OutcomeFigures",
    "Totals",
    "amount",
    "build",
    "cost_in_words",
    "dollars",
    "dumps",
    "duration",
    "figures_to_json",
    "moment",
    "printable",
    "render",
    "what_next",
]

_NO_USAGE = Usage()
_WIDTH = 100
_LABEL = 12


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


def render(summary: Mapping[str, Any], *, width: int = _WIDTH) -> str:
    """The summary for people, in lines of at most `width` columns where their words allow it."""
    lines = [_headline(summary)]
    for label, parts in _rows(summary):
        lines += _wrap(label, parts, width)
    lines += ["", *_fold(what_next(summary), width)]
    return "\n".join(lines) + "\n"


def what_next(summary: Mapping[str, Any]) -> str:
    """What to do now, in a sentence or two."""
    requests = summary["requests"]
    again = "Nothing is lost: the same command goes on from here."
    match summary["status"]:
        case "completed" if requests["failed"]:
            return "The failures stand in the errors file; the same command with --retry-failed asks them once more."
        case "completed":
            return "Every request has its result."
        case "stopped" if _has_passed_its_cap(summary["cost"]):
            return (
                "Stopped: answers cost more than they could by their prompts and length limits, and --max-cost is passed. "
                "Nothing is lost: a larger one goes on from here."
            )
        case "stopped" if summary["stop_reason"] == "max_cost":
            return (
                "Stopped before --max-cost could be passed. Nothing is lost: a larger one goes on from here."
            )
        case "stopped":
            return f"Stopped: {printable(summary['stop_reason'] or 'no reason was given')}. {again}"
        case "interrupted":
            return f"Interrupted. {again}"
        case _:
            return "The job is running, or was killed; if nothing runs, the same command goes on from here."


def printable(text: str) -> str:
    r"""`text` on one line, with what a terminal would obey, or hide, written out as `\x1b` or `\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else _escape(char) for char in text
    )


def duration(seconds: float) -> str:
    """`seconds` in its two largest units, as `45 s`, `1 min 23 s` or `2 d 5 h`."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    for unit, size, part, part_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def dollars(value: float) -> str:
    """An amount in US dollars: cents from a dollar on, below it four significant digits."""
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    return f"${value:.4f}" if value >= 0.1 else f"${Decimal(f'{value:.3g}'):f}"


def amount(value: float) -> str:
    """A rate or a duration with three digits, or all of its whole ones: 0.81, 12.3, 41,000."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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


def _headline(summary: Mapping[str, Any]) -> str:
    kind = "simulated job" if summary.get("simulated") else "job"
    return f"{kind} {printable(summary['job_id'])}: {printable(summary['status'])}"


def _rows(summary: Mapping[str, Any]) -> Iterable[tuple[str, list[str]]]:
    """Label and the parts of its line; a part is never broken."""
    requests, attempts, latency, time = (
        summary[key] for key in ("requests", "attempts", "latency_s", "time")
    )
    total = "" if requests["total"] is None else f" of {requests['total']:,}"
    parts = [f"{requests['succeeded']:,}{total} done", f"{requests['failed']:,} failed"]
    if requests["pending"] is not None:
        parts.append(f"{requests['pending']:,} pending")
    if requests.get("truncated"):
        parts.append(f"{requests['truncated']:,} cut at their length limit")
    if requests.get("from_cache"):
        parts.append(f"{requests['from_cache']:,} from the gateway's cache, not billed")
    yield "requests", parts

    reasons = [f"{count:,} {printable(reason)}" for reason, count in _most_first(attempts["by_reason"])]
    repeated = [f"{attempts['retried']:,} repeated: {reasons[0]}", *reasons[1:]] if reasons else []
    parts = [f"{attempts['total']:,} in all", *repeated]
    if attempts.get("gateway_retries"):
        parts.append(f"{attempts['gateway_retries']:,} more by the gateway itself")
    if attempts.get("maybe_billed"):
        parts.append(f"{attempts['maybe_billed']:,} without an answer that may have been billed")
    yield "attempts", parts
    yield "tokens", _tokens(summary["usage"])
    yield "cost", _cost(summary)
    if parts := _by_outcome(summary["outcomes"]):
        yield "of which", parts
    if at_kills := attempts.get("in_flight_at_kills"):
        parts = [
            f"up to {at_kills:,} answers were on their way when a run was killed and may be billed twice"
        ]
        if more := summary["cost"].get("in_flight_at_kills"):
            parts.append(f"{dollars(more)} at most, each as dear as the dearest of the job")
        yield "killed", parts
    if len(summary["models"]) > 1:
        for place, (name, model) in enumerate(summary["models"].items()):
            cost = "no known price" if model["cost"] is None else dollars(model["cost"])
            counted = f"{model['requests']:,} requests", f"{model['usage']['total_tokens']:,} tokens", cost
            yield "" if place else "models", [f"{_short(printable(name))}: {counted[0]}", *counted[1:]]
    if latency["max"] is not None:
        yield "latency", [f"{name} {amount(latency[name])} s" for name in ("p50", "p90", "p99", "max")]
    rates = summary["throughput"]
    if rates["requests_per_s"] is not None:
        yield (
            "throughput",
            [f"{amount(rates['requests_per_s'])} requests/s", f"{amount(rates['tokens_per_s'])} tokens/s"],
        )
    if over_time := summary.get("over_time"):
        drawn, highest = sparkline(over_time)
        if drawn:
            rate = f"{amount(highest)} requests/s" if highest >= 1 else f"{amount(60 * highest)} requests/min"
            yield "over time", [f"{drawn} up to {rate}"]
        refused = refusals_in_words(over_time, attempts["total"])
        if found := limits_in_words(over_time):
            yield "limit found", [*map(printable, found), *(f"refused {part}" for part in refused)]
        elif refused:
            yield "refused", refused
    if time["started_at"] is not None:
        yield (
            "time",
            [
                f"{duration(time['active_s'])} at work",
                f"from {moment(time['started_at'])}",
                f"to {moment(time['finished_at'])}",
            ],
        )
    counts = {code: error["count"] for code, error in summary["errors"].items()}
    for place, (code, count) in enumerate(_most_first(counts)):
        example = printable(summary["errors"][code]["example"])
        yield (
            "" if place else "errors",
            [f"{count:,} {_short(printable(code))}", f"such as {_short(example)}"],
        )


def _tokens(usage: Mapping[str, int]) -> list[str]:
    cached = f" ({usage['cached_tokens']:,} cached)" if usage["cached_tokens"] else ""
    reasoning = f" ({usage['reasoning_tokens']:,} reasoning)" if usage["reasoning_tokens"] else ""
    parts = [
        f"{usage['prompt_tokens']:,} prompt{cached}",
        f"{usage['completion_tokens']:,} completion{reasoning}",
    ]
    if usage["unknown"]:
        parts.append(f"not known of {usage['unknown']:,} answers")
    return parts


def _cost(summary: Mapping[str, Any]) -> list[str]:
    cost = summary["cost"]
    note = "list prices; simulated run: nothing was billed" if summary.get("simulated") else "list prices"
    more = []
    if maybe := cost.get("maybe_cost"):
        more.append(f"up to {dollars(maybe)} more may have been billed")
    if most := cost.get("max_cost"):
        more.append(f"{'past' if _has_passed_its_cap(cost) else 'never more than'} {dollars(most)}")
    if batch := cost.get("batch_total"):
        more.append(f"{dollars(batch)} at the provider's batch price")
    if cost["total"] is not None:
        at_least = "at least " if summary["usage"]["unknown"] else ""
        return [f"{at_least}{dollars(cost['total'])} ({note})", *more]
    told: list[str] = []
    untold: list[str] = []
    for name in cost["unpriced_models"]:
        usage = summary["models"].get(name, {}).get("usage", {})
        # The model may well have a price, where none of its answers says what it took.
        (untold if usage.get("unknown") and not usage["total_tokens"] else told).append(printable(name))
    unknown = [f"no known price for {told[0]}", *told[1:]] if told else []
    unknown += [f"tokens not told by {untold[0]}", *untold[1:]] if untold else []
    return (
        [f"{dollars(cost['known_total'])} for what has a price ({note})", *more, *unknown]
        if cost["known_total"]
        else unknown + more
    )


def _has_passed_its_cap(cost: Mapping[str, Any]) -> bool:
    """Whether the lines themselves come to more than `max_cost`."""
    known = cost["total"] if cost["total"] is not None else cost.get("known_total", 0)
    return cost.get("max_cost") is not None and known > cost["max_cost"]


def _by_outcome(outcomes: Mapping[str, Any]) -> list[str]:
    """What results, failures and retries cost, if anything but results cost something."""
    if all(outcomes[name]["cost"] == 0 for name in ("failures", "retries")):
        return []
    counted = (("results", "requests"), ("failures", "requests"), ("retries", "attempts"))
    return [
        f"{name} {cost_in_words(outcomes[name])} ({outcomes[name][count]:,})"
        for name, count in counted
        if outcomes[name][count]
    ]


def cost_in_words(figures: Mapping[str, Any]) -> str:
    """The cost of some answers, as `$1.23`, or as far as it is known."""
    if figures["cost"] is not None:
        return dollars(figures["cost"])
    return f"{dollars(figures['known_cost'])} + ?" if figures["known_cost"] else "not known"


def moment(unix_time: float) -> str:
    """A Unix time as date and time of day, in UTC."""
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _wrap(label: str, parts: list[str], width: int) -> list[str]:
    lines = [f"  {label:<{_LABEL}}{parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f", {part}"
        else:
            lines[-1] += ","
            lines.append(" " * (_LABEL + 2) + part)
    return lines


def _fold(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
