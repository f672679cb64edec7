"""The totals of a job: a fold over its outcomes, in memory that does not grow with their number.

The same `Tally` is kept while a job runs and built again from the output files, and the two must be equal. So nothing
in it depends on the order in which outcomes are added: counts are sums, examples are those of the lowest index,
percentiles come from counted buckets, and where names must be bounded the smallest stay, which is the same set in any
order.

    a line with a header   → begin_run(header)       whose run the following outcomes are
    a line                 → add(outcome)
    a failure asked again  → add_superseded(outcome) what it cost stays, as a retry; it is no request any more

`rules.tally_state` writes it down and reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from typing import Any, Final

from batchkit.records import Failure, FailureKind, Outcome, Reply, RunHeader, TimeBin, Usage
from batchkit.rules.bill import RESULTS, Bill, ModelTotal, OutcomeTotal
from batchkit.rules.latencies import Latencies, Latency
from batchkit.rules.money import sum_of
from batchkit.rules.names import admit
from batchkit.rules.over_time import OverTime
from batchkit.rules.runs import Run, Runs

__all__ = ["ErrorTotal", "Tally"]

MAX_CODES: Final = 100
_RATE_LIMITED: Final = FailureKind.RATE_LIMITED.value
_OVERLOADED: Final = FailureKind.OVERLOADED.value


@dataclass(frozen=True, slots=True)
class ErrorTotal:
    """Failures with one code; `example` is the custom_id of the first in the input."""

    count: int
    example: str


class Tally:
    """Adds up outcomes. Equal to any other that was told the same, in whatever order.

    Begin a run before its outcomes are added (`rules.runs` tells what else happens).
    """

    __slots__ = (
        "attempts",
        "bill",
        "codes",
        "failed",
        "gateway_retries",
        "latencies",
        "maybe_billed",
        "maybe_cost",
        "over_time",
        "reasons",
        "runs",
        "succeeded",
        "truncated",
    )

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.truncated = 0
        """Results that ran into their length limit."""
        self.attempts = 0
        self.gateway_retries = 0
        """What gateways added to the attempts, at least."""
        self.maybe_billed = 0
        """Attempts whose answer never came, though the provider may have charged for it."""
        self.maybe_cost = Decimal(0)
        """The most, in US dollars, that attempts whose usage is not known may have cost, as far as it was reckoned."""
        self.bill = Bill()
        self.latencies = Latencies()
        """Of all that was sent."""
        self.runs = Runs()
        self.over_time = OverTime()
        """What ended when, and which limits were found."""
        self.reasons: dict[str, int] = {}
        self.codes: dict[str, list[Any]] = {}
        """Failures by their code: how many, index and custom_id of the first in the input."""

    # ---------------------------------------------------------------------------------------------- adding

    def begin_run(self, header: RunHeader) -> None:
        """Begin the run that `header` tells of; again for the same run does nothing."""
        self.runs.begin(
            Run(
                header.started_at,
                simulated=header.simulated,
                in_flight_before=header.in_flight_before,
                unseen_cost=header.unseen_cost,
            )
        )

    def add(self, outcome: Outcome) -> None:
        """Add a request that ended."""
        self.add_all((outcome,))

    def add_superseded(self, outcome: Outcome) -> None:
        """Add what a failure cost that was asked again, a retry of the job's: no request any more, and no error."""
        self.add_all((outcome,), superseded=True)

    def add_all(self, outcomes: Sequence[Outcome], *, superseded: bool = False) -> None:
        """Add several that ended, or none, which together take less work than one after the other."""
        if not outcomes:
            return
        ends = sorted([outcome.finished_at for outcome in outcomes])
        if len(ends) > 1 and not self.over_time.is_one_bin(ends[0], ends[-1]):
            for part in self.over_time.apart(outcomes):
                self.add_all(part, superseded=superseded)
            return
        self.runs.credit_all(ends)
        results = failures = truncated = attempts = refused = tokens = 0
        is_news = not superseded
        seconds = []
        bill = self.bill
        for outcome in outcomes:
            answer = outcome.answer
            if isinstance(answer, Reply):
                results += 1
                tokens += bill.add(RESULTS, answer.model, answer.usage, from_cache=answer.from_cache)
                if answer.finish_reason == "length":
                    truncated += 1
            else:
                failures += 1
                tokens += bill.add_failure(answer, superseded=superseded)
                if not superseded:
                    self._add_error(answer, outcome)
            if outcome.attempts:
                attempts += outcome.attempts
                seconds.append(outcome.latency_s)
            # What few have is asked of each, and not added up.
            if outcome.gateway_retries:
                self.gateway_retries += outcome.gateway_retries
            if outcome.maybe_billed:
                self.maybe_billed += outcome.maybe_billed
            if outcome.maybe_cost:
                self.maybe_cost = sum_of((self.maybe_cost, outcome.maybe_cost))
            if outcome.retries:
                self._add_reasons(outcome.retries)
                refused += outcome.retries.get(_RATE_LIMITED, 0) + outcome.retries.get(_OVERLOADED, 0)
            if outcome.billed:
                tokens += bill.add_billed(outcome.billed)
            if outcome.limits:
                self.over_time.tell(outcome)
                is_news = True
        self.attempts += attempts
        if superseded:
            results = failures = 0
        else:
            self.succeeded += results
            self.failed += failures
            self.truncated += truncated
            self.latencies.add_all(seconds)
        if is_news or refused or tokens:
            self.over_time.add(ends[0], results, failures, refused, tokens)

    def merge(self, other: Tally) -> None:
        """Add all that `other` was told; equal to having been told it, where the two know different runs."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.truncated += other.truncated
        self.attempts += other.attempts
        self.gateway_retries += other.gateway_retries
        self.maybe_billed += other.maybe_billed
        self.maybe_cost = sum_of((self.maybe_cost, other.maybe_cost))
        self.bill.merge(other.bill)
        self.latencies.merge(other.latencies)
        self.runs.merge(other.runs)
        self.over_time.merge(other.over_time)
        self._add_reasons(other.reasons)
        for code, error in other.codes.items():
            name = admit(self.codes, code, MAX_CODES, _add_errors)
            _add_errors(self.codes.setdefault(name, [0, inf, ""]), error)

    def _add_reasons(self, retries: Mapping[str, int]) -> None:
        reasons = self.reasons
        for reason, count in retries.items():
            if reason not in reasons:
                reason = admit(reasons, reason, MAX_CODES, _add_counts)
            reasons[reason] = reasons.get(reason, 0) + count

    def _add_error(self, failure: Failure, outcome: Outcome) -> None:
        code = failure.code
        if code not in self.codes:
            code = admit(self.codes, code, MAX_CODES, _add_errors)
        _add_errors(self.codes.setdefault(code, [0, inf, ""]), [1, outcome.index, outcome.custom_id])

    # ---------------------------------------------------------------------------------------------- reading

    @property
    def by_reason(self) -> dict[str, int]:
        """Attempts that were repeated, by why."""
        return dict(sorted(self.reasons.items()))

    @property
    def models(self) -> dict[str, ModelTotal]:
        """What each model answered, by its name as the answers spell it."""
        return self.bill.models

    @property
    def outcomes(self) -> dict[str, OutcomeTotal]:
        """What answers took, by what became of them."""
        return self.bill.outcomes

    @property
    def usage(self) -> Usage:
        """All tokens."""
        return self.bill.total.usage

    @property
    def from_cache(self) -> int:
        """Results that a gateway had already, and nobody billed."""
        return self.bill.from_cache

    @property
    def unknown(self) -> int:
        """Answers whose usage is not known; it is in no other figure."""
        return self.bill.total.unknown

    @property
    def latency(self) -> Latency | None:
        """Of the last attempts; None while nothing was sent."""
        return self.latencies.percentiles

    @property
    def errors(self) -> dict[str, ErrorTotal]:
        """Failures by their code."""
        return {code: ErrorTotal(count, example) for code, (count, _, example) in sorted(self.codes.items())}

    @property
    def started_at(self) -> float | None:
        """When the job's first run began, Unix time in seconds; None while nothing ended."""
        return self.runs.started_at

    @property
    def finished_at(self) -> float | None:
        """When the last request ended, Unix time in seconds; None while nothing ended."""
        return self.runs.finished_at

    @property
    def active_s(self) -> float:
        """Seconds at work: of each run from its start to the last request that ended in it."""
        return self.runs.active_s

    def timeline(self) -> tuple[float, list[TimeBin]]:
        """What ended when, in bins of so many seconds; none while nothing ended."""
        return self.over_time.timeline(self.runs.spans)

    @property
    def simulated(self) -> bool:
        """Whether all runs were simulated and cost nothing."""
        return self.runs.simulated

    @property
    def in_flight_at_kills(self) -> int:
        """How many answers at most were on their way when a run was killed, and may have been billed twice."""
        return self.runs.in_flight_before

    @property
    def unseen_cost(self) -> Decimal:
        """The most, in US dollars, that runs may have spent without writing a line of it, as the next run reckoned it."""
        return self.runs.unseen_cost

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tally):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it changes with every outcome

    def __repr__(self) -> str:
        return f"<Tally of {self.succeeded} results and {self.failed} failures>"


def _add_counts(one: int, other: int) -> int:
    return one + other


def _add_errors(one: list[Any], other: list[Any]) -> list[Any]:
    one[0] += other[0]
    one[1:] = min(one[1:], other[1:])
    return one
