"""Which indexes are done, as intervals: a few numbers, however long the job.

Requests end nearly in order, so the set is one long interval and a handful of stragglers: adding and asking cost a
bisection of those.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["DoneIndexes"]


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

    def add_all(self, indexes: Iterable[int]) -> int | None:
        """Mark all of them done, in one go where they lie together; the first that was already, or that comes twice."""
        ordered = sorted(indexes)
        if not ordered:
            return None
        first, end = ordered[0], ordered[-1] + 1
        if end - first == len(ordered) and first >= self.end and len(set(ordered)) == len(ordered):
            if self._ends and self._ends[-1] == first:
                self._ends[-1] = end
            else:
                self._starts.append(first)
                self._ends.append(end)
            self._count += end - first
            return None
        return next((index for index in ordered if not self.add(index)), None)

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
