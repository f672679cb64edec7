"""How much a run may still spend: what is spent, what is reserved for attempts on their way, and what is left of the cap.

An attempt reserves the most it can cost before it starts, and settles for what it cost, or for all that was reserved where
nobody can tell. So what is spent and reserved together never passes the cap: not while attempts are in flight, and not
whatever becomes of them.

It never passes what is `authorised` either, which is what survives the process: who starts after a kill finds it written
down, and takes all of it for spent that no line of the output tells of. It goes up in steps, since each is a write that is
waited for.
"""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Final

__all__ = ["Spending"]

_EXACTLY: Final = Context(prec=60)
_STEP: Final = Decimal("0.01")
"""The share of the cap that is authorised beyond what is needed: a hundred writes to a job."""
_NOTHING: Final = Decimal(0)


class Spending:
    """US dollars, exactly. `spent` is what runs before have spent, or may have."""

    __slots__ = ("authorised", "cap", "reserved", "spent", "unsure")

    def __init__(self, cap: Decimal, spent: Decimal = _NOTHING, *, authorised: Decimal = _NOTHING) -> None:
        self.cap = cap
        self.spent = spent
        self.reserved = _NOTHING
        """For attempts that are on their way."""
        self.unsure = _NOTHING
        """The part of what this run spent that may not have been billed, at its most."""
        self.authorised = authorised
        """What `spent` and `reserved` may come to together until more is written down."""

    @property
    def used(self) -> Decimal:
        """Spent and reserved together."""
        return _EXACTLY.add(self.spent, self.reserved)

    @property
    def left(self) -> Decimal:
        """What may still be reserved; 0 where a smaller cap than before is passed already."""
        return max(_NOTHING, _EXACTLY.subtract(self.cap, self.used))

    def reserve(self, amount: Decimal) -> bool:
        """Reserve `amount`, if it is authorised."""
        reserved = _EXACTLY.add(self.reserved, amount)
        if _EXACTLY.add(self.spent, reserved) > self.authorised:
            return False
        self.reserved = reserved
        return True

    def fits(self, amount: Decimal) -> bool:
        """Whether the cap has room for `amount` beside all that is spent and reserved."""
        return _EXACTLY.add(self.used, amount) <= self.cap

    def mark_for(self, amount: Decimal) -> Decimal:
        """What to authorise, so that `amount`, which fits, can be reserved, and some more."""
        return min(self.cap, _EXACTLY.add(_EXACTLY.add(self.used, amount), self.cap * _STEP))

    def settle(self, reserved: Decimal, known: Decimal | None, unsure: Decimal = _NOTHING) -> Decimal:
        """Give back what was `reserved` for an attempt, for what it cost: `known`, and what it may have cost beside it.

        None is not known: all that was reserved counts as spent. Returns what may not have been billed.
        """
        if known is None:
            known, unsure = _NOTHING, reserved
        self.reserved = _EXACTLY.subtract(self.reserved, reserved)
        self.spent = _EXACTLY.add(self.spent, _EXACTLY.add(known, unsure))
        self.unsure = _EXACTLY.add(self.unsure, unsure)
        return unsure
