"""What a job will take: as JSON for programs, as a table for people.

`build` makes the JSON object that the contract promises; the text is a reading of that. Amounts come in as Decimal and are
JSON numbers from here on; what is not known is null and never 0. The words under `assumptions` say what each figure rests
on, and the text repeats them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from textwrap import wrap
from typing import Any

from batchkit.formats.words import amount, dollars, duration, printable

__all__ = ["Basis", "Figures", "Pilot", "build", "render"]

_WIDTH = 100
_LABEL = 24
_COLUMN = 18
_NAMES = 20
"""More models than this are not listed one by one in the text."""
_SOME = 5
"""More are not named in a sentence."""
_ENDS = ("low", "expected", "high")

Range = tuple[Decimal, Decimal, Decimal | None]
"""Low, expected and high in US dollars; no high where nothing bounds it."""

_Row = tuple[str, Sequence[str]]
"""A label and its cells."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the requests of one model, or of all, will take.

    `exact` counts the prompts counted exactly, `unpriced_models` and `unbounded_models` name what is not known of whom,
    `known_cost` is that of the models with a price. `seconds` is None where no limit is known.
    """

    requests: int
    exact: int
    prompt_tokens: int
    completion_tokens: tuple[int, int, int | None]
    known_cost: Range
    batch_cost: Range | None = None
    seconds: float | None = None
    measured: bool = False
    unpriced_models: Sequence[str] = ()
    unbounded_models: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a few requests took that were sent. `cost` is in US dollars, None if a price is missing; `latency_s` the mean."""

    requests: int
    answers: int
    cost: Decimal | None
    latency_s: float | None
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Basis:
    """What the figures rest on: tokens expected of an answer, the price list and its day, the limits of the run."""

    expected_tokens: int
    price_list: str
    price_date: str | None
    given_prices: Sequence[str] = ()
    rpm: float | None = None
    tpm: float | None = None
    concurrency: int = 1
    pilot: Pilot | None = None


def build(
    total: Figures,
    models: Mapping[str, Figures],
    basis: Basis,
    *,
    invalid: int,
    images: int = 0,
    uncounted: int = 0,
) -> dict[str, Any]:
    """The estimate of an input, `invalid` of whose lines are no requests.

    The tokens of `images` are guessed, and those of `uncounted` parts, such as sound and files, are left out.
    """
    pilot = basis.pilot
    return {
        **_figures(total),
        "invalid": invalid,
        "models": {name: _figures(model) for name, model in models.items()},
        "price_list": {"name": basis.price_list, "date": basis.price_date, "given": list(basis.given_prices)},
        "pilot": None
        if pilot is None
        else {
            "requests": pilot.requests,
            "answers": pilot.answers,
            "cost": None if pilot.cost is None else float(pilot.cost),
            "latency_s": None if pilot.latency_s is None else round(pilot.latency_s, 4),
            "simulated": pilot.simulated,
        },
        "assumptions": {
            "prompt_tokens": _how_prompts_are_counted(images, uncounted, exact=total.exact == total.requests),
            **_assumptions(total, models, basis),
        },
    }


def render(estimate: Mapping[str, Any], *, width: int = _WIDTH) -> str:
    """The estimate for people, in lines of at most `width` columns where its words allow it."""
    return "\n".join([*_lines(estimate, width), ""])


def _figures(figures: Figures) -> dict[str, Any]:
    known = dict(zip(_ENDS, map(_number, figures.known_cost), strict=True))
    is_priced = not figures.unpriced_models
    cost: dict[str, Any] = {
        "currency": "USD",
        **{end: known[end] if is_priced else None for end in _ENDS},
        "unpriced_models": list(figures.unpriced_models),
    }
    if not is_priced:
        cost |= {f"known_{end}": known[end] for end in _ENDS}
    return {
        "requests": figures.requests,
        "prompt_tokens": figures.prompt_tokens,
        "exact": round(figures.exact / figures.requests, 4) if figures.requests else None,
        "completion_tokens": dict(zip(_ENDS, figures.completion_tokens, strict=True)),
        "measured": figures.measured,
        "unbounded_models": list(figures.unbounded_models),
        "cost": cost,
        "batch_cost": None
        if figures.batch_cost is None
        else {"currency": "USD", **dict(zip(_ENDS, map(_number, figures.batch_cost), strict=True))},
        "seconds": None if figures.seconds is None else round(figures.seconds, 4),
    }


