"""What a job did when: as JSON for programs, in a line of blocks and in words for people.

    {"width_s": 4.0, "start": [1763820000.0, …], "results": [31, …], "failures": [0, …], "refused": [1, …], "tokens": [4210, …],
     "limits": {"gpt-4o-mini": {"requests_per_min": [null, 480, …]}}}

All arrays are equally long: each place is `width_s` seconds from its `start` on. Where two starts are further apart, nothing
was at work between them. What stands in the arrays adds up to the summary's own counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, Final

from batchkit.records import FoundLimit, TimeBin

__all__ = [
    "FEWEST_BINS",
    "LIMITS",
    "limit_in_words",
    "limits_in_words",
    "most_limited",
    "over_time_to_json",
    "rates",
    "refusals_in_words",
    "sparkline",
    "stretches",
    "top_of",
    "whole",
]

LIMITS: Final = {
    "requests_per_min": "requests/min",
    "tokens_per_min": "tokens/min",
    "in_flight": "in flight",
}
"""What may be limited, by its key, in the words for it."""

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_PAUSE: Final = "┆"
_MOST_BLOCKS: Final = 60
FEWEST_BINS: Final = 3
"""A picture of less is none."""
_MOST_PAUSES: Final = 12
"""With more of them their marks would be most of the line."""
_TOWERING: Final = 3.0
_MOST_LIMITS: Final = 3
_NAME_CHARS: Final = 60


def over_time_to_json(width_s: float, bins: Sequence[TimeBin]) -> dict[str, Any]:
    """The JSON object, for bins of `width_s` seconds in order."""
    limits: dict[str, dict[str, list[float | None]]] = {}
    for place, each in enumerate(bins):
        for limit in each.limits:
            for kind, value in _values(limit):
                by_kind = limits.setdefault(limit.model, {})
                by_kind.setdefault(kind, [None] * len(bins))[place] = value
    return {
        "width_s": width_s,
        "start": [each.start for each in bins],
        "results": [each.results for each in bins],
        "failures": [each.failures for each in bins],
        "refused": [each.refused for each in bins],
        "tokens": [each.tokens for each in bins],
        "limits": dict(sorted(limits.items())),
    }


def whole(value: float) -> float:
    """`value` as an integer where it is one, so that JSON has no `.0` behind it."""
    return int(value) if abs(value) < 2**53 and value == int(value) else value


def _values(limit: FoundLimit) -> Iterator[tuple[str, float]]:
    for kind in LIMITS:
        value = getattr(limit, kind)
        if value is not None:
            yield kind, whole(value)


def stretches(over_time: Mapping[str, Any]) -> list[range]:
    """The bins apart by the pauses between them."""
    start, width = over_time["start"], over_time["width_s"]
    edges = [place for place, (one, next_) in enumerate(pairwise(start), 1) if next_ - one > 1.5 * width]
    return [range(*ends) for ends in pairwise([0, *edges, len(start)])]


def rates(over_time: Mapping[str, Any], *counts: str) -> list[float]:
    """How many a second, in each bin."""
    width = over_time["width_s"]
    return [sum(each) / width for each in zip(*(over_time[count] for count in counts), strict=True)]


def top_of(values: Sequence[float]) -> float:
    """Up to where to draw `values`: all of them, but for few that are far above the rest.

    A full bucket of requests, taken at once in the first second, would else flatten all that follows.
    """
    usual = sorted(value for value in values if value > 0)
    if not usual:
        return 0.0
    nine_tenths = usual[9 * (len(usual) - 1) // 10]
    return usual[-1] if usual[-1] <= _TOWERING * nine_tenths else _TOWERING / 2 * nine_tenths


def sparkline(over_time: Mapping[str, Any]) -> tuple[str, float]:
    """The rate over time in a line of blocks, and the highest in requests a second; "" for too short a job."""
    ended = rates(over_time, "results", "failures")
    if sum(rate > 0 for rate in ended) < FEWEST_BINS:
        return "", 0.0
    parts = stretches(over_time)
    together = ceil(len(ended) / (_MOST_BLOCKS - _MOST_PAUSES))
    drawn = [
        [sum(ended[at] for at in piece) / len(piece) for piece in _pieces(part, together)] for part in parts
    ]
    every = [rate for part in drawn for rate in part]
    top = top_of(every)
    pause = _PAUSE if len(parts) <= _MOST_PAUSES else ""
    line = pause.join("".join(_block(rate / top) for rate in part) for part in drawn) if top else ""
    return line, max(every)


def _pieces(part: range, size: int) -> list[range]:
    return [part[at : at + size] for at in range(0, len(part), size)]


def _block(share: float) -> str:
    return _BLOCKS[min(len(_BLOCKS) - 1, ceil(share * (len(_BLOCKS) - 1)))]


def most_limited(over_time: Mapping[str, Any]) -> list[tuple[str, str, list[float | None]]]:
    """Model, kind and values of every limit, the largest of each kind first."""
    every = [
        (model, kind, values)
        for model, kinds in over_time["limits"].items()
        for kind, values in kinds.items()
    ]
    return sorted(every, key=lambda each: (list(LIMITS).index(each[1]), -_last(each[2]), each[0]))


def _last(values: Sequence[float | None]) -> float:
    return values[_last_place(values)] or 0.0


def _last_place(values: Sequence[float | None]) -> int:
    return max(place for place, value in enumerate(values) if value is not None)


def limits_in_words(over_time: Mapping[str, Any]) -> list[str]:
    """The limits that each model was last found to have, as `480 requests/min (gpt-4o-mini)`, the largest few."""
    latest: dict[str, int] = {}
    for model, _, values in most_limited(over_time):
        latest[model] = max(latest.get(model, 0), _last_place(values))
    found = [
        limit_in_words(model, kind, values)
        for model, kind, values in most_limited(over_time)
        if _last_place(values) == latest[model]
    ]
    more = len(found) - _MOST_LIMITS
    return found if more <= 0 else [*found[:_MOST_LIMITS], f"{more} more"]


def limit_in_words(model: str, kind: str, values: Sequence[float | None]) -> str:
    """A limit as it was last, as `480 requests/min (gpt-4o-mini)`."""
    name = model if len(model) <= _NAME_CHARS else model[: _NAME_CHARS - 1] + "…"
    return f"{_last(values):,} {LIMITS[kind]}" + (f" ({name})" if name else "")


def refusals_in_words(over_time: Mapping[str, Any], attempts: int) -> list[str]:
    """How many of the job's attempts were refused for their rate; empty if none was."""
    refused = sum(over_time["refused"])
    if not refused:
        return []
    percent = 100 * refused / max(1, attempts)
    return [f"{refused:,} of {attempts:,} attempts ({'under 0.1' if percent < 0.1 else f'{percent:.1f}'} %)"]
