"""What a job will take before it is sent: its prompts counted, its answers bounded, both priced.

Prompts are known. Of the answers three figures are given: `low`, the least that can be billed; `high`, the most that a
request allows or its model can give; and `expected`, an assumption that is named, or, after a pilot, a mean that was
measured, with `low` and `high` then its 95 % interval. What is not known is None and never 0.

    each request  → Demand.add      sums by model and context band, in memory that does not grow with their number
    Demand        → forecast        tokens and money
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from math import atan, cos, exp, inf, lgamma, pi, sqrt
from statistics import fmean, stdev
from typing import Any, Final

from batchkit.records import Usage
from batchkit.rules.bill import UNKNOWN_MODEL, band_of
from batchkit.rules.names import admit
from batchkit.rules.pricing import Price, PriceList

__all__ = [
    "EXPECTED_TOKENS",
    "Demand",
    "Forecast",
    "Forecasts",
    "Range",
    "Sample",
    "forecast",
    "seconds",
    "t_quantile",
]

EXPECTED_TOKENS: Final = 215
"""Tokens of an answer where nothing is known of it: the mean over a million conversations with 25 models (LMSYS-Chat-1M,
Zheng et al., 2023, table 1: 214.5). Models that reason before they answer take several times as many."""

_MAX_MODELS: Final = 1000
_MOST_TOKENS: Final = 10_000_000
_MOST_ANSWERS: Final = 1_000
"""Larger figures in a request are mistakes, and sums of them need more than 64 bits."""
_CONFIDENCE: Final = 0.95

# One cell: requests, those whose prompt was counted exactly, prompt tokens, answers, the most tokens of those answers whose
# requests bound them, the answers of requests that do not, and the tokens to expect of all.
_CELL: Final = (0, 0, 0, 0, 0, 0, 0)

Cells = dict[str, dict[int, list[int]]]


class Demand:
    """What the requests of an input ask for, added up. `invalid` counts the lines that are none.

    `images` and `uncounted` count the parts of prompts whose tokens are guessed, and are in no count.
    """

    __slots__ = ("_cells", "images", "invalid", "uncounted")

    def __init__(self) -> None:
        self._cells: Cells = {}
        self.invalid = 0
        self.images = 0
        self.uncounted = 0

    def add(
        self, model: str | None, prompt_tokens: int, *, exact: bool, answers: int, max_tokens: int | None
    ) -> None:
        """Add a request for so many `answers` of at most `max_tokens` each, None where it does not say."""
        answers = min(answers, _MOST_ANSWERS)
        limit = None if max_tokens is None else min(max_tokens, _MOST_TOKENS)
        expected = EXPECTED_TOKENS if limit is None else min(limit, EXPECTED_TOKENS)
        added = (
            1,
            int(exact),
            prompt_tokens,
            answers,
            answers * (limit or 0),
            answers if limit is None else 0,
            answers * expected,
        )
        name = admit(self._cells, model or UNKNOWN_MODEL, _MAX_MODELS, _add_bands)
        _add_bands(self._cells.setdefault(name, {}), {band_of(prompt_tokens): added})

    def merge(self, other: Demand) -> None:
        """Add all that `other` was told."""
        self.invalid += other.invalid
        self.images += other.images
        self.uncounted += other.uncounted
        for model, bands in other._cells.items():
            name = admit(self._cells, model, _MAX_MODELS, _add_bands)
            _add_bands(self._cells.setdefault(name, {}), bands)

    @property
    def models(self) -> Mapping[str, Mapping[int, Sequence[int]]]:
        """The cells of each model by context band, models in the order of their names."""
        return dict(sorted(self._cells.items()))

    @property
    def requests(self) -> int:
        return sum(cell[0] for bands in self._cells.values() for cell in bands.values())

    @property
    def prompt_tokens(self) -> int:
        return sum(cell[2] for bands in self._cells.values() for cell in bands.values())

    def state(self) -> dict[str, Any]:
        """All of it as JSON values; `from_state` gives it back."""
        return {
            "invalid": self.invalid,
            "images": self.images,
            "uncounted": self.uncounted,
            "models": {
                model: {str(band): cell for band, cell in bands.items()}
                for model, bands in self._cells.items()
            },
        }

    @classmethod
    def from_state(cls, state: Any) -> Demand:
        """The demand whose `state` this is."""
        demand = cls()
        demand.invalid, demand.images, demand.uncounted = (
            state[name] for name in ("invalid", "images", "uncounted")
        )
        demand._cells = {
            model: {int(band): list(cell) for band, cell in bands.items()}
            for model, bands in state["models"].items()
        }
        return demand

    def __eq__(self, other: object) -> bool:
        return self.state() == other.state() if isinstance(other, Demand) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes with every request


@dataclass(frozen=True, slots=True)
class Range:
    """Tokens, or US dollars. `high` is None where nothing bounds it; `measured` ones are a mean and its 95 % interval."""

    low: Decimal
    expected: Decimal
    high: Decimal | None
    measured: bool = False

    @property
    def tokens(self) -> tuple[int, int, int | None]:
        """`low`, `expected` and `high` of a range of tokens."""
        return int(self.low), int(self.expected), None if self.high is None else int(self.high)

    @property
    def below(self) -> Decimal:
        """How far `low` is below what is expected."""
        return self.expected - self.low

    @property
    def above(self) -> Decimal:
        """How far `high` is above what is expected; 0 where nothing bounds it."""
        return Decimal(0) if self.high is None else self.high - self.expected

    def map(self, change: Callable[[Decimal], Decimal]) -> Range:
        """The range of what grows with this one's values."""
        return Range(
            change(self.low),
            change(self.expected),
            None if self.high is None else change(self.high),
            self.measured,
        )


