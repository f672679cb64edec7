"""Some of many, spread evenly over them, when nobody knows beforehand how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, TypeVar

__all__ = ["EvenSample", "spread"]

T = TypeVar("T")

_SPARE: Final = 4
"""So many times what is wanted are kept at most, half as many at least: some turn out to be of no use."""


class EvenSample(Generic[T]):
    """Every n-th of what it is told, where n grows with their number; `kept` are `4 * size` at most, in their order."""

    def __init__(self, size: int) -> None:
        self.kept: list[T] = []
        self._most = _SPARE * size
        self._seen = 0
        self._step = 1

    def add(self, item: T) -> None:
        """Tell of one more."""
        if self._seen % self._step == 0:
            if len(self.kept) == self._most:
                del self.kept[1::2]
                self._step *= 2
            if self._seen % self._step == 0:
                self.kept.append(item)
        self._seen += 1


def spread(items: Sequence[T], size: int) -> list[T]:
    """`size` of the items, or all if there are no more, evenly from the first to the last."""
    if len(items) <= size:
        return list(items)
    return [items[(2 * place + 1) * len(items) // (2 * size)] for place in range(size)]
