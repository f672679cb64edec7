"""What happened to one request so far, and what is under way for it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import anyio

from batchkit.engine.purse import Claim
from batchkit.engine.under_way import UnderWay
from batchkit.records import Answer, Billed, Failure, FailureKind, Reply
from batchkit.rules.bill import was_withheld
from batchkit.rules.retry import Decision

__all__ = ["OVERTAKEN", "Hedge", "History"]

_HEDGED = "hedged"
"""The word in `attempts.by_reason` for an attempt whose request was answered by the one beside it."""

OVERTAKEN = Failure(
    FailureKind.TIMEOUT, _HEDGED, "the attempt beside it was answered first", maybe_billed=True
)
"""What an attempt came to that was ended for the other's answer."""


class Hedge:
    """A second attempt, beside one that takes long."""

    __slots__ = ("answer", "done", "scope", "seconds")

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled when its answer is not needed any more."""
        self.done = anyio.Event()
        self.answer: Answer | None = None
        """What it brought; None if it was not sent, before it is `done` and where it came to nothing."""
        self.seconds = 0.0


class History(UnderWay, eq=False):
    """What happened to one request so far."""

    attempts: int = 0
    faults: int = 0
    latency_s: float = 0.0
    maybe_billed: int = 0
    gateway_retries: int = 0
    failure: Failure | None = None
    """What the last attempt came to. It is counted once another has followed it: until then it may be how the request ends."""
    billed: tuple[Billed, ...] = ()
    """What the repeated attempts took, as far as they said so."""
    decision: Decision | None = None
    refused: bool = False
    """Whether the last attempt was, for its model's limit."""
    retries_fault: bool = False
    """Whether the next attempt, or the one under way, repeats one that failed by a fault, and is paid by the budget."""
    probes: bool = False
    """Whether the attempt under way finds out if an endpoint that was out of reach is back."""
    claim: Claim | None = None
    """What each attempt may cost, in a run with a `max_cost`."""
    maybe_cost: Decimal = Decimal(0)
    hedge: Hedge | None = None
    """What is under way beside the attempt."""

    reasons: Mapping[str, int] | None = None
    """How many attempts did not bring the outcome, by why; None where none did not."""

    @property
    def may_have_cost(self) -> bool:
        """Whether money may have been spent for it, though it has no outcome."""
        failure = self.failure
        return bool(self.billed or self.maybe_billed or self.maybe_cost) or (
            failure is not None and (failure.usage is not None or was_withheld(failure))
        )

    def repeated(self, failure: Failure) -> None:
        """Another attempt followed the one that came to this."""
        self.failure = None
        self.count(failure.kind.value)
        if failure.usage is not None:
            self.billed += (Billed(failure.model, failure.usage),)

    def beside(self, other: Answer) -> None:
        """Count what an attempt took that was not needed beside another."""
        unseen = other.usage is None
        if isinstance(other, Failure):
            unseen = other.maybe_billed
            self.count(_HEDGED if other is OVERTAKEN else other.kind.value)
        else:
            self.count(_HEDGED)
        if not (isinstance(other, Reply) and other.from_cache):
            self.maybe_billed += unseen
            if other.usage is not None:
                self.billed += (Billed(other.model, other.usage),)

    def count(self, reason: str) -> None:
        """Count an attempt that did not bring the outcome."""
        self.reasons = {**(self.reasons or {}), reason: self.counted(reason) + 1}

    def counted(self, reason: str) -> int:
        """How many attempts did not bring the outcome for this reason."""
        return 0 if self.reasons is None else self.reasons.get(reason, 0)
