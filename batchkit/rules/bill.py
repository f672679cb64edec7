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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

from batchkit.records import Billed, Failure, FailureKind, Outcome, Reply, Usage
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
    "was_withheld",
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

    def add(self, became: int, model: str, usage: Usage | None, *, from_cache: bool = False) -> int:
        """Add an answer that became `OUTCOMES[became]`; `usage` is None where it is not known. The tokens it took."""
        cells = self.cells.get(model)
        if cells is None:
            cells = self._cells_of(model)
        bands = cells[became]
        if usage is None:
            cell = bands.setdefault(FROM_CACHE if from_cache else 0, list(NO_CELL))
            cell[0] += 1
            cell[1] += 1
            return 0
        band = FROM_CACHE if from_cache else bisect_left(BAND_EDGES, usage.prompt_tokens)
        answers, unknown, prompts, completions, totals, cached, reasoning, longest, longest_completion = (
            bands.get(band, NO_CELL)
        )
        prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
        # Every answer passes here. A list made anew takes less than to add to each of its numbers, and a comparison less than max.
        bands[band] = [
            answers + 1,
            unknown,
            prompts + prompt,
            completions + completion,
            totals + total,
            cached + usage.cached_tokens,
            reasoning + usage.reasoning_tokens,
            prompt if prompt > longest else longest,  # noqa: FURB136 - as said
            completion if completion > longest_completion else longest_completion,  # noqa: FURB136 - as said
        ]
        return total

    def add_failure(self, failure: Failure, *, superseded: bool = False) -> int:
        """Add what an answer took that failed its request; `superseded`, one that was asked again. The tokens it took."""
        if failure.usage is None and not was_withheld(failure):
            return 0
        return self.add(RETRIES if superseded else FAILURES, failure.model, failure.usage)

    def add_billed(self, billed: Iterable[Billed]) -> int:
        """Add attempts that were repeated. The tokens that they took together."""
        return sum(self.add(RETRIES, attempt.model, attempt.usage) for attempt in billed)

    def add_outcome(self, outcome: Outcome, *, superseded: bool = False) -> None:
        """Add all answers of a request that ended; `superseded`, of a failure whose request was asked again."""
        answer = outcome.answer
        if isinstance(answer, Reply):
            self.add(RESULTS, answer.model, answer.usage, from_cache=answer.from_cache)
        else:
            self.add_failure(answer, superseded=superseded)
        if outcome.billed:
            self.add_billed(outcome.billed)

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


def was_withheld(failure: Failure) -> bool:
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
