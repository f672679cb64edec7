"""Names that others choose, and what is counted under them, in memory that does not grow with their number.

Of more names than are kept the smallest stay, which is the same set in whatever order they come, and each of them has been
counted under itself from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["OTHER", "admit"]

OTHER: Final = "other"
"""Stands for all names beyond the bound."""

MAX_NAME: Final = 200

T = TypeVar("T")


def admit(
    kept: dict[str, T],
    name: str,
    most: int,
    merge: Callable[[T, T], T],
    *,
    other: str = OTHER,
    longest: int = MAX_NAME,
) -> str:
    """The name under which a new `name` is kept: its own, or `other` when `most` smaller names are there already.

    A name that is pushed out by a smaller one is merged into `other`. Names are cut after `longest` characters.
    """
    name = name[:longest]
    if name in kept or name == other:
        return name
    names = [each for each in kept if each != other]
    if len(names) < most:
        return name
    largest = max(names)
    if name > largest:
        return other
    pushed_out = kept.pop(largest)
    kept[other] = merge(kept[other], pushed_out) if other in kept else pushed_out
    return name
