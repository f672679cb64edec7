"""How a run ends before its input does: once, for the first reason given, and without losing what is in flight."""

from __future__ import annotations

from collections.abc import Callable

from anyio import CancelScope

from batchkit.errors import BatchkitError

__all__ = ["Stop"]


class Stop:
    """Asked for once, it begins no new attempt and cuts every wait short; attempts in flight are left to end."""

    def __init__(self) -> None:
        self.told: Callable[[BatchkitError], None] | None = None
        """Called with the cause when the run begins to stop."""
        self.abandoned = CancelScope()
        """Cancelled when the attempts in flight are not waited for either; the pipeline runs inside it."""
        self._waits: set[CancelScope] = set()
        self.cause: BatchkitError | None = None
        """Why the run stops; None while it does not."""

    def request(self, cause: BatchkitError) -> None:
        """Stop for `cause`, unless a stop was asked for already: the first cause is the one reported."""
        if self.cause is not None:
            return
        self.cause = cause
        for scope in self._waits:
            scope.cancel()
        if self.told is not None:
            self.told(cause)

    def abandon(self, cause: BatchkitError) -> None:
        """Stop without waiting for the attempts in flight: they stay open and may be billed twice."""
        self.request(cause)
        self.abandoned.cancel()

    def ends(self, scope: CancelScope) -> None:
        """Have `scope` cancelled when the run stops; `forget` it when it is left."""
        if self.cause is not None:
            scope.cancel()
        self._waits.add(scope)

    def forget(self, scope: CancelScope) -> None:
        """The wait under `scope` is over."""
        self._waits.discard(scope)