_NOTHING: Final = Range(Decimal(0), Decimal(0), Decimal(0))


@dataclass(frozen=True, slots=True)
class Sample:
    """Completion tokens that requests of one model took, one figure for each."""

    count: int
    mean: float
    half_width: float
    """How far the mean of all requests may be from this one, with 95 % confidence; infinity of a single answer."""

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Sample:
        count = len(tokens)
        if count < 2:
            return cls(count, fmean(tokens) if tokens else 0.0, inf)
        return cls(count, fmean(tokens), t_quantile(count - 1) * stdev(tokens) / sqrt(count))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the requests of one model, or of all, will take.

    `exact` of their prompts were counted exactly. `known_cost` leaves the `unpriced_models` out, and `batch_cost`, what the
    same takes through the providers' own batch APIs, is None where one of their prices is not known. Of
    `unbounded_models` nobody says how long their answers can be.
    """

    requests: int
    exact: int
    prompt_tokens: int
    completion_tokens: Range
    known_cost: Range
    batch_cost: Range | None
    unpriced_models: tuple[str, ...] = ()
    unbounded_models: tuple[str, ...] = ()

    @property
    def cost(self) -> Range | None:
        """None where a price is missing."""
        return None if self.unpriced_models else self.known_cost


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What a job will take, in all and by model."""

    total: Forecast
    models: Mapping[str, Forecast]


def forecast(demand: Demand, prices: PriceList, pilot: Mapping[str, Sample] | None = None) -> Forecasts:
    """What `demand` will take at `prices`; `pilot` has what a few of its requests took, by model.

    The interval of a total is narrower than the sum of its models': they do not err to the same side by chance.
    """
    pilot = pilot or {}
    models = {
        model: _of_model(model, bands, prices, pilot.get(model)) for model, bands in demand.models.items()
    }
    each = list(models.values())
    batch = [one.batch_cost for one in each if one.batch_cost is not None]
    total = Forecast(
        sum(one.requests for one in each),
        sum(one.exact for one in each),
        sum(one.prompt_tokens for one in each),
        _together(one.completion_tokens for one in each),
        _together(one.known_cost for one in each if not one.unpriced_models),
        _together(batch) if len(batch) == len(each) else None,
        tuple(name for one in each for name in one.unpriced_models),
        tuple(name for one in each for name in one.unbounded_models),
    )
    return Forecasts(total, models)


def seconds(
    requests: int,
    tokens: int,
    *,
    rpm: float | None = None,
    tpm: float | None = None,
    latency_s: float | None = None,
    concurrency: int = 1,
) -> float | None:
    """How long so many requests with so many tokens take at least under the bounds that are given; None without any.

    `latency_s` is that of one answer, of which `concurrency` are on their way at any time.
    """
    bounds = []
    if rpm is not None:
        bounds.append(60 * requests / rpm)
    if tpm is not None:
        bounds.append(60 * tokens / tpm)
    if latency_s is not None and requests:
        bounds.append(latency_s * max(1.0, requests / concurrency))
    return max(bounds, default=None)


