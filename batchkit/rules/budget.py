"""A limit a minute, kept: evenly at every moment, and never passed in any sixty seconds.

Two things hold a start back. The pace is a GCRA, the virtual-scheduling form of a leaky bucket (ITU-T I.371): it remembers
one moment, the theoretical arrival time, and a start pushes that moment on by cost / rate, so that nothing is bursted but
50 ms. The minute is a sum over the last sixty seconds, which the pace alone would let pass where costs turn out higher than
they were reserved: what is on its way is counted with the error that forecasts had lately.
"""

from __future__ import annotations

from math import sqrt

from msgspec import Struct

__all__ = ["Budget", "Ceilings", "Reservation"]

_BURST_S = 0.05
"""Seconds that starts may come early: a nap ends late, and without it a limit would never quite be used up."""
_REFUNDED_S = 2.0
"""Seconds' worth of the pace, at most, that is given back where less was taken than reserved: more would be a burst."""
_MINUTE_S = 60
"""The window, in whole seconds, over which a limit is kept."""
_SLOTS_PER_S = 10
"""Parts of a second that are summed up by themselves: with fewer, what a minute frees comes in jerks; each costs memory."""
_SLOTS = _MINUTE_S * _SLOTS_PER_S + 1
"""One more than a minute has: the oldest counts until the last moment of it is sixty seconds ago."""
_ROUNDING = 1e-9
"""The share of a ceiling that sums of floats may be off by."""
_DEVIATIONS = 4.0
"""By how many standard deviations what is on its way may cost more than was reserved for it."""
_IN_HAND = 0.01
"""The share of a minute that is kept for a single answer that is longer than anything before it."""
_GUESSED = 5
"""As many answers' worth is the guess that forecasts are right on average, and off by the half."""
_GUESSED_VARIANCE = 0.25
"""The square of that half."""
_REMEMBERED = 100
"""Over how many settled reservations the error of forecasts is averaged."""


class Reservation(Struct, frozen=True, gc=False):
    """What an attempt that began `at`, in seconds on the pacer's clock, is forecast to cost: 1 request, so many tokens.

    `spent` is what all attempts had cost by then, and `level` how many others were in flight, both as its pacer counts them.
    """

    at: float
    tokens: float = 0.0
    spent: float = 0.0
    level: int = 0


class Budget:
    """No more than `ceiling` in any minute, at an even pace of `per_s`; None is no limit."""

    __slots__ = ("_arrival", "_ceiling", "_error", "_pending", "_refunded_s", "_spent", "_squares", "per_s")

    def __init__(self, ceiling: float | None, *, exact: bool = False) -> None:
        """`exact` costs are known when they are spent, and never settled."""
        self.per_s = None if ceiling is None else ceiling / _MINUTE_S
        self._ceiling = ceiling
        self._arrival = 0.0
        self._refunded_s = 0.0
        self._spent, self._pending, self._squares = _LastMinute(), _LastMinute(), _LastMinute()
        self._error = None if exact else _Error()

    def wait(self, now: float, cost: float) -> float:
        """Seconds until `cost` may be spent, as far as is known now; 0.0 is at once."""
        if self._ceiling is None:
            return 0.0
        wait = max(0.0, self._arrival - now - _BURST_S)
        spent = self._spent.total(now)
        if spent <= _ROUNDING * self._ceiling:
            # The first of a minute, which may be larger than a minute's worth.
            return wait
        over = spent + cost - self._ceiling
        if self._error is not None:
            over += _IN_HAND * self._ceiling
            over += self._error.doubt(self._pending.total(now) + cost, self._squares.total(now) + cost * cost)
        return wait if over <= _ROUNDING * self._ceiling else max(wait, self._spent.until_less_by(now, over))

    def spend(self, now: float, cost: float) -> None:
        """A start that costs just `cost`."""
        if self._ceiling is not None:
            self._pay(now, cost)
            self._spent.add(now, now, cost)

    def reserve(self, now: float, cost: float) -> None:
        """A start that is forecast to cost `cost`; `settle` follows."""
        self.spend(now, cost)
        if self._ceiling is not None:
            self._pending.add(now, now, cost)
            self._squares.add(now, now, cost * cost)

    def settle(
        self, now: float, at: float, reserved: float, actual: float | None, *, usual: bool = True
    ) -> None:
        """Put right what was reserved `at`; None leaves it at that. `usual` says that it tells of other forecasts too.

        What was reserved for nothing brings the next start nearer.
        """
        if self.per_s is None or self._ceiling is None:
            return
        self._pending.add(now, at, -reserved)
        self._squares.add(now, at, -reserved * reserved)
        if actual is None:
            return
        if usual and reserved > 0.0 and self._error is not None:
            self._error.learn(actual / reserved)
        more = actual - reserved
        self._spent.add(now, at, more)
        if more > 0.0:
            self._pay(now, more)
            return
        self._arrival += more / self.per_s
        self._refunded_s = min(_REFUNDED_S, self._refunded_s - more / self.per_s)

    def _pay(self, now: float, cost: float) -> None:
        assert self.per_s is not None
        # Time in which nobody came is lost; time that a refund gave while somebody was told to wait is not.
        self._refunded_s = min(self._refunded_s, max(0.0, now - self._arrival))
        self._arrival = max(self._arrival, now - self._refunded_s) + cost / self.per_s


