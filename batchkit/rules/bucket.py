"""A rate, kept evenly: whoever starts waits until what it costs has come in.

It is a leaky bucket by virtual scheduling, as `rules.budget` is, for a rate that is found and not given: it changes all the time,
may be far below one start a second, and no minute has to be kept. What is counted is requests or tokens; `rules.weighing` says which.
"""

from __future__ import annotations

__all__ = ["Bucket"]

_SAVED_S = 1.0
"""Seconds' worth that time without starts saves up, and the longest that a start waits for its own cost: no server's bucket is known
to hold more. With more a pause is followed by a burst that is refused; with less a large request goes before it was earned."""
_EARLY_S = 0.05
"""Seconds before its time at which a start is let go: a nap ends late, and without this the rate would never quite be reached."""


class Bucket:
    """Lets starts go that cost `per_s` a second together; empty at a moment, from which on what comes in is counted."""

    __slots__ = ("_empty_at", "per_s")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._empty_at = 0.0

    def change(self, now: float, per_s: float) -> None:
        """From now on `per_s`. What is owed stays the same, and is paid off at the new rate."""
        if self._empty_at > now:
            self._empty_at = now + (self._empty_at - now) * self.per_s / per_s
        self.per_s = per_s

    def scale(self, factor: float) -> None:
        """Count in another unit, of which there are `factor` times as many. What is owed takes as long as before."""
        self.per_s *= factor

    def empty(self, now: float) -> None:
        """Nothing is left now."""
        self._empty_at = max(self._empty_at, now)

    def wait(self, now: float, cost: float) -> float:
        """Seconds until a start that costs so much; 0.0 is at once."""
        return max(0.0, self._empty_at + min(_SAVED_S, cost / self.per_s) - now - _EARLY_S)

    def spend(self, now: float, cost: float) -> None:
        """A start that costs so much."""
        takes_s = cost / self.per_s
        self._empty_at = max(self._empty_at, now - min(_SAVED_S, takes_s)) + takes_s
