"""The totals of a job: a fold over its outcomes, in memory that does not grow with their number.

The same `Tally` is kept while a job runs and built again from the output files, and the two must be equal. So nothing
in it depends on the order in which outcomes are added: counts are sums, examples are those of the lowest index,
percentiles come from counted buckets, and where names must be bounded the smallest stay, which is the same set in any
order. Money is left to `rules.pricing`: tokens are summed apart by model and by context band, because some prices
depend on how long a prompt was, and a sum cannot be split afterwards.

    a line with a header   → begin_run(header)       whose run the following outcomes are
    a line                 → add(outcome)
    a failure asked again  → add_superseded(outcome) what it cost stays; it is no request any more
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf, isfinite, log
from typing import Any, Final

from batchkit.records import Failure, Outcome, Reply, RunHeader, Usage

__all__ = [
    "BAND_EDGES",
    "FROM_CACHE",
    "OTHER",
    "UNKNOWN_MODEL",
    "BandTotal",
    "ErrorTotal",
    "Latency",
    "ModelTotal",
    "Tally",
    "band_of",
]

BAND_EDGES: Final = (32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288)
"""Prompt lengths, in tokens, above which some model of the price list has another price."""

FROM_CACHE: Final = -1
"""Stands among the bands for answers that a gateway had already, and that were not billed, however long they are."""

UNKNOWN_MODEL: Final = "unknown"
"""Stands for the model that an answer did not name."""

OTHER: Final = "other"
"""Stands for all names beyond the bound."""

MAX_MODELS: Final = 1000
MAX_CODES: Final = 100
MAX_RUNS: Final = 1000
MAX_NAME: Final = 200

# DDSketch (Masson, Rim, Lee 2019): bucket k counts values in (GAMMA**(k-1), GAMMA**k], so its middle is at most
# ACCURACY off. Clamped to 0.1 ms … 11 days there can be 1,150 buckets at most.
_ACCURACY: Final = 0.01
_GAMMA: Final = (1 + _ACCURACY) / (1 - _ACCURACY)
_PER_LOG: Final = 1 / log(_GAMMA)
_SHORTEST: Final = 1e-4
_LONGEST: Final = 1e6
_FIRST_BUCKET: Final = ceil(log(_SHORTEST) * _PER_LOG)
_LAST_BUCKET: Final = ceil(log(_LONGEST) * _PER_LOG)

# One cell: requests, answers without usage, the fields of Usage in their order, then the longest prompt and the longest
# completion. All are sums but those two.
_CELL: Final = (0, 0, 0, 0, 0, 0, 0, 0, 0)
_SUMS: Final = 7


@dataclass(frozen=True, slots=True)
class BandTotal:
    """What one model answered to prompts of one context band; no answer took more than `longest` of either kind of token."""

    requests: int
    unknown: int
    usage: Usage
    longest: Usage


@dataclass(frozen=True, slots=True)
class ModelTotal:
    """What one model answered. `unknown` of its `requests` came without usage; `bands` splits `usage` and requests.

    A key of `bands` is that of `band_of`, or `FROM_CACHE`.
    """

    requests: int
    unknown: int
    usage: Usage
    bands: Mapping[int, BandTotal]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that the last attempts took; the percentiles are within 1 % of a measured one, `max` is exact."""

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class ErrorTotal:
    """Failures with one code; `example` is the custom_id of the first in the input."""

    count: int
    example: str


def band_of(prompt_tokens: int) -> int:
    """Which context band a prompt falls in: how many of `BAND_EDGES` it is longer than."""
    return bisect_left(BAND_EDGES, prompt_tokens)


