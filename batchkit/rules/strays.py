"""Whether refusals are more than strays: some servers refuse one in a hundred for no reason, and that is no limit.

It is a CUSUM chart in the order of starts: each refusal counts one, each start takes a few percent of one away, and at a certain
score it alarms. What began in one burst is refused all at once, so it is counted by when it began, and not by when the answer came.
"""

from __future__ import annotations

__all__ = ["Strays"]

_TOLERATED, _ALARMING = 0.02, 5.0
"""Where a rate is known: the share of refusals that are strays, and the score at which they are more. A server that refuses as many as
are tolerated is slowed down for nothing now and then; with more tolerated, a limit that fell is noticed later."""
_TOLERATED_FREE, _ALARMING_FREE = 0.03, 8.0
"""The same where none is: there is more to lose by a false alarm, which 1 % strays raise there once in a million refusals."""
_MEASURED = 2.0
"""The most that the score is once a limit was measured: a single stray does not lower it again, and a few refusals do."""
_HALVED = 4.0
"""And once a rate was halved: two more refusals lower it again, and a stray does not."""


class Strays:
    """The score of one model's refusals."""

    __slots__ = ("_alarming", "_at", "_score")

    def __init__(self) -> None:
        self._score = 0.0
        self._alarming = _ALARMING_FREE
        self._at = 0.0
        """What all starts had cost at the latest one that was refused."""

    def refused(self, spent: float, cost: float, *, known: bool) -> None:
        """An attempt was refused before which all had `spent` so much, at a usual `cost` each; `known` is whether a rate is."""
        tolerated, self._alarming = (_TOLERATED, _ALARMING) if known else (_TOLERATED_FREE, _ALARMING_FREE)
        starts = max(0.0, spent - self._at) / cost
        self._score = min(max(0.0, self._score - tolerated * starts), self._alarming) + 1.0
        self._at = max(self._at, spent)

    @property
    def alarms(self) -> bool:
        """Whether there are more than strays."""
        return self._score >= self._alarming

    @property
    def is_first(self) -> bool:
        """Whether the latest is a stray by itself, or the first of those that tell of a limit."""
        return self._score == 1.0

    def measured(self) -> None:
        """A limit was measured that explains them."""
        self._score = min(self._score, _MEASURED)

    def halved(self) -> None:
        """The rate was lowered so far that they should end."""
        self._score = min(self._score, _HALVED)

    def forget(self) -> None:
        """Something else explains them."""
        self._score = 0.0

    def begin(self, spent: float) -> None:
        """Another limit is in force, from when all starts had `spent` so much."""
        self._score, self._at = 0.0, spent

    def scale(self, factor: float) -> None:
        """Costs are counted in another unit, of which there are `factor` times as many."""
        self._at *= factor
