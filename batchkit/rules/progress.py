"""Which indexes are done, as intervals: a few numbers, however long the job.

Requests end nearly in order, so the set is one long interval and a handful of stragglers: adding and asking cost a
bisection of those.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

__all__ = ["DoneIndexes"]

_MOST_SPREAD: Final = 64
"""Indexes lie together up to this many times as far as they are many: the bytes that marking them takes for each."""

_FEW: Final = 10
"""Fewer are added one by one in less time than it takes to begin to mark them."""


class DoneIndexes:
    """A set of indexes kept as disjoint half-open intervals, merged where they touch."""

    __slots__ = ("_count", "_ends", "_starts")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        """`intervals` are (first, one past the last), ascending and disjoint; anything else raises ValueError."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._count = 0
        for start, end in intervals:
            if not 0 <= start < end or (self._ends and start <= self._ends[-1]):
                raise ValueError(f"not ascending intervals: {start}-{end}")
            self._starts.append(start)
            self._ends.append(end)
            self._count += end - start

    def __contains__(self, index: int) -> bool:
        ends = self._ends
        if not ends or index >= ends[-1]:
            return False
        at = bisect_right(self._starts, index) - 1
        return at >= 0 and index < self._ends[at]

    def __len__(self) -> int:
        return self._count

    def add(self, index: int) -> bool:
        """Mark `index` done; False if it was already."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, index) - 1
        if at >= 0 and index < ends[at]:
            return False
        touches_left = at >= 0 and ends[at] == index
        touches_right = at + 1 < len(starts) and starts[at + 1] == index + 1
        if touches_left and touches_right:
            ends[at] = ends.pop(at + 1)
            del starts[at + 1]
        elif touches_left:
            ends[at] = index + 1
        elif touches_right:
            starts[at + 1] = index
        else:
            starts.insert(at + 1, index)
            ends.insert(at + 1, index + 1)
        self._count += 1
        return True

    def add_all(self, indexes: Sequence[int]) -> int | None:
        """Mark all of them done, in one go where they lie together; the first that was already, or that comes twice."""
        if len(indexes) < _FEW:
            return self._add_singly(indexes)
        first, end = min(indexes), max(indexes) + 1
        low, high = bisect_left(self._ends, first), bisect_right(self._starts, end)
        if end - first > _MOST_SPREAD * len(indexes) or high - low > len(indexes):
            # They lie far apart, or among more intervals than they are: a bisection for each is less.
            return self._add_singly(indexes)
        # A byte for each index from the first on; one more, so that every interval ends before a zero.
        marks = bytearray(end - first + 1)
        for index in indexes:
            marks[index - first] = 1
        if marks.count(1) < len(indexes):
            return self._add_singly(indexes)
        met = list(zip(self._starts[low:high], self._ends[low:high], strict=True))
        for start, stop in met:
            start, stop = max(start, first) - first, min(stop, end) - first
            if marks.find(1, start, stop) >= 0:
                return self._add_singly(indexes)
            marks[start:stop] = b"\1" * (stop - start)
        starts, ends = [], []
        at = 0
        while at >= 0:
            behind = marks.find(0, at)
            starts.append(first + at)
            ends.append(first + behind)
            at = marks.find(1, behind)
        if met:
            # They may reach beyond what is added.
            starts[0] = min(starts[0], met[0][0])
            ends[-1] = max(ends[-1], met[-1][1])
        self._starts[low:high] = starts
        self._ends[low:high] = ends
        self._count += len(indexes)
        return None

    def _add_singly(self, indexes: Iterable[int]) -> int | None:
        for index in sorted(indexes):
            if not self.add(index):
                return index
        return None

    def intervals(self) -> Iterator[tuple[int, int]]:
        """The intervals in ascending order, as the constructor takes them."""
        return zip(self._starts, self._ends, strict=True)

    def below(self, index: int) -> int:
        """How many indexes below `index` are done."""
        at = bisect_right(self._starts, index - 1)
        return sum(
            min(end, index) - start for start, end in zip(self._starts[:at], self._ends[:at], strict=True)
        )

    @property
    def end(self) -> int:
        """One past the highest index done; 0 when none is."""
        return self._ends[-1] if self._ends else 0
