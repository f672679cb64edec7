"""How many retries a server is worth: a sick one is not hammered with six attempts for each request.

Each answer earns a tenth of a retry and each retry costs one, so that a server which fails everything gets a tenth more
attempts than requests. A beginning allowance lets small jobs, and hiccups of large ones, go by unnoticed; no more than
that is ever saved up, or a million good answers would pay for a hundred thousand attempts at a server that broke after them.

When the budget is spent, new requests go on, and a retry waits its turn. It cannot wait for ever: it holds a worker, and
when all do there is no new work left to earn with, as at the end of a job. So turns are given out by how the server does:
as large a share of the workers as of late attempts was answered may be retrying at a time, down to one after ever longer
waits. A retry that fails tells of its own request, which may be one that no server answers, so only new requests count
against the server. One that fails a third of them is served at nearly full speed, though far more than a tenth of its
attempts are retries; one that fails everything is asked twice a minute, and wins back its share as it answers.
"""

from __future__ import annotations

from math import inf

from batchkit.records import Failure
from batchkit.rules.retry import StopRun

__all__ = ["RetryBudget"]

_PRICE = 10
"""So many answers earn one retry."""
_ALLOWANCE = 1000
"""All retries that 200 requests can need, so that a small job fails as --max-attempts says, and without a wait."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_DOUBLINGS = 6
"""After so many the wait is at its longest."""
_WATCHED = 32
"""Over how many attempts the share that is answered is averaged."""
_SICK_FOR_S = 3600.0
"""A server is waited for as long as a network is (`rules.stopping`)."""


class RetryBudget:
    """The retries of one run. `workers` is how many requests may be under way at once."""

    __slots__ = (
        "_answered",
        "_in_vain",
        "_left",
        "_most",
        "_next_at",
        "_out",
        "_sick_since",
        "_workers",
        "well",
    )

    def __init__(self, workers: int) -> None:
        self._workers = workers
        # A hiccup meets every worker once.
        self._most = _PRICE * max(_ALLOWANCE, workers)
        self._left = self._most
        self._answered = 1.0
        self._in_vain = 0
        self._out = 0
        self._next_at = 0.0
        self._sick_since: float | None = None
        self.well = True
        """Whether nothing is left that `answered` would make better."""

    @property
    def _at_once(self) -> int:
        return int(self._workers * self._answered)

    @property
    def spent(self) -> bool:
        """Whether the next retry has to wait for its turn."""
        return self._left < _PRICE

    @property
    def waiting_it_out(self) -> bool:
        """Whether retries go one at a time, because more attempts fail than are answered."""
        return self.spent and self._at_once < 1

    def ask(self, now: float) -> float:
        """0.0 when a retry may start, and is then counted; else the seconds until asking again, or until `ended`.

        Who is let start calls `ended` when its attempt is over.
        """
        if self.spent:
            if self._out >= max(1, self._at_once):
                return inf
            if self._next_at > now:
                return self._next_at - now
        else:
            self._left -= _PRICE
            self.well = False
        self._out += 1
        return 0.0

    def ended(self) -> None:
        """A retry's attempt is over, however it ended."""
        self._out -= 1

    def answered(self) -> None:
        """The server gave an answer for good, to a new request or to a retry."""
        if self.well:
            return
        before = self._answered
        self._answered += (1.0 - self._answered) / _WATCHED
        self._in_vain = 0
        self._next_at = 0.0
        self._sick_since = None
        if self._left < self._most:
            self._left += 1
        else:
            self.well = self._answered == before

    def failed(self, failure: Failure, now: float, jitter: float, *, retry: bool = False) -> StopRun | None:
        """An attempt, or a `retry`, was a fault (`rules.retry.is_fault`); `jitter` is random in [0, 1).

        Whether the run ends with it: after an hour of nothing else, in which the budget was spent.
        """
        self.well = False
        if self._sick_since is None:
            self._sick_since = now
        if not retry:
            self._answered -= self._answered / _WATCHED
        if self._at_once < 1:
            longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(_DOUBLINGS, self._in_vain))
            self._in_vain += 1
            self._next_at = now + longest * (1.0 + jitter) / 2.0
        if self.spent and now - self._sick_since >= _SICK_FOR_S:
            return StopRun(
                "server_failing",
                f"nothing but failures for an hour, of late: {failure.message or failure.code}",
            )
        return None
