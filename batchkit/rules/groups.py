"""A job's totals apart by what its requests say of themselves, in memory that does not grow with the number of values."""

from __future__ import annotations

from bisect import insort
from typing import Final

from batchkit.records import Outcome
from batchkit.rules.bill import Bill

__all__ = ["NO_VALUE", "OTHER_VALUES", "Group", "Groups"]

NO_VALUE: Final = "(none)"
"""Stands for the value of requests that have none."""

OTHER_VALUES: Final = "(other)"
"""Stands for all values beyond the bound, of which the smallest are kept, whatever the order they come in."""

MAX_VALUES: Final = 10_000


class Group:
    """The totals of requests with one value."""

    __slots__ = ("attempts", "bill", "failed", "succeeded")

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.attempts = 0
        self.bill = Bill()

    def add(self, outcome: Outcome, *, superseded: bool) -> None:
        """Add a request that ended; `superseded`, only what a failure cost whose request was asked again."""
        self.attempts += outcome.attempts
        self.bill.add_outcome(outcome, superseded=superseded)
        if not superseded:
            self.succeeded += outcome.succeeded
            self.failed += not outcome.succeeded

    def merge(self, other: Group) -> None:
        """Add all that `other` was told."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.attempts += other.attempts
        self.bill.merge(other.bill)


class Groups:
    """Adds up outcomes by their metadata's value of `key`. They add up to the `Tally` that was told the same."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._groups: dict[str, Group] = {}
        self._values: list[str] = []
        """Those that are kept under themselves, in order."""

    def add(self, outcome: Outcome, *, superseded: bool = False) -> None:
        """Add a request that ended; `superseded`, a failure whose request was asked again."""
        value = outcome.metadata.get(self.key, NO_VALUE)
        group = self._groups.get(value)
        if group is None:
            group = self._groups.setdefault(self._admit(value), Group())
        group.add(outcome, superseded=superseded)

    def _admit(self, value: str) -> str:
        """The value that a new one is kept under."""
        if value in (NO_VALUE, OTHER_VALUES):
            return value
        if len(self._values) == MAX_VALUES:
            if value > self._values[-1]:
                return OTHER_VALUES
            largest = self._groups.pop(self._values.pop())
            self._groups.setdefault(OTHER_VALUES, Group()).merge(largest)
        insort(self._values, value)
        return value

    @property
    def by_value(self) -> dict[str, Group]:
        """In order of the values, with those that stand for others at the end."""
        values = [*self._values, NO_VALUE, OTHER_VALUES]
        return {value: self._groups[value] for value in values if value in self._groups}