class Ceilings:
    """The requests and tokens a minute that are given, over all models together; None is no limit."""

    __slots__ = ("given", "requests", "tokens")

    def __init__(self, rpm: float | None, tpm: float | None) -> None:
        self.requests = Budget(rpm, exact=True)
        self.tokens = Budget(tpm)
        self.given = rpm is not None or tpm is not None
        """Whether there is any."""

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until a request of so many `tokens` may start; 0.0 is at once."""
        return max(self.requests.wait(now, 1.0), self.tokens.wait(now, tokens)) if self.given else 0.0

    def spend(self, now: float, tokens: float) -> None:
        """A request of so many `tokens` starts; `settle` follows."""
        if self.given:
            self.requests.spend(now, 1.0)
            self.tokens.reserve(now, tokens)

    def settle(self, now: float, reserved: Reservation, actual: float | None, *, usual: bool = True) -> None:
        """Put right what was `reserved`, as `Budget.settle` does."""
        if self.given:
            self.tokens.settle(now, reserved.at, reserved.tokens, actual, usual=usual)


class _Error:
    """By what factor costs came out higher than they were reserved, and how much that factor varies."""

    __slots__ = ("_count", "_mean", "_variance")

    def __init__(self) -> None:
        self._count = _GUESSED
        self._mean = 1.0
        self._variance = _GUESSED_VARIANCE

    def learn(self, factor: float) -> None:
        self._count = min(_REMEMBERED, self._count + 1)
        share = 1.0 / self._count
        off = factor - self._mean
        self._mean += share * off
        self._variance = (1.0 - share) * (self._variance + share * off * off)

    def doubt(self, pending: float, squares: float) -> float:
        """How much more than `pending`, a sum of reservations with that sum of `squares`, may be spent in the end."""
        return (self._mean - 1.0) * pending + _DEVIATIONS * sqrt(max(0.0, self._variance * squares))


class _LastMinute:
    """A sum over what began in the last sixty seconds, in slots of a tenth of a second: constant memory at any rate."""

    __slots__ = ("_slot", "_slots", "_total")

    def __init__(self) -> None:
        self._slots = [0.0] * _SLOTS
        self._slot = 0
        self._total = 0.0

    def add(self, now: float, at: float, amount: float) -> None:
        """Add to what began `at`, if that is not over a minute ago."""
        self._advance(now)
        slot = int(at * _SLOTS_PER_S)
        if slot > self._slot - _SLOTS:
            self._slots[slot % _SLOTS] += amount
            self._total += amount

    def total(self, now: float) -> float:
        self._advance(now)
        return self._total

    def until_less_by(self, now: float, amount: float) -> float:
        """Seconds until so much of the sum is over a minute ago."""
        slot = self._slot - _SLOTS
        while amount > 0.0 and slot < self._slot:
            slot += 1
            amount -= self._slots[slot % _SLOTS]
        return max(0.0, (slot + _SLOTS) / _SLOTS_PER_S - now)

    def _advance(self, now: float) -> None:
        slot = int(now * _SLOTS_PER_S)
        for passed in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            self._total -= self._slots[passed % _SLOTS]
            self._slots[passed % _SLOTS] = 0.0
        self._slot = max(self._slot, slot)
