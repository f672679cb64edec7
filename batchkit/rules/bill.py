"""What answers took: tokens by the model that gave them, by what became of them, and by how long their prompts were.

Money is left to `rules.pricing`. Tokens are summed apart by context band, because some prices depend on how long a prompt
was, and a sum cannot be split afterwards. Each answer is one of three things, and nothing in between:

    results    it is the request's result
    failures   it is the request's failure, and says what it took or withholds what it took tokens for
    retries    its request was asked again: an attempt that was repeated and said what it took, or a failure that
               `--retry-failed` asked once more
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

from batchkit.records import Failure, FailureKind, Outcome, Reply, Usage
from batchkit.rules.names import admit

__all__ = [
    "BAND_EDGES",
    "FAILURES",
    "FROM_CACHE",
    "OUTCOMES",
    "RESULTS",
    "RETRIES",
    "UNKNOWN_MODEL",
    "BandTotal",
    "Bill",
    "ModelTotal",
    "OutcomeTotal",
    "band_of",
]

BAND_EDGES: Final = (32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288)
"""Prompt lengths, in tokens, above which some model of the price list has another price."""

FROM_CACHE: Final = -1
"""Stands among the bands for answers that a gateway had already, and that were not billed, however long they are."""

RESULTS, FAILURES, RETRIES = range(3)
OUTCOMES: Final = ("results", "failures", "retries")
"""What becomes of an answer, by the numbers of these names."""

UNKNOWN_MODEL: Final = "unknown"
"""Stands for the model that an answer did not name."""

MAX_MODELS: Final = 1000

# One cell: answers, those without usage, the fields of Usage in their order, then the longest prompt and the longest
# completion. All are sums but those two.
NO_CELL: Final[Sequence[int]] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
_SUMS: Final = 7

Cells = tuple[dict[int, list[int]], dict[int, list[int]], dict[int, list[int]]]
"""Those of one model: for each of `OUTCOMES` by band."""


@dataclass(frozen=True, slots=True)
class BandTotal:
    """What answers to prompts of one context band took; none of them took more than `longest` of either kind of token."""

    answers: int
    unknown: int
    usage: Usage
    longest: Usage


@dataclass(frozen=True, slots=True)
class OutcomeTotal:
    """What answers took of which the same became. `unknown` of the `answers` came without usage; `bands` splits them all.

    A key of `bands` is that of `band_of`, or `FROM_CACHE`.
    """

    answers: int
    unknown: int
    usage: Usage
    bands: Mapping[int, BandTotal]


@dataclass(frozen=True, slots=True)
class ModelTotal(OutcomeTotal):
    """What all answers of one model took, and what those took that became each of `OUTCOMES`."""

    outcomes: Mapping[str, OutcomeTotal]

    @property
    def requests(self) -> int:
        """Requests that ended with an answer of this model."""
        return self.outcomes[OUTCOMES[RESULTS]].answers + self.outcomes[OUTCOMES[FAILURES]].answers


def band_of(prompt_tokens: int) -> int:
    """Which context band a prompt falls in: how many of `BAND_EDGES` it is longer than."""
    return bisect_left(BAND_EDGES, prompt_tokens)


class Bill:
    """Adds up what answers took. Equal to any other that was told the same, in whatever order."""

    __slots__ = ("cells",)

    def __init__(self, cells: dict[str, Cells] | None = None) -> None:
        self.cells: dict[str, Cells] = {} if cells is None else cells
        """By model."""

    def add(self, became: int, model: str, usage: Usage | None, *, from_cache: bool = False) -> None:
        """Add an answer that became `OUTCOMES[became]`; `usage` is None where it is not known."""
        cells = self.cells.get(model)
        if cells is None:
            cells = self._cells_of(model)
        bands = cells[became]
        if from_cache:
            band = FROM_CACHE
        else:
            band = 0 if usage is None else bisect_left(BAND_EDGES, usage.prompt_tokens)
        cell = bands.get(band)
        if cell is None:
            cell = bands[band] = list(NO_CELL)
        cell[0] += 1
        if usage is None:
            cell[1] += 1
            return
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        cell[2] += prompt
        cell[3] += completion
        cell[4] += usage.total_tokens
        cell[5] += usage.cached_tokens
        cell[6] += usage.reasoning_tokens
        # Every answer passes here, and a call of max takes longer than this.
        if prompt > cell[7]:  # noqa: PLR1730 - as said
            cell[7] = prompt
        if completion > cell[8]:  # noqa: PLR1730 - as said
            cell[8] = completion

    def add_outcome(self, outcome: Outcome, *, superseded: bool = False) -> None:
        """Add all answers of a request that ended; `superseded`, of a failure whose request was asked again."""
        answer = outcome.answer
        if isinstance(answer, Reply):
            self.add(RESULTS, answer.model, answer.usage, from_cache=answer.from_cache)
        elif answer.usage is not None or _was_withheld(answer):
            self.add(RETRIES if superseded else FAILURES, answer.model, answer.usage)
        if outcome.billed:
            for attempt in outcome.billed:
                self.add(RETRIES, attempt.model, attempt.usage)

    def merge(self, other: Bill) -> None:
        """Add all that `other` was told."""
        for model, cells in other.cells.items():
            _add_cells(self._cells_of(model), cells)

    def _cells_of(self, model: str) -> Cells:
        name = admit(self.cells, model or UNKNOWN_MODEL, MAX_MODELS, _add_cells)
        return self.cells.setdefault(name, ({}, {}, {}))

    @property
    def models(self) -> dict[str, ModelTotal]:
        """What each model's answers took, by its name as the answers spell it."""
        return {model: _model_total(cells) for model, cells in sorted(self.cells.items())}

    @property
    def outcomes(self) -> dict[str, OutcomeTotal]:
        """What answers took that became each of `OUTCOMES`, whichever model gave them."""
        return {
            name: _outcome_total(*(cells[became] for cells in self.cells.values()))
            for became, name in enumerate(OUTCOMES)
        }

    @property
    def total(self) -> OutcomeTotal:
        """What all answers took."""
        return _outcome_total(*(bands for cells in self.cells.values() for bands in cells))

    @property
    def from_cache(self) -> int:
        """Results that a gateway had already, and nobody billed."""
        return sum(
            bands[FROM_CACHE][0] for cells in self.cells.values() for bands in cells if FROM_CACHE in bands
        )

    def __eq__(self, other: object) -> bool:
        return self.cells == other.cells if isinstance(other, Bill) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes with every answer


