"""The course of a job as a drawing in SVG: its rate, the limits found and the refusals, one above the other over one time.

A drawing is a piece of the report's page, whose style sheet names its colours; it runs nothing and asks for nothing. Pauses
between runs are drawn as a narrow cut, whatever they took, so that an hour on Monday and one on Friday both show. Values that
tower over all others are cut at the top, with their figure beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from math import ceil, floor, log10
from typing import Any, Final

from batchkit.formats.over_time import (
    FEWEST_BINS,
    limit_in_words,
    most_limited,
    rates,
    stretches,
    top_of,
)
from batchkit.formats.words import amount, duration, moment, printable

__all__ = ["DRAWING_STYLE", "draw_over_time"]

DRAWING_STYLE: Final = """
.results { fill: var(--area); } .failures { fill: var(--bad); } .refused { fill: var(--two); }
svg path { shape-rendering: crispEdges; }
.limit { fill: none; stroke-width: 2; } .l0 { stroke: var(--two); } .l1 { stroke: var(--three); } .l2 { stroke: var(--good); }
.grid { stroke: var(--line); } .base { stroke: var(--soft); } .pause { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .small { font-size: 11px; fill: var(--soft); } svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
.bin { fill: transparent; } .bin:hover { fill: var(--ink); opacity: .1; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; color: var(--soft); }
.legend i { display: inline-block; width: .7rem; height: .7rem; margin-right: .35rem; }
.legend .line { width: 1.2rem; height: 0; border-top: 2px solid; vertical-align: .25rem; }
.legend .l0 { border-color: var(--two); } .legend .l1 { border-color: var(--three); } .legend .l2 { border-color: var(--good); }
.legend .results { background: var(--area); } .legend .failures { background: var(--bad); }
.legend .refused { background: var(--two); }
"""

_WIDTH: Final = 700
_LEFT: Final = 52
_RIGHT: Final = 4
_PAUSE: Final = 16.0
_MOST_PAUSED: Final = 0.25
"""Share of the width that all pauses together may take."""
_MOST_LINES: Final = 3
"""Limits that are drawn into one panel."""
_TOO_FAR: Final = 3.0
"""A limit so many times above all rates is only told, not drawn."""
_SHOWN_PAUSE: Final = 8.0
_APART: Final = 74.0
"""Between the middles of two times of day."""
_DATES_APART: Final = 100.0
"""The same with a year in the date below, which may begin at the first of them."""
_TICKS_S: Final = (
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200),
)
_DAY_S: Final = 86400
_UNITS: Final = ((1.0, "a second"), (60.0, "a minute"), (3600.0, "an hour"), (86400.0, "a day"))


@dataclass(frozen=True, slots=True)
class _Panel:
    """One picture over the time: areas one over the other, the widest first, and lines; values by bin."""

    title: str
    height: int
    most: float
    """Up to where it is drawn."""
    areas: tuple[tuple[str, Sequence[float]], ...] = ()
    lines: Sequence[Sequence[float | None]] = ()


@dataclass(frozen=True, slots=True)
class _Time:
    """The time from left to right: where each bin begins, how wide they are, and which follow one another."""

    start: Sequence[float]
    width_s: float
    stretches: Sequence[range]
    x: Sequence[float]
    bin: float
    pause: float

    @classmethod
    def of(cls, over_time: Mapping[str, Any]) -> _Time:
        start, parts = over_time["start"], stretches(over_time)
        room = float(_WIDTH - _LEFT - _RIGHT)
        pauses = len(parts) - 1
        pause = min(_PAUSE, _MOST_PAUSED * room / pauses) if pauses else 0.0
        each = (room - pauses * pause) / len(start)
        x = [
            _LEFT + place * each + before * pause for before, stretch in enumerate(parts) for place in stretch
        ]
        return cls(start, over_time["width_s"], parts, x, each, pause)


def draw_over_time(summary: Mapping[str, Any]) -> str:
    """A legend and the drawing, as HTML; empty where there is too little to draw."""
    over_time = summary.get("over_time")
    if over_time is None or sum(rate > 0 for rate in rates(over_time, "results", "failures")) < FEWEST_BINS:
        return ""
    time = _Time.of(over_time)
    shapes: list[str] = []
    top = 0.0
    for panel in _panels(over_time):
        shapes += _panel(panel, time, top + 20)
        top += 20 + panel.height
    shapes += _pauses(time, top)
    shapes += _axis(time, top)
    shapes += _hints(over_time, time, top)
    name = "Answers, limits and refusals over time"
    return (
        f"{_legend(over_time)}"
        f'<svg viewBox="0 0 {_WIDTH} {top + 36:g}" role="img" aria-label="{name}">{"".join(shapes)}</svg>\n'
    )


def _panels(over_time: Mapping[str, Any]) -> Iterator[_Panel]:
    limits = {kind: [values for _, values in largest] for kind, largest in _largest(over_time).items()}
    results, ended = rates(over_time, "results"), rates(over_time, "results", "failures")
    factor, unit = (60.0, "a minute") if "requests_per_min" in limits else _unit(top_of(ended))
    yield _Panel(
        f"answers {unit}",
        130,
        _most(factor * top_of(ended), limits.get("requests_per_min", ())),
        (("failures", [factor * rate for rate in ended]), ("results", [factor * rate for rate in results])),
        limits.get("requests_per_min", ()),
    )
    if "tokens_per_min" in limits:
        tokens = [60 * rate for rate in rates(over_time, "tokens")]
        most = _most(top_of(tokens), limits["tokens_per_min"])
        yield _Panel("tokens a minute", 90, most, (("results", tokens),), limits["tokens_per_min"])
    if "in_flight" in limits:
        yield _Panel("most in flight", 50, _most(0.0, limits["in_flight"]), (), limits["in_flight"])
    if any(over_time["refused"]):
        refused = [factor * rate for rate in rates(over_time, "refused")]
        yield _Panel(f"refused {unit}, where their requests ended", 44, max(refused), (("refused", refused),))


def _unit(highest: float) -> tuple[float, str]:
    """The seconds and the words of the shortest unit of time in which one answer ends at the `highest` rate that is drawn."""
    return next((unit for unit in _UNITS if unit[0] * highest >= 1), _UNITS[-1])


def _most(highest: float, lines: Sequence[Sequence[float | None]]) -> float:
    """Up to where to draw what is `highest` and the lines with it, but for those that would make it too small to see."""
    values = [value for line in lines for value in line if value is not None]
    return max([highest, *(value for value in values if not highest or value <= _TOO_FAR * highest)])


def _largest(over_time: Mapping[str, Any]) -> dict[str, list[tuple[str, Sequence[float | None]]]]:
    """By kind, the models with the largest limits, and these."""
    largest: dict[str, list[tuple[str, Sequence[float | None]]]] = {}
    for model, kind, values in most_limited(over_time):
        largest.setdefault(kind, []).append((model, values))
    return {kind: limits[:_MOST_LINES] for kind, limits in largest.items()}


def _legend(over_time: Mapping[str, Any]) -> str:
    entries = [("results", "results")]
    if any(over_time["failures"]):
        entries.append(("failures", "failures"))
    if any(over_time["refused"]):
        entries.append(("refused", "refused attempts"))
    lines = [
        (f"line l{place}", f"limit found: {limit_in_words(model, kind, values)}")
        for kind, largest in _largest(over_time).items()
        for place, (model, values) in enumerate(largest)
    ]
    keys = [
        f'<span><i class="{kind}"></i>{escape(printable(words))}</span>' for kind, words in entries + lines
    ]
    if more := len(most_limited(over_time)) - len(lines):
        keys.append(f"<span>{more} more limits</span>")
    return f'<p class="legend">{"".join(keys)}</p>\n'


# --- one panel ---


def _panel(panel: _Panel, time: _Time, top: float) -> Iterator[str]:
    base = top + panel.height - 4
    widest = panel.areas[0][1] if panel.areas else ()
    highest, step = _scale(panel.most, panel.height)

    def y(value: float) -> float:
        return base - (panel.height - 10) * min(1.0, value / highest)

    yield f'<text class="small" x="{_LEFT}" y="{top}">{panel.title}</text>'
    for at in range(1, round(highest / step) + 1):
        yield _line("grid", y(at * step))
        yield f'<text class="small end" x="{_LEFT - 6}" y="{y(at * step) + 4:.1f}">{_figure(at * step)}</text>'
    for kind, values in panel.areas:
        if any(values):
            outlines = (_outline(values, stretch, time, y, base) for stretch in time.stretches)
            yield f'<path class="{kind}" d="{"".join(outlines)}"/>'
    for place, line in enumerate(panel.lines):
        yield f'<path class="limit l{place}" d="{"".join(_steps(line, time, y, highest))}"/>'
    yield _line("base", base)
    most = max(widest, default=0.0)
    if most > highest:
        x = min(_WIDTH - _RIGHT - 60, time.x[list(widest).index(most)] + time.bin + 3)
        yield f'<text class="small" x="{x:.1f}" y="{y(highest) + 13:.1f}">↑ {_figure(most)}</text>'


def _line(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _outline(
    values: Sequence[float], stretch: range, time: _Time, y: Callable[[float], float], base: float
) -> str:
    steps = "".join(f"V{y(values[at]):.1f}H{time.x[at] + time.bin:.1f}" for at in stretch)
    return f"M{time.x[stretch[0]]:.1f} {base:.1f}{steps}V{base:.1f}Z"


def _steps(
    values: Sequence[float | None], time: _Time, y: Callable[[float], float], highest: float
) -> Iterator[str]:
    """The line through values, with a gap where there is none, or one beyond what is drawn."""
    for stretch in time.stretches:
        pen = "M"
        for at in stretch:
            value = values[at]
            if value is None or value > highest:
                pen = "M"
                continue
            to = f"M{time.x[at]:.1f} {y(value):.1f}" if pen == "M" else f"V{y(value):.1f}"
            yield f"{to}H{time.x[at] + time.bin:.1f}"
            pen = "V"


def _scale(most: float, height: int) -> tuple[float, float]:
    """A round number that is no less than `most`, and the step between the lines below it."""
    rough = (most or 1.0) / max(1, height // 40)
    size = 10.0 ** floor(log10(rough))
    round_ = (1, 2, 2.5, 5, 10) if height > 60 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    step = next(size * each for each in round_ if size * each >= rough * 0.999)
    return step * (ceil(most / step) or 1), step


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{Decimal(f'{value:.3g}'):f}"


# --- the time ---


def _pauses(time: _Time, bottom: float) -> Iterator[str]:
    """Where nothing was at work, and for how long."""
    for before, after in zip(time.stretches, time.stretches[1:], strict=False):
        seconds = time.start[after[0]] - time.start[before[-1]] - time.width_s
        x = time.x[after[0]] - time.pause / 2
        if time.pause >= _SHOWN_PAUSE:
            yield f'<line class="pause" x1="{x:.1f}" x2="{x:.1f}" y1="26" y2="{bottom:g}"/>'
        yield _hint(x - time.pause / 2, time.pause, bottom, f"nothing was at work for {duration(seconds)}")


def _axis(time: _Time, bottom: float) -> Iterator[str]:
    """Times of day, or days, and below them the date or the year where it is another one."""
    yield f'<text class="small" x="0" y="{bottom + 12:g}">UTC</text>'
    step = _tick_s(time)
    free, date = _LEFT - 1.0, ""
    ends = time.start[0], time.start[-1] + time.width_s
    is_of_years = len({datetime.fromtimestamp(end, UTC).year for end in ends}) > 1
    apart = _DATES_APART if is_of_years and step < _DAY_S else _APART
    for at, x in _ticks(time, step):
        if x < free:
            continue
        free = x + apart
        moment_ = datetime.fromtimestamp(at, UTC)
        today = f"{moment_:%b} {moment_.day}"
        # The first and the last would reach beyond the drawing.
        place = "mid" if x - _LEFT > _APART / 2 else ""
        place = "end" if x > _WIDTH - _APART / 2 else place
        clock = f"{moment_:%H:%M:%S}" if step < 60 else f"{moment_:%H:%M}" if step < _DAY_S else today
        yield f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom - 4:g}" y2="{bottom:g}"/>'
        yield f'<text class="small {place}" x="{x:.1f}" y="{bottom + 12:g}">{clock}</text>'
        below = today if step < _DAY_S else ""
        if is_of_years:
            below = f"{moment_:%Y-%m-%d}" if step < _DAY_S else f"{moment_:%Y}"
        if below not in ("", date):
            yield f'<text class="small {place}" x="{x:.1f}" y="{bottom + 26:g}">{below}</text>'
            date = below


def _tick_s(time: _Time) -> int:
    """The seconds between two ticks that have room for their words."""
    least = _APART * time.width_s / time.bin
    days = -(-least // _DAY_S)
    return next((tick for tick in _TICKS_S if tick >= least), int(days) * _DAY_S)


def _ticks(time: _Time, step: int) -> Iterator[tuple[float, float]]:
    """Unix times and where they stand: round ones, and the beginning of a stretch that has none of its own."""
    for stretch in time.stretches:
        begin, end = time.start[stretch[0]], time.start[stretch[-1]] + time.width_s
        first = -(-begin // step) * step
        if first > end or (first - begin) * time.bin / time.width_s > _APART:
            yield begin, time.x[stretch[0]]
        at = first
        while at <= end:
            yield at, time.x[stretch[0]] + (at - begin) * time.bin / time.width_s
            at += step


def _hints(over_time: Mapping[str, Any], time: _Time, bottom: float) -> Iterator[str]:
    """What shows when the pointer rests on a bin."""
    counted = zip(
        over_time["start"], over_time["results"], over_time["failures"], over_time["refused"], strict=True
    )
    for x, (start, results, failures, refused) in zip(time.x, counted, strict=True):
        told = [f"{results:,} results"]
        told += [
            f"{count:,} {word}" for count, word in ((failures, "failures"), (refused, "refused")) if count
        ]
        when = f"{moment(start)}, {amount(time.width_s)} s"
        yield _hint(x, time.bin, bottom, f"{when}: {', '.join(told)}")


def _hint(x: float, width: float, bottom: float, words: str) -> str:
    return (
        f'<rect class="bin" x="{x:.1f}" y="26" width="{width:.1f}" height="{bottom - 26:g}">'
        f"<title>{words}</title></rect>"
    )