class Tally:
    """Adds up outcomes. Equal to any other that was told the same, in whatever order.

    Begin a run before its outcomes are added: one is credited to the last run that began no later than it finished. A
    run that is begun after its outcomes is put right as far as can be, with the pause in front of it counted as work.
    """

    __slots__ = (
        "_buckets",
        "_errors",
        "_in_flight_before",
        "_lasts",
        "_models",
        "_reasons",
        "_simulated",
        "_starts",
        "_stray",
        "attempts",
        "failed",
        "gateway_retries",
        "longest_s",
        "maybe_billed",
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
        self.longest_s = 0.0
        self._reasons: dict[str, int] = {}
        self._models: dict[str, dict[int, list[int]]] = {}
        self._buckets: dict[int, int] = {}
        self._errors: dict[str, list[Any]] = {}  # code: [count, index, custom_id]
        # Runs by their start; -inf is the last finish of one that finished nothing yet.
        self._starts: list[float] = []
        self._lasts: list[float] = []
        self._simulated: list[bool] = []
        self._in_flight_before: list[int] = []
        # First and last finish of what finished before any run began: lines that others wrote, or a clock set back.
        self._stray: tuple[float, float] | None = None

    # ---------------------------------------------------------------------------------------------- adding

    def begin_run(self, header: RunHeader) -> None:
        """Begin the run that `header` tells of; again for the same run does nothing."""
        self.start_run(
            header.started_at, simulated=header.simulated, in_flight_before=header.in_flight_before
        )

    def start_run(self, started_at: float, *, simulated: bool = False, in_flight_before: int = 0) -> None:
        """Begin a run at `started_at`, Unix time in seconds; again for the same run does nothing."""
        place = bisect_left(self._starts, started_at)
        if place < len(self._starts) and self._starts[place] == started_at:
            return
        last = -inf
        if place and self._lasts[place - 1] >= started_at:
            last, self._lasts[place - 1] = self._lasts[place - 1], started_at
        elif not place and self._stray and self._stray[1] >= started_at:
            first, last = self._stray
            self._stray = (first, started_at) if first < started_at else None
        self._starts.insert(place, started_at)
        self._lasts.insert(place, last)
        self._simulated.insert(place, simulated)
        self._in_flight_before.insert(place, in_flight_before)
        if len(self._starts) > MAX_RUNS:
            # The first run takes in the second: what is kept is the first start and the latest ones, in any order.
            del self._starts[1]
            self._lasts[0] = max(self._lasts[0], self._lasts.pop(1))
            self._simulated[0] = self._simulated.pop(1) and self._simulated[0]
            self._in_flight_before[0] += self._in_flight_before.pop(1)

    def add(self, outcome: Outcome) -> None:
        """Add a request that ended."""
        answer = outcome.answer
        attempts = outcome.attempts
        self._add_attempts(outcome)
        if isinstance(answer, Reply):
            self.succeeded += 1
            if answer.finish_reason == "length":
                self.truncated += 1
            self._add_usage(answer.model, answer.usage, 1, from_cache=answer.from_cache)
        else:
            self.failed += 1
            if answer.usage is not None:
                self._add_usage(answer.model, answer.usage, 1)
            self._add_error(answer, outcome)
        if attempts:
            latency = outcome.latency_s
            self.longest_s = max(self.longest_s, latency)
            bucket = ceil(log(latency) * _PER_LOG) if _SHORTEST < latency < _LONGEST else _outlying(latency)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._credit(outcome.finished_at)

    def add_superseded(self, outcome: Outcome) -> None:
        """Add what a failure cost that was asked again: its attempts and its tokens, but no request and no error."""
        self._add_attempts(outcome)
        if outcome.answer.usage is not None:
            self._add_usage(outcome.answer.model, outcome.answer.usage, 0)
        self._credit(outcome.finished_at)

    def merge(self, other: Tally) -> None:
        """Add all that `other` was told; equal to having been told it, where the two know different runs."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.truncated += other.truncated
        self.attempts += other.attempts
        self.gateway_retries += other.gateway_retries
        self.maybe_billed += other.maybe_billed
        self.longest_s = max(self.longest_s, other.longest_s)
        self._add_retries(other._reasons)
        for model, bands in other._models.items():
            name = _admit(self._models, model, MAX_MODELS, _add_bands)
            _add_bands(self._models.setdefault(name, {}), bands)
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        for code, error in other._errors.items():
            name = _admit(self._errors, code, MAX_CODES, _add_errors)
            _add_errors(self._errors.setdefault(name, [0, inf, ""]), error)
        for start, last, simulated, before in other._runs():
            self.start_run(start, simulated=simulated, in_flight_before=before)
            if last >= start:
                self._credit(last)
        for finished_at in other._stray or ():
            self._credit(finished_at)

    def _add_attempts(self, outcome: Outcome) -> None:
        self.attempts += outcome.attempts
        self.gateway_retries += outcome.gateway_retries
        self.maybe_billed += outcome.maybe_billed
        if outcome.retries:
            self._add_retries(outcome.retries)

    def _add_retries(self, retries: Mapping[str, int]) -> None:
        reasons = self._reasons
        for reason, count in retries.items():
            if reason not in reasons:
                reason = _admit(reasons, reason, MAX_CODES, _add_counts)
            reasons[reason] = reasons.get(reason, 0) + count

    def _add_usage(self, model: str, usage: Usage | None, requests: int, *, from_cache: bool = False) -> None:
        bands = self._models.get(model)
        if bands is None:
            model = _admit(self._models, model or UNKNOWN_MODEL, MAX_MODELS, _add_bands)
            bands = self._models.setdefault(model, {})
        if from_cache:
            band = FROM_CACHE
        else:
            band = 0 if usage is None else bisect_left(BAND_EDGES, usage.prompt_tokens)
        cell = bands.get(band)
        if cell is None:
            cell = bands[band] = list(_CELL)
        cell[0] += requests
        if usage is None:
            cell[1] += 1
            return
        cell[2] += usage.prompt_tokens
        cell[3] += usage.completion_tokens
        cell[4] += usage.total_tokens
        cell[5] += usage.cached_tokens
        cell[6] += usage.reasoning_tokens
        cell[7] = max(cell[7], usage.prompt_tokens)
        cell[8] = max(cell[8], usage.completion_tokens)

    def _add_error(self, failure: Failure, outcome: Outcome) -> None:
        code = failure.code
        if code not in self._errors:
            code = _admit(self._errors, code, MAX_CODES, _add_errors)
        _add_errors(self._errors.setdefault(code, [0, inf, ""]), [1, outcome.index, outcome.custom_id])

    def _credit(self, finished_at: float) -> None:
        starts = self._starts
        if starts and finished_at >= starts[-1]:
            self._lasts[-1] = max(self._lasts[-1], finished_at)
        elif place := bisect_right(starts, finished_at):
            self._lasts[place - 1] = max(self._lasts[place - 1], finished_at)
        else:
            first, last = self._stray or (finished_at, finished_at)
            self._stray = (min(first, finished_at), max(last, finished_at))

    # ---------------------------------------------------------------------------------------------- reading

    @property
    def by_reason(self) -> dict[str, int]:
        """Attempts that were repeated, by why."""
        return dict(sorted(self._reasons.items()))

    @property
    def models(self) -> dict[str, ModelTotal]:
        """What each model answered, by its name as the answers spell it."""
        return {model: _model_total(bands) for model, bands in sorted(self._models.items())}

    @property
    def usage(self) -> Usage:
        """All tokens."""
        return sum((total.usage for total in self.models.values()), Usage())

    @property
    def from_cache(self) -> int:
        """Results that a gateway had already, and nobody billed."""
        return sum(bands[FROM_CACHE][0] for bands in self._models.values() if FROM_CACHE in bands)

    @property
    def unknown(self) -> int:
        """Results whose usage is not known; it is in no other figure."""
        return sum(cell[1] for bands in self._models.values() for cell in bands.values())

    @property
    def latency(self) -> Latency | None:
        """None while nothing was sent."""
        if not self._buckets:
            return None
        ordered = sorted(self._buckets.items())
        count = sum(self._buckets.values())

        def quantile(q: float) -> float:
            rank = q * (count - 1)
            ends = zip(ordered, accumulate(held for _, held in ordered), strict=True)
            bucket = next(bucket for (bucket, _), end in ends if end > rank)
            return min(_middle(bucket), self.longest_s)

        return Latency(quantile(0.5), quantile(0.9), quantile(0.99), self.longest_s)

    @property
    def errors(self) -> dict[str, ErrorTotal]:
        """Failures by their code."""
        return {
            code: ErrorTotal(count, example) for code, (count, _, example) in sorted(self._errors.items())
        }

    @property
    def started_at(self) -> float | None:
        """When the job's first run began, Unix time in seconds; None while nothing ended."""
        return min((run[0] for run in self._worked()), default=None)

    @property
    def finished_at(self) -> float | None:
        """When the last request ended, Unix time in seconds; None while nothing ended."""
        return max((run[1] for run in self._worked()), default=None)

    @property
    def active_s(self) -> float:
        """Seconds at work: of each run from its start to the last request that ended in it."""
        return sum(run[1] - run[0] for run in self._worked())

    @property
    def simulated(self) -> bool:
        """Whether all runs were simulated and cost nothing."""
        worked = self._worked()
        return bool(worked) and all(run[2] for run in worked)

    @property
    def in_flight_at_kills(self) -> int:
        """How many answers at most were on their way when a run was killed, and may have been billed twice."""
        return sum(run[3] for run in self._worked())

    def _runs(self) -> Iterator[tuple[float, float, bool, int]]:
        return zip(self._starts, self._lasts, self._simulated, self._in_flight_before, strict=True)

    def _worked(self) -> list[tuple[float, float, bool, int]]:
        """The runs in which something ended. Others left no line, so the files could not tell of them."""
        stray = [(*self._stray, False, 0)] if self._stray else []
        return stray + [run for run in self._runs() if run[1] >= run[0]]

    # ---------------------------------------------------------------------------------------------- keeping

    def state(self) -> dict[str, Any]:
        """All of it as JSON values; `from_state` gives it back, exactly."""
        return {
            "succeeded": self.succeeded,
            "failed": self.failed,
            "truncated": self.truncated,
            "attempts": self.attempts,
            "gateway_retries": self.gateway_retries,
            "maybe_billed": self.maybe_billed,
            "by_reason": self.by_reason,
            "models": {
                model: {str(band): list(cell) for band, cell in sorted(bands.items())}
                for model, bands in sorted(self._models.items())
            },
            "latency": {
                "max": self.longest_s,
                "buckets": {str(bucket): count for bucket, count in sorted(self._buckets.items())},
            },
            "errors": {code: list(error) for code, error in sorted(self._errors.items())},
            "stray": list(self._stray) if self._stray else None,
            "runs": [list(run) for run in self._runs() if run[1] >= run[0]],
        }

    @classmethod
    def from_state(cls, state: Any) -> Tally:
        """The tally whose `state` this is. Raises ValueError if it is none."""
        try:
            return cls._from_state(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not the state of a tally: {error!r}") from error

    @classmethod
    def _from_state(cls, state: Any) -> Tally:
        tally = cls()
        tally.succeeded = _count(state["succeeded"])
        tally.failed = _count(state["failed"])
        tally.truncated = _count(state["truncated"])
        tally.attempts = _count(state["attempts"])
        tally.gateway_retries = _count(state["gateway_retries"])
        tally.maybe_billed = _count(state["maybe_billed"])
        tally.longest_s = _seconds(state["latency"]["max"])
        tally._reasons = {_text(reason): _count(count) for reason, count in state["by_reason"].items()}
        tally._models = {
            _text(model): {_band(band): _cell(cell) for band, cell in bands.items()}
            for model, bands in state["models"].items()
        }
        tally._buckets = {_bucket(bucket): _count(n) for bucket, n in state["latency"]["buckets"].items()}
        tally._errors = {
            _text(code): [_count(count), _count(index), _text(example)]
            for code, (count, index, example) in state["errors"].items()
        }
        if state["stray"] is not None:
            first, last = state["stray"]
            tally._stray = _seconds(first), _seconds(last)
        for start, last, simulated, before in state["runs"]:
            if not isinstance(simulated, bool) or not _seconds(start) <= _seconds(last):
                raise ValueError("a run ends before it begins")
            tally._starts.append(_seconds(start))
            tally._lasts.append(_seconds(last))
            tally._simulated.append(simulated)
            tally._in_flight_before.append(_count(before))
        if tally._starts != sorted(set(tally._starts)):
            raise ValueError("runs are out of order")
        return tally

    def __eq__(self, other: object) -> bool:
        return self.state() == other.state() if isinstance(other, Tally) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes with every outcome

    def __repr__(self) -> str:
        return f"<Tally of {self.succeeded} results and {self.failed} failures>"


def _admit(kept: dict[str, Any], name: str, most: int, merge: Any) -> str:
    """The name under which a new `name` is kept: its own, or OTHER when `most` smaller names are there already.

    A name that is pushed out by a smaller one is merged into OTHER. The kept set is the smallest names, whatever the
    order of arrival, and each kept name has been counted under itself from the start.
    """
    name = name[:MAX_NAME]
    if name in kept or name == OTHER:
        return name
    names = [each for each in kept if each != OTHER]
    if len(names) < most:
        return name
    largest = max(names)
    if name > largest:
        return OTHER
    pushed_out = kept.pop(largest)
    kept[OTHER] = merge(kept[OTHER], pushed_out) if OTHER in kept else pushed_out
    return name


def _add_counts(one: int, other: int) -> int:
    return one + other


def _add_bands(one: dict[int, list[int]], other: dict[int, list[int]]) -> dict[int, list[int]]:
    for band, cell in other.items():
        pairs = list(zip(one.get(band, _CELL), cell, strict=True))
        one[band] = [a + b for a, b in pairs[:_SUMS]] + [max(pair) for pair in pairs[_SUMS:]]
    return one


def _add_errors(one: list[Any], other: list[Any]) -> list[Any]:
    one[0] += other[0]
    one[1:] = min(one[1:], other[1:])
    return one


def _model_total(bands: dict[int, list[int]]) -> ModelTotal:
    split = {
        band: BandTotal(cell[0], cell[1], Usage(*cell[2:_SUMS]), Usage(*cell[_SUMS:]))
        for band, cell in sorted(bands.items())
    }
    return ModelTotal(
        requests=sum(cell[0] for cell in bands.values()),
        unknown=sum(cell[1] for cell in bands.values()),
        usage=sum((total.usage for total in split.values()), Usage()),
        bands=split,
    )


def _outlying(latency: float) -> int:
    return _LAST_BUCKET if latency >= _LONGEST else _FIRST_BUCKET


def _middle(bucket: int) -> float:
    return 2 * _GAMMA**bucket / (_GAMMA + 1)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _band(value: Any) -> int:
    band = int(value)
    if not FROM_CACHE <= band <= len(BAND_EDGES):
        raise ValueError(f"{value!r} is no band")
    return band


def _bucket(value: Any) -> int:
    bucket = int(value)
    if not _FIRST_BUCKET <= bucket <= _LAST_BUCKET:
        raise ValueError(f"{value!r} is no bucket")
    return bucket


def _cell(value: Any) -> list[int]:
    if len(value) != len(_CELL):
        raise ValueError(f"{value!r} is no cell of sums")
    return [_count(each) for each in value]
