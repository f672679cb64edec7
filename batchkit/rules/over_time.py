"""What a job did when: what ended, was refused and took tokens, and which limits were found, in bins of time.

Bins begin at whole multiples of their width in Unix time, and a width is a power of two of seconds, so two bins make one of
the next width. Of those in which something ended so many are kept; where there would be more, all become twice as wide, as
often as it takes. So the width is the smallest that will do, and everything is the same in whatever order it is told.

An attempt that was refused counts where its request ended, which is what the lines tell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import floor
from typing import Final

from batchkit.records import FoundLimit, Outcome, TimeBin

__all__ = ["MAX_BINS", "MAX_MODELS", "MIN_EXPONENT", "Found", "OverTime", "is_news"]

MAX_BINS: Final = 120
MAX_MODELS: Final = 20
"""Of more models whose limits were found those with the smallest names are kept."""
MIN_EXPONENT: Final = -2
"""No bin is shorter than a quarter of a second."""
_SHORT_PAUSE: Final = 0.05
"""A pause between two runs is told as one in which nothing ended, up to this share of the time at work; else by no bins at all."""
_FINE: Final = 48
_TELLING: Final = 10
"""More than so many bins only if so many requests ended in each: fewer show chance, and no rate."""
_NEWS: Final = 0.05

Found = tuple[float, int, float, float, float]
"""When a line told of a limit, the line's index, and requests a minute, tokens a minute, in flight; 0 is none."""


def is_news(before: FoundLimit | None, now: FoundLimit) -> bool:
    """Whether a limit is another than the one `before`, by more than a twentieth."""
    then = before or FoundLimit(now.model)
    return any(
        one != other and (one is None or other is None or abs(other - one) > _NEWS * one)
        for one, other in (
            (then.requests_per_min, now.requests_per_min),
            (then.tokens_per_min, now.tokens_per_min),
            (then.in_flight, now.in_flight),
        )
    )