def _was_withheld(failure: Failure) -> bool:
    """Whether a model answered and a filter kept the answer back: it took tokens, though nobody said how many."""
    return (
        failure.kind is FailureKind.CONTENT_FILTER
        and failure.status is not None
        and 200 <= failure.status < 300
    )


def _add_cells(one: Cells, other: Cells) -> Cells:
    for mine, theirs in zip(one, other, strict=True):
        for band, cell in theirs.items():
            mine[band] = _sum_of(mine.get(band, NO_CELL), cell)
    return one


def _sum_of(one: Sequence[int], other: Sequence[int]) -> list[int]:
    pairs = list(zip(one, other, strict=True))
    return [a + b for a, b in pairs[:_SUMS]] + [max(pair) for pair in pairs[_SUMS:]]


def _model_total(cells: Cells) -> ModelTotal:
    total = _outcome_total(*cells)
    return ModelTotal(
        total.answers,
        total.unknown,
        total.usage,
        total.bands,
        {name: _outcome_total(bands) for name, bands in zip(OUTCOMES, cells, strict=True)},
    )


def _outcome_total(*parts: Mapping[int, Sequence[int]]) -> OutcomeTotal:
    bands: dict[int, Sequence[int]] = {}
    for part in parts:
        for band, cell in part.items():
            bands[band] = _sum_of(bands.get(band, NO_CELL), cell)
    whole = reduce(_sum_of, bands.values(), NO_CELL)
    return OutcomeTotal(
        whole[0],
        whole[1],
        Usage(*whole[2:_SUMS]),
        {
            band: BandTotal(cell[0], cell[1], Usage(*cell[2:_SUMS]), Usage(*cell[_SUMS:]))
            for band, cell in sorted(bands.items())
        },
    )
