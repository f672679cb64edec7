"""The rate that a server's refusals tell.

A server that refuses has nothing left, so what it took from one refusal to the next is exactly its rate: that is measured, and
98 % of it begin to start. Where most was refused nothing can be measured, and the rate is halved for each round of refusals.

From then on it is kept (`rules.keeping`). A single refusal beyond the limit measures it again and lets the curve begin anew; one
below it is a stray and changes next to nothing. A limit that was announced (`rules.believing`) stands as one that was found.
"""

from __future__ import annotations

from math import sqrt

from batchkit.rules.bucket import Bucket
from batchkit.rules.budget import Reservation
from batchkit.rules.keeping import Curve
from batchkit.rules.strays import Strays

__all__ = ["GROWN_EVERY_S", "FoundRate"]

_FEWEST = 8
"""Starts from one refusal to another that are enough to measure a rate. Of fewer, one more or less is too large a share."""
_SHORTEST_S, _LONGEST_S = 0.25, 3.0
"""Seconds between the two: in less it is too early to tell, as a burst is no rate; if it takes longer, what there is must do, or a low
limit would be run into for long."""
_DRIED = 0.85
"""A known limit is lowered to this share of it when most was refused: where refusals count, nothing can be measured. Closer to 1 they go
on to be refused for another round; further from it, each such round costs what the server would have taken."""
_GUESSED_OVER_S = 0.5
"""Seconds, at least, that the first guess of a rate divides by: what began in one moment would come to any rate."""
_LOWEST_PER_S = 0.02
"""Requests a second, below which no rate is lowered: with less than one a minute nobody would notice that all is well again."""

_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
"""Seconds that everyone waits when a limit is met, and twice as many after each round in which most was refused, up to the second. With
none, those that are on their way are refused as well; long ones are what a job loses most by."""
_ROUNDS = 5
"""Rounds after which the pause is the longest: two to the power of days of them is no number any more."""
_DEBT = 2.0
"""And by how much beyond the limit the rate was, times this, in seconds: where refusals count against the limit they leave a debt."""

_FEW_STRAYS = 1
"""Where more were refused below the limit, a single refusal beyond it tells nothing either."""
_LOWERED = 0.995
"""The least share of a limit that a single refusal leaves of it: if it was a stray, little is lost, and several add up."""
_FAR, _RISEN = 0.1, 0.55
"""So far beyond the limit, as a share of it, the limit is at least the second share of the rate. A server's bucket that filled up
meanwhile hides the limit for a while, but no more than a second of it, so far beyond; with less trust a limit that rose is found late."""
GROWN_EVERY_S = 0.1
"""Seconds between two steps in which a rate grows: one for each start would cost more than it tells."""


class _Drained:
    """A moment at which the server had nothing left, and from which on is counted what it took."""

    __slots__ = ("at", "refused", "spent")

    def __init__(self, at: float, spent: float) -> None:
        self.at = at
        self.spent = spent
        self.refused = 0.0

    def until(self, reserved: Reservation) -> tuple[float, float]:
        """What the server took until it refused the one that was `reserved`, and in how many seconds."""
        return reserved.spent - self.spent - self.refused, reserved.at - self.at