class OverTime:
    """Adds up by time. Equal to any other that was told the same, in whatever order."""

    __slots__ = ("_per_s", "bins", "exponent", "found")

    def __init__(
        self,
        exponent: int = MIN_EXPONENT,
        bins: dict[int, list[int]] | None = None,
        found: dict[str, dict[int, Found]] | None = None,
    ) -> None:
        """Begin with those of another; a bin is as many seconds wide as 2 to the power of `exponent`."""
        self.exponent = exponent
        self._per_s = 2.0**-exponent
        self.bins: dict[int, list[int]] = {} if bins is None else bins
        """Results, failures, refused attempts and tokens, by the number of the bin since 1970."""
        self.found: dict[str, dict[int, Found]] = {} if found is None else found
        """The last limit that a line told in a bin, by model."""

    def is_one_bin(self, first: float, last: float) -> bool:
        """Whether two moments, in Unix time, lie in one bin."""
        return floor(first * self._per_s) == floor(last * self._per_s)

    def apart(self, outcomes: Iterable[Outcome]) -> Iterable[Sequence[Outcome]]:
        """Outcomes by the bins that they ended in."""
        parts: dict[int, list[Outcome]] = {}
        for outcome in outcomes:
            parts.setdefault(floor(outcome.finished_at * self._per_s), []).append(outcome)
        return parts.values()

    def add(self, finished_at: float, results: int, failures: int, refused: int, tokens: int) -> None:
        """Add so many results, failures, refused attempts and tokens of requests that ended in the bin of this moment."""
        at = floor(finished_at * self._per_s)
        cell = self.bins.get(at)
        is_new = cell is None
        if cell is None:
            cell = self.bins[at] = [0, 0, 0, 0]
        cell[0] += results
        cell[1] += failures
        cell[2] += refused
        cell[3] += tokens
        if is_new:
            self._fit()

    def tell(self, outcome: Outcome) -> None:
        """Take in the limits that a line tells of."""
        at = floor(outcome.finished_at * self._per_s)
        for limit in outcome.limits:
            told = (
                outcome.finished_at,
                outcome.index,
                limit.requests_per_min or 0.0,
                limit.tokens_per_min or 0.0,
                limit.in_flight or 0.0,
            )
            self._find(limit.model, at, told)

    def merge(self, other: OverTime) -> None:
        """Add all that `other` was told."""
        self._widen(other.exponent)
        by = self.exponent - other.exponent
        for number, cell in other.bins.items():
            _add_to(self.bins, number >> by, cell)
        for model, found in other.found.items():
            for number, told in found.items():
                self._find(model, number >> by, told)
        self._fit()

    def timeline(self, worked: Iterable[tuple[float, float]]) -> tuple[float, list[TimeBin]]:
        """The width of a bin in seconds, and at most `MAX_BINS` of them, in order.

        `worked` tells from when to when each run was at work. All of that has bins, also where nothing ended; a longer pause
        between two runs has none.
        """
        runs = sorted(worked)
        spans = _bridged(runs)
        told = OverTime(self.exponent)
        told.merge(self)
        ended = sum(results + failures for results, failures, *_ in self.bins.values())
        while len(numbers := told._numbers(spans)) > min(MAX_BINS, max(_FINE, ended / _TELLING)):
            told._widen(told.exponent + 1)
        starts = [start for start, _ in runs]
        width = 1.0 / told._per_s
        known: dict[str, Found] = {}
        bins = []
        for number in numbers:
            here = {model: found[number] for model, found in told.found.items() if number in found}
            begun = bisect_left(starts, (number + 1) * width)
            since = starts[begun - 1] if begun else 0.0
            # What a run found is not known to the next one.
            known = {model: found for model, found in known.items() if found[0] >= since} | here
            limits = (_limit(model, found) for model, found in sorted(known.items()) if any(found[2:]))
            results, failures, refused, tokens = told.bins.get(number, (0, 0, 0, 0))
            bins.append(TimeBin(number * width, results, failures, refused, tokens, tuple(limits)))
        return width, bins

    def _numbers(self, spans: Sequence[tuple[float, float]]) -> Sequence[int]:
        """Of all bins of these spans; some more than `MAX_BINS` where there are too many to be counted."""
        numbers = set(self.bins)
        for start, last in spans:
            span = range(floor(start * self._per_s), floor(last * self._per_s) + 1)
            numbers.update(span[: MAX_BINS + 1])
        return sorted(numbers)

    def _find(self, model: str, number: int, told: Found) -> None:
        found = self.found.get(model)
        if found is None:
            if len(self.found) >= MAX_MODELS:
                largest = max(self.found)
                if model > largest:
                    return
                del self.found[largest]
            found = self.found[model] = {}
        found[number] = max(found.get(number, told), told)

    def _fit(self) -> None:
        while len(self.bins) > MAX_BINS:
            self._widen(self.exponent + 1)

    def _widen(self, exponent: int) -> None:
        by = exponent - self.exponent
        if by <= 0:
            return
        narrow, self.bins = self.bins, {}
        for number, cell in narrow.items():
            _add_to(self.bins, number >> by, cell)
        for model, found in self.found.items():
            wide: dict[int, Found] = {}
            for number, told in found.items():
                wide[number >> by] = max(wide.get(number >> by, told), told)
            self.found[model] = wide
        self.exponent, self._per_s = exponent, 2.0**-exponent

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OverTime):
            return NotImplemented
        return (self.exponent, self.bins, self.found) == (other.exponent, other.bins, other.found)

    __hash__ = None  # type: ignore[assignment]  # it changes with every request


def _add_to(bins: dict[int, list[int]], number: int, cell: Sequence[int]) -> None:
    bins[number] = [one + other for one, other in zip(bins.get(number, (0, 0, 0, 0)), cell, strict=True)]


def _bridged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans in order, with those that only a short pause keeps apart made one."""
    short = _SHORT_PAUSE * sum(last - start for start, last in spans)
    bridged: list[tuple[float, float]] = []
    for start, last in spans:
        if bridged and start - bridged[-1][1] <= short:
            start, before = bridged.pop()
            last = max(last, before)
        bridged.append((start, last))
    return bridged


def _limit(model: str, found: Found) -> FoundLimit:
    requests, tokens, in_flight = found[2:]
    return FoundLimit(model, requests or None, tokens or None, in_flight or None)
