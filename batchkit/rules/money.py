"""Amounts of money, added up exactly."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal
from functools import reduce
from typing import Final

__all__ = ["sum_of"]

_EXACTLY: Final = Context(prec=100)
"""No digit of a sum is rounded away, so that it is the same in any order."""


def sum_of(amounts: Iterable[Decimal]) -> Decimal:
    """What they come to; 0 for none."""
    return reduce(_EXACTLY.add, amounts, Decimal(0))
