"""Hedging: a second attempt beside one that takes long, for the first usable answer of the two.

It is for what is left when the rest is answered, and there it costs what it is allowed to: a share of the attempts. While the
run has better use for an attempt (requests wait, all are in flight that may be) or the server has enough of them (it refuses,
fails, cannot be reached), there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from batchkit.engine.under_way import UnderWay
from batchkit.records import Answer, Failure, FailureKind

__all__ = ["HEDGED", "OVERTAKEN", "Hedge", "Hedging"]

HEDGED = "hedged"
"""The word in `attempts.by_reason` for an attempt whose request was answered by the one beside it."""

OVERTAKEN = Failure(
    FailureKind.TIMEOUT, HEDGED, "the attempt beside it was answered first", maybe_billed=True
)
"""What an attempt came to that was ended for the other's answer."""


class Hedge:
    """A second attempt."""

    __slots__ = ("answer", "done", "scope", "seconds")

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled when its answer is not needed any more."""
        self.done = anyio.Event()
        self.answer: Answer | None = None
        """What it brought; None if it was not sent, before it is `done` and where it came to nothing."""
        self.seconds = 0.0


class Hedging:
    """When there is a second attempt: at most `share` of what `answered` gives, while `has_room` says so."""

    def __init__(self, share: float, *, answered: Callable[[], int], has_room: Callable[[], bool]) -> None:
        self._share = share
        self._answered = answered
        self._has_room = has_room
        self._hedges = 0

    @property
    def affordable(self) -> bool:
        """Whether there may be one more now."""
        return self._hedges + 1 <= self._share * self._answered() and self._has_room()

    def begins(self, each: UnderWay, took: float) -> bool:
        """Whether there is to be one beside an attempt that is under way for so long; it is counted then."""
        if each.hedged:
            return False
        slow_s = each.patience.slow_s(each.request.max_tokens)
        if slow_s is None or took < slow_s or not self.affordable:
            return False
        self._hedges += 1
        each.hedged = True
        return True

    def withdrawn(self, each: UnderWay) -> None:
        """One that was counted was not made."""
        self._hedges -= 1
        each.hedged = False
