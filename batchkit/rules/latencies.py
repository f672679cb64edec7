"""How long attempts took: percentiles of any number of them, from counted buckets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, log
from typing import Final

__all__ = ["BUCKETS", "Latencies", "Latency"]

# DDSketch (Masson, Rim, Lee 2019): bucket k counts values in (GAMMA**(k-1), GAMMA**k], so its middle is at most
# ACCURACY off. Clamped to 0.1 ms … 11 days there can be 1,150 buckets at most.
_ACCURACY: Final = 0.01
_GAMMA: Final = (1 + _ACCURACY) / (1 - _ACCURACY)
_PER_LOG: Final = 1 / log(_GAMMA)
_SHORTEST: Final = 1e-4
_LONGEST: Final = 1e6
BUCKETS: Final = range(ceil(log(_SHORTEST) * _PER_LOG), ceil(log(_LONGEST) * _PER_LOG) + 1)
"""All there can be."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that the last attempts took; the percentiles are within 1 % of a measured one, `max` is exact."""

    p50: float
    p90: float
    p99: float
    max: float


class Latencies:
    """Counts durations, in seconds. Equal to any other that was told the same, in whatever order."""

    __slots__ = ("buckets", "longest_s")

    def __init__(self, buckets: dict[int, int] | None = None, longest_s: float = 0.0) -> None:
        self.buckets: dict[int, int] = {} if buckets is None else buckets
        """How many are in each of `BUCKETS`."""
        self.longest_s = longest_s

    def add(self, seconds: float) -> None:
        """Add one."""
        self.add_all((seconds,))

    def add_all(self, durations: Iterable[float]) -> None:
        """Add several, or none."""
        buckets, longest_s = self.buckets, self.longest_s
        for seconds in durations:
            if seconds > longest_s:  # noqa: PLR1730 - every request passes here, and a call of max takes longer
                longest_s = seconds
            if _SHORTEST < seconds < _LONGEST:
                bucket = ceil(log(seconds) * _PER_LOG)
            else:
                bucket = BUCKETS[-1] if seconds >= _LONGEST else BUCKETS[0]
            buckets[bucket] = buckets.get(bucket, 0) + 1
        self.longest_s = longest_s

    def merge(self, other: Latencies) -> None:
        """Add all that `other` was told."""
        self.longest_s = max(self.longest_s, other.longest_s)
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    @property
    def percentiles(self) -> Latency | None:
        """None while there are none."""
        if not self.buckets:
            return None
        ordered = sorted(self.buckets.items())
        count = sum(self.buckets.values())

        def quantile(q: float) -> float:
            rank = q * (count - 1)
            ends = zip(ordered, accumulate(held for _, held in ordered), strict=True)
            bucket = next(bucket for (bucket, _), end in ends if end > rank)
            return min(_middle(bucket), self.longest_s)

        return Latency(quantile(0.5), quantile(0.9), quantile(0.99), self.longest_s)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Latencies):
            return NotImplemented
        return (self.buckets, self.longest_s) == (other.buckets, other.longest_s)

    __hash__ = None  # type: ignore[assignment]  # it changes with every duration


def _middle(bucket: int) -> float:
    return 2 * _GAMMA**bucket / (_GAMMA + 1)