class FoundRate:
    """The rate of one model, from when it is known: guessed or announced at first, then measured and kept.

    What is counted is requests or tokens, as its pacer does; `cost` is always that of the usual request.
    """

    __slots__ = ("_curve", "_drained", "_strays", "bucket", "dry", "grown_at", "more_left")

    def __init__(self, now: float, per_s: float) -> None:
        self.bucket = Bucket(per_s)
        self.grown_at = now
        self.more_left = False
        """Whether a server announces that more is left than its limit allows."""
        self._curve = Curve()
        self._drained: _Drained | None = None
        self.dry = 0
        """The rounds of refusals, one behind the other, in which most was refused; 0 again once a request is taken."""
        self._strays = 0
        """The refusals below the limit, since it was set."""

    @classmethod
    def guessed(
        cls, now: float, reserved: Reservation, started: int, seconds: float, cost: float
    ) -> FoundRate:
        """Half of what was started in the last seconds, after refusals of which that was `reserved` is the last."""
        per_s = max(_LOWEST_PER_S * cost, started / max(_GUESSED_OVER_S, seconds) * cost / 2.0)
        rate = cls(now, per_s)
        rate._restart(now, reserved, per_s)
        return rate

    @classmethod
    def announced(cls, now: float, limit: float, spent: float) -> FoundRate:
        """An announced limit, put in force when all starts had `spent` so much."""
        rate = cls(now, Curve.beginning(limit))
        rate.announce(now, limit, spent)
        return rate

    @property
    def limit(self) -> float | None:
        """The limit, a second; None while the rate is but a guess."""
        return self._curve.limit

    @property
    def pause_s(self) -> float:
        """How long everyone is to wait after a round of refusals."""
        return min(_LONGEST_PAUSE_S, _PAUSE_S * 2.0 ** min(_ROUNDS, self.dry))

    def announce(self, now: float, limit: float, spent: float) -> None:
        """Put an announced limit in force, as one that was found just now."""
        self._curve.announced(limit)
        self._curve.begin(now)
        self.grown_at = now
        self.more_left = False
        self._drained = _Drained(now, spent)
        self.dry = self._strays = 0
        self.bucket.change(now, Curve.beginning(limit))

    def not_taken(self, at: float, cost: float) -> None:
        """A request was refused that began `at`, and costs so much: to be told before anything else of a refusal."""
        if self._drained is not None and at > self._drained.at:
            self._drained.refused += cost

    def refused(self, now: float, reserved: Reservation, cost: float, *, is_first: bool) -> float | None:
        """A single refusal, the first one for long or not. How long everyone is to wait, where it shows the limit; None for a stray."""
        limit, per_s = self._curve.limit, self.bucket.per_s
        if limit is not None and per_s <= limit:
            self._curve.limit = _LOWERED * limit
            self._strays += 1
        elif limit is not None and self._strays <= _FEW_STRAYS:
            return self._met(now, reserved, cost, limit)
        if is_first:
            # A stray, or the first of those that tell of a lower limit.
            self._drained = _Drained(reserved.at, reserved.spent)
        return None

    def _met(self, now: float, reserved: Reservation, cost: float, limit: float) -> float:
        """A refusal beyond the limit, as was to be expected: what was taken since the last one is the limit."""
        per_s = self.bucket.per_s
        beyond = per_s / limit - 1.0
        told = self._measured(reserved, cost)
        if beyond > _FAR:
            # It has risen, or what filled up meanwhile has hidden it for a while.
            told = max(told, _RISEN * per_s)
        found = max(_LOWERED * limit, min(per_s, told))
        self._curve.met(found)
        self._restart(now, reserved, Curve.beginning(found))
        return min(_PAUSE_S, _DEBT * beyond)

    def lower(self, now: float, reserved: Reservation, cost: float, strays: Strays) -> bool:
        """Refusals are more than strays: begin anew with what was taken since the first of them. False if it is too early to tell."""
        curve, per_s, drained = self._curve, self.bucket.per_s, self._drained
        taken, seconds = (0.0, 0.0) if drained is None else drained.until(reserved)
        if drained is None or taken < drained.refused:
            lower = per_s / 2.0
            if curve.limit is not None and not self.dry:
                curve.limit = lower = _DRIED * min(curve.limit, per_s)
            self.dry += 1
            strays.halved()
        elif seconds >= _SHORTEST_S and taken >= _FEWEST * cost:
            curve.limit = min(per_s, self._measured(reserved, cost))
            lower = Curve.beginning(curve.limit)
            self.dry = 0
            strays.measured()
        elif seconds >= _LONGEST_S:
            curve.limit = min(curve.limit or per_s, sqrt(per_s * self._measured(reserved, cost)))
            lower = Curve.beginning(curve.limit)
        else:
            curve.begin(now)
            return False
        curve.quicken()
        self._restart(now, reserved, max(_LOWEST_PER_S * cost, lower))
        return True

    def _measured(self, reserved: Reservation, cost: float) -> float:
        """What the server took in a second, between two refusals."""
        taken, seconds = (0.0, 0.0) if self._drained is None else self._drained.until(reserved)
        # Between two moments at which it had less than one left it may have taken up to one more than it was given.
        return max(0.0, taken + cost / 2.0) / seconds if seconds > 0.0 else 0.0

    def _restart(self, now: float, reserved: Reservation, per_s: float) -> None:
        self._drained = _Drained(reserved.at, reserved.spent)
        self._curve.begin(now)
        self.grown_at = now
        self._strays = 0
        self.more_left = False
        self.bucket.change(now, per_s)
        self.bucket.empty(now)

    def grow(self, now: float, cost: float, most: float, *, paused_until: float, held_back_at: float) -> None:
        """Let the rate rise as its curve does, but by itself not beyond `most`."""
        passed_s, self.grown_at = now - self.grown_at, now
        per_s = self.bucket.per_s
        grown = self._curve.grown(
            now,
            per_s,
            cost,
            passed_s,
            paused_until=paused_until,
            held_back_at=held_back_at,
            halved=self.dry > 0,
            more_left=self.more_left,
        )
        if grown > per_s:
            self.bucket.change(now, min(grown, max(per_s, most)))

    def scale(self, factor: float) -> None:
        """Count in another unit, of which there are `factor` times as many."""
        self.bucket.scale(factor)
        if self._curve.limit is not None:
            self._curve.limit *= factor
        self._drained = None