def _number(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


def _assumptions(total: Figures, models: Mapping[str, Figures], basis: Basis) -> dict[str, str]:
    measured = [name for name, model in models.items() if model.measured]
    low = "1 token an answer, the least that is billed"
    expected = (
        f"{basis.expected_tokens} tokens an answer, the mean of a million conversations with 25 models (LMSYS-Chat-1M), or "
        "what a request allows where that is less; what a model reasons before it answers comes on top"
    )
    high = "what a request allows (max_tokens times n), else the longest answer its model can give"
    if total.unbounded_models:
        high += f"; not known for {_some(total.unbounded_models)}"
    if measured and basis.pilot is not None:
        whose = "" if len(measured) == len(models) else f" ({_some(measured)}; the others as without a pilot)"
        interval = (
            f"end of the 95 % interval by Student's t of the mean of {basis.pilot.answers} answers{whose}"
        )
        low, expected, high = (
            f"lower {interval}",
            f"mean of {basis.pilot.answers} answers{whose}",
            f"upper {interval}",
        )
    on = "" if basis.price_date is None else f" of {basis.price_date}"
    own = f", before it those given for {_some(basis.given_prices)}" if basis.given_prices else ""
    return {
        "low": low,
        "expected": expected,
        "high": high,
        "cost": f"list prices ({basis.price_list}{on}){own}; no prompt is taken from a cache",
        "seconds": _what_bounds(basis),
    }


def _how_prompts_are_counted(images: int, uncounted: int, *, exact: bool) -> str:
    told = "counted as they are billed"
    if not exact:
        told += " where the tokenizer and the framing are public, else with OpenAI's o200k_base"
    if images:
        told += (
            f"; those of {_parts(images, 'image', 'images')} are guessed, as if each had 1024x1024 pixels, by what OpenAI or "
            "Anthropic publish for the model, and for others by gpt-4o's"
        )
    if uncounted:
        told += f"; those of {_parts(uncounted, 'part', 'parts')} with sound, files or the like are not counted at all"
    return told


def _parts(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _what_bounds(basis: Basis) -> str:
    bounds = []
    if basis.rpm is not None:
        bounds.append(f"{amount(basis.rpm)} requests a minute")
    if basis.tpm is not None:
        bounds.append(f"{amount(basis.tpm)} tokens a minute, the expected answers counted")
    if basis.pilot is not None and basis.pilot.latency_s is not None:
        bounds.append(f"{basis.pilot.latency_s:.2f} s an answer, {basis.concurrency:,} at a time")
    if not bounds:
        return "not known: no limit was given (--rpm, --tpm), and no answer's latency is known (--pilot)"
    return f"at least, under {' and '.join(bounds)}"


def _lines(estimate: Mapping[str, Any], width: int) -> Iterable[str]:
    cost, pilot, assumed = estimate["cost"], estimate["pilot"], estimate["assumptions"]
    sent = "nothing was sent" if pilot is None else f"{pilot['requests']:,} requests were sent"
    yield f"estimate: {sent}"
    counted = [f"{estimate['requests']:,}"]
    if estimate["invalid"]:
        lines = "line" if estimate["invalid"] == 1 else "lines"
        counted.append(f"{estimate['invalid']:,} bad {lines} beside them (batchkit validate tells which)")
    yield _row("requests", ", ".join(counted))
    exact = estimate["exact"]
    share = "" if exact is None else " (exact)" if exact == 1 else f" ({100 * exact:.4g} % counted exactly)"
    yield _row("prompt tokens", f"{estimate['prompt_tokens']:,}{share}")
    yield _row(
        "time", "not known" if estimate["seconds"] is None else f"at least {duration(estimate['seconds'])}"
    )
    yield ""
    rows: list[_Row] = [
        ("", _ENDS),
        ("completion tokens", _cells(estimate["completion_tokens"], "{:,}".format)),
    ]
    unpriced = [printable(name) for name in cost["unpriced_models"]]
    is_partial = 0 < len(unpriced) < len(estimate["models"])
    known = _cells({end: cost[f"known_{end}" if is_partial else end] for end in _ENDS}, dollars)
    rows.append(("cost of what has a price" if is_partial else "cost", known))
    if estimate["batch_cost"] is not None and estimate["requests"]:
        rows.append(("by the batch API", _cells(estimate["batch_cost"], dollars)))
    yield from _table(rows)
    if len(estimate["models"]) > 1:
        yield from _models(estimate["models"])
    yield ""
    if unpriced:
        yield from _folded(f"No known price for {_some(unpriced)}: give one with --prices.", width)
    if pilot is not None:
        yield from _folded(_pilot(pilot), width)
    for name in ("prompt_tokens", "low", "expected", "high", "cost", "seconds"):
        label = "time" if name == "seconds" else name.replace("_", " ")
        yield from _folded(f"{label}: {printable(assumed[name])}", width)


def _folded(text: str, width: int) -> list[str]:
    return wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _models(models: Mapping[str, Any]) -> Iterable[str]:
    yield ""
    rows: list[_Row] = [("model", ("requests", "prompt tokens", "expected cost"))]
    for name, model in list(models.items())[:_NAMES]:
        expected = model["cost"]["expected"]
        cells = (
            f"{model['requests']:,}",
            f"{model['prompt_tokens']:,}",
            "no known price" if expected is None else dollars(expected),
        )
        rows.append((_short(printable(name)), cells))
    yield from _table(rows)
    if len(models) > _NAMES:
        yield f"  and {len(models) - _NAMES:,} more"


def _pilot(pilot: Mapping[str, Any]) -> str:
    cost = "what it cost is not known" if pilot["cost"] is None else f"it cost {dollars(pilot['cost'])}"
    billed = " at list prices; it was simulated, and nothing was billed" if pilot["simulated"] else ""
    latency = "" if pilot["latency_s"] is None else f", {pilot['latency_s']:.2f} s each on average"
    return f"The pilot had {pilot['answers']:,} answers to {pilot['requests']:,} requests{latency}; {cost}{billed}."


def _cells(values: Mapping[str, Any], show: Any) -> list[str]:
    return ["not known" if values[end] is None else show(values[end]) for end in _ENDS]


def _row(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}  {text}"


def _table(rows: Sequence[_Row]) -> Iterable[str]:
    width = max(_COLUMN, 2 + max(len(cell) for _, cells in rows for cell in cells))
    for label, cells in rows:
        yield f"  {label:<{_LABEL}}" + "".join(f"{cell:>{width}}" for cell in cells)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SOME:,} more" if len(names) > _SOME else ""
    return ", ".join(names[:_SOME]) + more


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"