def t_quantile(degrees: float, confidence: float = _CONFIDENCE) -> float:
    """How many standard errors a mean is off at most with `confidence`, by Student's t with so many degrees of freedom."""
    # With t = tan(a) * sqrt(degrees) the density is one of cos(a) ** (degrees - 1), smooth on a bounded interval.
    scale = 2 * exp(lgamma((degrees + 1) / 2) - lgamma(degrees / 2)) / sqrt(pi)

    def inside(t: float) -> float:
        steps = 200
        width = atan(t / sqrt(degrees)) / steps
        heights = [cos(step * width) ** (degrees - 1) for step in range(steps + 1)]
        # Simpson's rule.
        area = 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[0] + heights[-1]
        return scale * width / 3 * float(area)

    low, high = 0.0, 1.0
    while inside(high) < confidence:
        high *= 2
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return high


def _of_model(
    model: str, bands: Mapping[int, Sequence[int]], prices: PriceList, sample: Sample | None
) -> Forecast:
    price = prices.find(model)
    longest = prices.largest_output(model)
    answers = {band: _answers(cell, longest, sample) for band, cell in bands.items()}
    completion_tokens = _sum(answers.values())

    def cost(price: Price) -> Range:
        return _sum(_priced(each, bands[band], price, band) for band, each in answers.items())

    requests, exact, prompt_tokens = (sum(cell[place] for cell in bands.values()) for place in range(3))
    return Forecast(
        requests,
        exact,
        prompt_tokens,
        completion_tokens,
        _NOTHING if price is None else cost(price),
        None if price is None or price.batch is None else cost(price.batch),
        (model,) if price is None else (),
        (model,) if completion_tokens.high is None else (),
    )


def _answers(cell: Sequence[int], longest: int | None, sample: Sample | None) -> Range:
    """Completion tokens of one cell, in whole tokens, rounded outwards."""
    requests, _, _, answers, limit, unlimited, expected = map(Decimal, cell)
    most = None if unlimited and longest is None else limit + unlimited * (longest or 0)
    if sample is None or sample.half_width == inf:
        return Range(answers, expected if most is None else min(expected, most), most)
    mean, half = requests * Decimal(sample.mean), requests * Decimal(sample.half_width)
    high = mean + half if most is None else max(mean, min(mean + half, most))
    return Range(
        min(mean, max(mean - half, answers)).to_integral_value(ROUND_FLOOR),
        mean.to_integral_value(ROUND_HALF_EVEN),
        high.to_integral_value(ROUND_CEILING),
        measured=True,
    )


def _priced(answers: Range, cell: Sequence[int], price: Price, band: int) -> Range:
    def cost(completion_tokens: Decimal) -> Decimal:
        return price.cost(Usage(cell[2], int(completion_tokens)), band, cell[0])

    return answers.map(cost)


def _sum(ranges: Iterable[Range]) -> Range:
    """The sum of ranges that err to the same side, such as those of one model."""
    each = list(ranges)
    return Range(
        sum((one.low for one in each), Decimal(0)),
        sum((one.expected for one in each), Decimal(0)),
        _sum_of_highs(each),
        any(one.measured for one in each),
    )


def _together(ranges: Iterable[Range]) -> Range:
    """The sum of ranges of which each measured one errs by itself."""
    each = list(ranges)
    measured = [one for one in each if one.measured]
    plain = _sum(each)
    half = sum((max(one.below, one.above) ** 2 for one in measured), Decimal(0)).sqrt()
    below, above = (
        sum(sides, Decimal(0)) for sides in ((one.below for one in measured), (one.above for one in measured))
    )
    return Range(
        plain.low + max(below - half, Decimal(0)),
        plain.expected,
        None if plain.high is None else plain.high - max(above - half, Decimal(0)),
        plain.measured,
    )


def _sum_of_highs(ranges: Sequence[Range]) -> Decimal | None:
    highs = [one.high for one in ranges if one.high is not None]
    return sum(highs, Decimal(0)) if len(highs) == len(ranges) else None


def _add_bands(one: dict[int, list[int]], other: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    for band, cell in other.items():
        one[band] = [a + b for a, b in zip(one.get(band, _CELL), cell, strict=True)]
    return one
