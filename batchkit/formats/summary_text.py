"""The summary of a job as text for people, made of its JSON object (`formats.summary`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from batchkit.errors import OutputUnwritable
from batchkit.formats.over_time import limits_in_words, refusals_in_words, sparkline
from batchkit.formats.words import (
    amount,
    cost_in_words,
    dollars,
    duration,
    moment,
    printable,
    unlisted_tokens,
)

__all__ = ["at_least", "render", "unlisted_of", "what_next"]

_WIDTH = 100
_LABEL = 12


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
                "Stopped: more is spent than --max-cost. Either it is lower than before, or answers cost more than they could by "
                "their prompts and length limits. Nothing is lost: a larger one goes on from here."
            )
        case "stopped" if summary["stop_reason"] == "max_cost":
            return (
                "Stopped before --max-cost could be passed. Nothing is lost: a larger one goes on from here."
            )
        case "stopped" if summary["stop_reason"] == OutputUnwritable.__name__:
            return "Stopped: the output could not be written any more. What stands in it is safe: the same command goes on from there."
        case "stopped":
            return f"Stopped: {printable(summary['stop_reason'] or 'no reason was given')}. {again}"
        case "interrupted":
            return f"Interrupted. {again}"
        case _:
            return "The job is running, or was killed; if nothing runs, the same command goes on from here."


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
    yield "tokens", _tokens(summary)
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
            cost = "no known price" if model["cost"] is None else cost_in_words(model)
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


def unlisted_of(summary: Mapping[str, Any]) -> int:
    """`unlisted_tokens` of the whole job."""
    # By model, so that one whose totals are too small hides nothing of the others.
    return sum(unlisted_tokens(model["usage"]) for model in summary["models"].values())


def at_least(summary: Mapping[str, Any]) -> str:
    """What to say in front of the job's cost."""
    return "at least " if summary["usage"]["unknown"] or unlisted_of(summary) else ""


def _tokens(summary: Mapping[str, Any]) -> list[str]:
    usage = summary["usage"]
    cached = f" ({usage['cached_tokens']:,} cached)" if usage["cached_tokens"] else ""
    reasoning = f" ({usage['reasoning_tokens']:,} reasoning)" if usage["reasoning_tokens"] else ""
    parts = [
        f"{usage['prompt_tokens']:,} prompt{cached}",
        f"{usage['completion_tokens']:,} completion{reasoning}",
    ]
    if unlisted := unlisted_of(summary):
        parts.append(f"{unlisted:,} more in the totals alone (in no cost)")
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
        return [f"{at_least(summary)}{dollars(cost['total'])} ({note})", *more]
    told: list[str] = []
    untold: list[str] = []
    for name in cost["unpriced_models"]:
        usage = summary["models"].get(name, {}).get("usage", {})
        # The model may well have a price, where none of its answers says what it took.
        (untold if usage.get("unknown") and not usage["total_tokens"] else told).append(printable(name))
    unknown = [f"no known price for {told[0]}", *told[1:]] if told else []
    unknown += [f"tokens not told by {untold[0]}", *untold[1:]] if untold else []
    return (
        [f"{at_least(summary)}{dollars(cost['known_total'])} for what has a price ({note})", *more, *unknown]
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
