"""When a job was at work: its runs, from each one's start to the last request that ended in it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import inf
from typing import Final

from batchkit.rules.money import sum_of

__all__ = ["Run", "Runs"]

MAX_RUNS: Final = 1000


@dataclass(slots=True)
class Run:
    """A run that began at `started_at`, in Unix time; `last` is when a request last ended in it, -inf if none did.

    `simulated`, `in_flight_before` and `unseen_cost` are those of its `RunHeader`.
    """

    started_at: float
    last: float = -inf
    simulated: bool = False
    in_flight_before: int = 0
    unseen_cost: Decimal = Decimal(0)

    def absorb(self, later: Run) -> None:
        """Be this run and a later one together."""
        self.last = max(self.last, later.last)
        self.simulated = self.simulated and later.simulated
        self.in_flight_before += later.in_flight_before
        self.unseen_cost = sum_of((self.unseen_cost, later.unseen_cost))


class Runs:
    """Equal to any other that was told the same, in whatever order.

    Begin a run before its requests end: one is credited to the last run that began no later than it ended. A run that is begun
    after them is put right as far as can be, with the pause in front of it counted as work.
    """

    __slots__ = ("_runs", "_starts", "stray")

    def __init__(self, worked: Iterable[Run] = (), stray: tuple[float, float] | None = None) -> None:
        """Begin with those of another, `worked` in order."""
        self._runs = list(worked)
        self._starts = [run.started_at for run in self._runs]
        self.stray = stray
        """First and last end of what ended before any run began: lines that others wrote, or a clock set back."""

    def begin(self, run: Run) -> None:
        """Begin a run in which nothing has ended yet; again for the same start does nothing."""
        place = bisect_left(self._starts, run.started_at)
        if place < len(self._starts) and self._starts[place] == run.started_at:
            return
        if place and self._runs[place - 1].last >= run.started_at:
            before = self._runs[place - 1]
            run.last, before.last = before.last, run.started_at
        elif not place and self.stray and self.stray[1] >= run.started_at:
            first, run.last = self.stray
            self.stray = (first, run.started_at) if first < run.started_at else None
        self._starts.insert(place, run.started_at)
        self._runs.insert(place, run)
        if len(self._runs) > MAX_RUNS:
            # The first run takes in the second: what is kept is the first start and the latest ones, in any order.
            self._runs[0].absorb(self._runs.pop(1))
            del self._starts[1]

    def credit(self, finished_at: float) -> None:
        """A request ended at `finished_at`, in Unix time."""
        starts = self._starts
        if place := bisect_right(starts, finished_at):
            run = self._runs[place - 1]
            run.last = max(run.last, finished_at)
        else:
            first, last = self.stray or (finished_at, finished_at)
            self.stray = (min(first, finished_at), max(last, finished_at))

    def credit_all(self, ends: Sequence[float]) -> None:
        """Requests, at least one, ended at these moments, which are in order."""
        if self._starts and ends[0] >= self._starts[-1]:
            self._runs[-1].last = max(self._runs[-1].last, ends[-1])
        else:
            for finished_at in ends:
                self.credit(finished_at)

    def merge(self, other: Runs) -> None:
        """Add all that `other` was told; equal to having been told it, where the two know different runs."""
        for run in other._runs:
            self.begin(replace(run, last=-inf))
            if run.last >= run.started_at:
                self.credit(run.last)
        for finished_at in other.stray or ():
            self.credit(finished_at)

    @property
    def worked(self) -> list[Run]:
        """The runs in which something ended, by their start. Others left no line, so the files could not tell of them."""
        return [run for run in self._runs if run.last >= run.started_at]

    def has_worked(self, started_at: float) -> bool:
        """Whether anything ended in the run that began then."""
        return any(run.started_at == started_at for run in reversed(self.worked))

    @property
    def started_at(self) -> float | None:
        """When the first run began; None while nothing ended."""
        return min((start for start, _ in self.spans), default=None)

    @property
    def finished_at(self) -> float | None:
        """When a request last ended; None while nothing ended."""
        return max((last for _, last in self.spans), default=None)

    @property
    def active_s(self) -> float:
        """Seconds at work: of each run from its start to the last request that ended in it."""
        return sum(last - start for start, last in self.spans)

    @property
    def simulated(self) -> bool:
        """Whether all runs were simulated and cost nothing."""
        worked = self.worked
        return bool(worked) and self.stray is None and all(run.simulated for run in worked)

    @property
    def in_flight_before(self) -> int:
        """How many answers at most were on their way when runs were killed."""
        return sum(run.in_flight_before for run in self.worked)

    @property
    def unseen_cost(self) -> Decimal:
        """The most, in US dollars, that runs may have spent without writing a line of it."""
        return sum_of(run.unseen_cost for run in self.worked)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """When the job was at work, as Unix times: from each run's start to the last request that ended in it."""
        spans = [(run.started_at, run.last) for run in self.worked]
        return spans if self.stray is None else [self.stray, *spans]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Runs):
            return NotImplemented
        return (self.stray, self.worked) == (other.stray, other.worked)

    __hash__ = None  # type: ignore[assignment]  # it changes with every request
