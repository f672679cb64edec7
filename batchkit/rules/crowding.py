"""A limit on how much is in flight, told from a limit on how much begins.

Both are met by refusals. What tells them apart is where: a server that takes so many at once refuses only when so many are
there, and never takes one beyond them; one that takes so many a second refuses at any number, and takes others at the same.
So of the attempts that began at about the number in flight at which others were refused, those are counted that were taken.

A bound that was found is held exactly, and one more is tried now and then.
"""

from __future__ import annotations

__all__ = ["Crowd"]

_TELLING = 6
_APART_S = 0.5
"""So many refusals, so far apart, are enough to tell the two apart."""
_ANSWERS, _ROUNDS = 40, 2
"""So many answers must have come to attempts that began near the number at which others were refused, and so many for each in
flight: at an even rate the number stays about where it is for as long as one answer takes."""
_FORGOTTEN_S = 300.0
"""Seconds without a refusal after which the earlier ones tell nothing of the present: servers are made larger and smaller."""
_NEAR = 0.96
"""The share of the number at which others were refused from which on an answer counts: far below it, any server takes all."""
_BEYOND = 1.03
"""Answers and refusals travel for a while, so what is counted here is a little more than what the server counts."""
_CROSSED = 0.05
"""Above this share of answers to attempts that began beyond it, a number is no bound."""
_EXPLAINED = 0.97
"""The share of a bound from which on a refusal is explained by it; one below tells of something else."""
_SHARE = 0.02
"""The share of the bound by which it is raised when x, as in `rules.keeping`, is 1: with more, a bound that holds is run into harder."""


class Crowd:
    """How many attempts may be in flight at once; `bound` is None while no limit is found."""

    __slots__ = (
        "_answers",
        "_beyond",
        "_counted_at",
        "_limit",
        "_lowest",
        "_refusals",
        "_refused_at",
        "_since",
        "bound",
    )

    def __init__(self) -> None:
        self.bound: int | None = None
        self._limit = 0
        self._forget()

    def _forget(self) -> None:
        self._since = self._refused_at = float("inf")
        self._counted_at = 0.0
        self._lowest = self._refusals = self._answers = self._beyond = 0

    def let_go(self) -> None:
        """The bound does not explain what was refused: there is none."""
        self.bound = None
        self._forget()

    def taken(self, began_at: float, level: int) -> bool:
        """An attempt was answered that began with `level` others in flight. Whether that makes a bound known."""
        # Of a low limit, too, the last places count: at the limit itself next to nothing is taken.
        if began_at < self._since or level < min(_NEAR * self._lowest, self._lowest - 2):
            return False
        self._answers += 1
        self._beyond += level >= _BEYOND * self._lowest
        if self._answers >= _ANSWERS and self._beyond > _CROSSED * self._answers:
            self._forget()
        return self._finds()

    def refused(self, now: float, began_at: float, level: int) -> bool:
        """An attempt was refused that began with `level` others in flight. Whether a bound explains it."""
        if self.bound is not None:
            if level < _EXPLAINED * self._limit - 1:
                return False
            self._limit = self.bound = max(1, min(self.bound, level))
            return True
        if now - self._refused_at > _FORGOTTEN_S:
            self._forget()
        self._refused_at = now
        if not self._lowest:
            self._since, self._lowest, self._counted_at = now, level, now
            return False
        if level < self._lowest:
            # What was taken below the old one tells nothing of the new one.
            self._lowest, self._answers, self._beyond = level, 0, 0
        # Those that were on their way already when another was refused are one with it.
        if began_at >= self._counted_at + _APART_S:
            self._counted_at = now
            self._refusals += 1
        return self._finds()

    def _finds(self) -> bool:
        if (
            self.bound is None
            and self._refusals >= _TELLING
            and self._answers >= max(_ANSWERS, _ROUNDS * self._lowest)
            and self._beyond <= _CROSSED * self._answers
        ):
            self._limit = self.bound = max(1, self._lowest)
            return True
        return False

    def grow(self, clean: float) -> bool:
        """`clean` is for how long nothing was refused, where 1 is the usual time between two tries at one more.

        True when the bound was raised for good, from where that time begins anew.
        """
        if self.bound is None or clean <= 1.0:
            return False
        self.bound = self._limit + min(
            max(1, self._limit // 4), int(_SHARE * self._limit * (clean - 1.0) ** 5)
        )
        if clean < 3.0:
            return False
        self._limit = self.bound
        return True
