"""The summary for the eye: one HTML file that needs no network, no script and no second file.

It reads the summary's JSON and nothing else, so it can be made from a summary file long after the run. Whatever came
from outside goes through `_text`: it is escaped for HTML, with control and bidi characters written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from batchkit.formats.drawing import DRAWING_STYLE, draw_over_time
from batchkit.formats.summary_text import at_least, unlisted_of, what_next
from batchkit.formats.words import amount, cost_in_words, dollars, duration, moment, printable

__all__ = ["render_html"]

_MOST_BARS = 12
_WIDTH = 700
_BAR = 590
"""The longest bar of a chart, beside a number of up to 13 characters."""
_NAME_CHARS = 56
"""So many of the widest letters are as wide as a chart."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #dfe3ea; --page: #f6f7f9; --card: #fff;
  --good: #2e8b57; --bad: #c8453b; --wait: #b9c0cc; --one: #3a6ea8; --two: #d98e32; --three: #7b3fb5; --area: #a9c6e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a2b1; --line: #313947; --page: #14181f;
  --card: #1c222c; --good: #4db37c; --bad: #e2695f; --wait: #465064; --one: #6ea3dc; --two: #e5a756;
  --three: #c9a5f0; --area: #3d628c; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 60rem; margin: auto; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .3rem 0; overflow-wrap: anywhere; } .soft { color: var(--soft); }
.badge { font-size: .85rem; font-weight: 600; padding: .15rem .6rem; border-radius: 1rem; color: #fff;
  background: var(--soft); vertical-align: middle; }
.badge.completed { background: var(--good); } .badge.stopped, .badge.interrupted { background: var(--bad); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem 1.2rem;
  margin-top: 1rem; overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; } .figures div { flex: 1 0 9.5rem; max-width: 100%; }
.figures b { display: block; font-size: 1.5rem; line-height: 1.3; overflow-wrap: break-word; } .figures span { color: var(--soft); }
.done { display: flex; height: .8rem; margin: 1rem 0 .6rem; border-radius: .4rem; overflow: hidden; background: var(--wait); }
.done i { display: block; } .done .bad { min-width: 3px; } .good { background: var(--good); } .bad { background: var(--bad); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border: 0; color: var(--soft); font-weight: 500; } td { overflow-wrap: anywhere; } td:first-child { min-width: 10rem; }
.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
svg { display: block; width: 100%; min-width: 32rem; height: auto; margin-top: .4rem; } svg text { fill: var(--ink); font-size: 12px; }
.one { fill: var(--one); } .two { fill: var(--two); }
.key::before { content: ""; display: inline-block; width: .7rem; height: .7rem; margin-right: .35rem;
  background: currentColor; } .key.c1 { color: var(--one); } .key.c2 { color: var(--two); margin-left: 1rem; }
.key span { color: var(--soft); }
"""


def render_html(summary: Mapping[str, Any]) -> str:
    """The whole page, for the summary that `formats.summary.build` made."""
    body = "".join(
        (
            _head(summary),
            _requests(summary),
            _over_time(summary),
            _models(summary),
            _outcomes(summary),
            _latency(summary),
            _errors(summary),
            _attempts(summary),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(summary['job_id'])} · batchkit</title>\n"
        f"<style>{_STYLE}{DRAWING_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _head(summary: Mapping[str, Any]) -> str:
    status, time = str(summary["status"]), summary["time"]
    when = ""
    if time["started_at"] is not None:
        span = f"{moment(time['started_at'])} to {moment(time['finished_at'])}"
        when = f'<p class="soft">{span}, {duration(time["active_s"])} at work</p>\n'
    simulated = '<p class="soft">Simulated: nothing was billed.</p>\n' if summary.get("simulated") else ""
    badge = f'<span class="badge {_text(status)}">{_text(status)}</span>'
    return f"<h1>Job {_text(summary['job_id'])} {badge}</h1>\n{when}{simulated}<p>{_text(what_next(summary))}</p>\n"


def _requests(summary: Mapping[str, Any]) -> str:
    requests, usage, rates = summary["requests"], summary["usage"], summary["throughput"]
    ended = requests["succeeded"] + requests["failed"]
    total = max(requests["total"] or ended, 1)
    of = "" if requests["total"] is None else f" of {requests['total']:,}"
    figures = [
        (f"{requests['succeeded']:,}", f"results{of}"),
        (f"{requests['failed']:,}", "failures"),
        (_cost(summary), "cost, list prices"),
        (f"{usage['prompt_tokens']:,}", f"prompt tokens, {usage['cached_tokens']:,} cached"),
        (f"{usage['completion_tokens']:,}", f"completion tokens, {usage['reasoning_tokens']:,} reasoning"),
    ]
    if requests["pending"]:
        figures.insert(2, (f"{requests['pending']:,}", "pending"))
    if rates["requests_per_s"] is not None:
        figures.append(
            (amount(rates["requests_per_s"]), f"requests/s, {amount(rates['tokens_per_s'])} tokens/s")
        )
    notes = []
    if requests.get("truncated"):
        notes.append(f"{requests['truncated']:,} results were cut at their length limit.")
    if unlisted := unlisted_of(summary):
        notes.append(
            f"{unlisted:,} tokens are in the totals of answers alone; they are billed, and the cost leaves them out."
        )
    if usage["unknown"]:
        notes.append(f"{usage['unknown']:,} answers came without usage; tokens and cost leave them out.")
    if summary["cost"]["unpriced_models"]:
        notes.append(f"No known price: {_text(', '.join(summary['cost']['unpriced_models']))}.")
    if maybe := summary["cost"].get("maybe_cost"):
        notes.append(f"Up to {dollars(maybe)} more may have been billed.")
    bars = "".join(
        f'<i class="{kind}" style="width:{100 * count / total:.2f}%"></i>'
        for kind, count in (("good", requests["succeeded"]), ("bad", requests["failed"]))
        if count
    )
    cells = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in figures)
    return _section(
        "",
        f'<div class="figures">{cells}</div>\n<p class="done">{bars}</p>\n'
        + "".join(f'<p class="soft">{note}</p>\n' for note in notes),
    )


def _over_time(summary: Mapping[str, Any]) -> str:
    drawn = draw_over_time(summary)
    return _section("Over time", drawn) if drawn else ""


def _models(summary: Mapping[str, Any]) -> str:
    models = sorted(summary["models"].items(), key=lambda item: -item[1]["usage"]["total_tokens"])
    if not models:
        return ""
    most = max(max(_sides(model["usage"])) for _, model in models) or 1
    # Numbers stand behind their bars, so the longest bar has to leave room for the longest number.
    longest = min(_BAR, _WIDTH - 6 - 8 * len(f"{most:,}"))
    bars = []
    for place, (name, model) in enumerate(models[:_MOST_BARS]):
        top = place * 46
        bars.append(f'<text x="0" y="{top + 12}">{_text(_short(printable(name), _NAME_CHARS))}</text>')
        for offset, kind, count in zip((17, 29), ("one", "two"), _sides(model["usage"]), strict=True):
            bars.append(_bar(top + offset, kind, longest * count / most, f"{count:,}"))
    height = 46 * min(len(models), _MOST_BARS)
    rows = [
        (
            _text(name),
            f"{model['requests']:,}",
            *(
                f"{model['usage'][key]:,}"
                for key in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
            ),
            "not known" if model["cost"] is None else cost_in_words(model),
        )
        for name, model in models
    ]
    key = (
        '<p><span class="key c1"><span>prompt tokens</span></span><span class="key c2"><span>completion tokens</span>'
        "</span></p>\n"
    )
    heads = ("model", "requests", "prompt", "cached", "completion", "reasoning", "cost")
    return _section("Usage by model", key + _svg(height, bars) + _table(heads, rows))


def _outcomes(summary: Mapping[str, Any]) -> str:
    outcomes = summary["outcomes"]
    if not any(
        outcomes[name][counted] for name, counted in (("failures", "requests"), ("retries", "attempts"))
    ):
        return ""
    rows = [
        (
            label,
            f"{outcomes[name][counted]:,}",
            *(
                f"{outcomes[name]['usage'][key]:,}"
                for key in (
                    "prompt_tokens",
                    "cached_tokens",
                    "completion_tokens",
                    "reasoning_tokens",
                    "unknown",
                )
            ),
            cost_in_words(outcomes[name]),
        )
        for name, counted, label in (
            ("results", "requests", "results"),
            ("failures", "requests", "failures"),
            ("retries", "attempts", "attempts that were repeated"),
        )
    ]
    heads = (
        "what became of it",
        "answers",
        "prompt",
        "cached",
        "completion",
        "reasoning",
        "not known of",
        "cost",
    )
    return _section("Usage by outcome", _table(heads, rows))


def _latency(summary: Mapping[str, Any]) -> str:
    latency = summary["latency_s"]
    if latency["max"] is None:
        return ""
    longest = latency["max"] or 1
    bars = []
    for place, name in enumerate(("p50", "p90", "p99", "max")):
        top = place * 22
        bars.append(f'<text x="0" y="{top + 12}">{name}</text>')
        width = (_BAR - 40) * latency[name] / longest
        bars.append(_bar(top + 3, "one", width, f"{amount(latency[name])} s", left=40))
    return _section("Latency of the last attempts", _svg(22 * 4, bars))


def _errors(summary: Mapping[str, Any]) -> str:
    errors = sorted(summary["errors"].items(), key=lambda item: (-item[1]["count"], item[0]))
    if not errors:
        return ""
    rows = [(_text(code), f"{error['count']:,}", _text(_short(error["example"]))) for code, error in errors]
    return _section("Failures", _table(("code", "count", "first"), rows, numbers=(1,)))


def _attempts(summary: Mapping[str, Any]) -> str:
    attempts = summary["attempts"]
    reasons = sorted(attempts["by_reason"].items(), key=lambda item: (-item[1], item[0]))
    told = f"<p>{attempts['total']:,} attempts, {attempts['retried']:,} of them repeated.</p>\n"
    table = (
        _table(("repeated because of", "attempts"), [(_text(r), f"{n:,}") for r, n in reasons])
        if reasons
        else ""
    )
    return _section("Attempts", told + table)


def _section(title: str, content: str) -> str:
    head = f"<h2>{title}</h2>\n" if title else ""
    return f"<section>\n{head}{content}</section>\n"


def _table(
    heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], numbers: tuple[int, ...] | None = None
) -> str:
    """A table of ready HTML cells; `numbers` are the columns set to the right, by default all but the first."""
    right = range(1, len(heads)) if numbers is None else numbers

    def line(tag: str, cells: tuple[str, ...]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if place in right else f"<{tag}>{cell}</{tag}>"
            for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{line('th', heads)}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"


def _svg(height: int, shapes: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(shapes)}</svg>\n'


def _bar(top: int, kind: str, width: float, label: str, left: int = 0) -> str:
    width = max(1.0, width)
    return (
        f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.1f}" height="10" rx="2"/>'
        f'<text x="{left + width + 6:.1f}" y="{top + 9}">{label}</text>'
    )


def _sides(usage: Mapping[str, int]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"]


def _cost(summary: Mapping[str, Any]) -> str:
    cost = summary["cost"]
    if cost["total"] is not None:
        return f"{at_least(summary)}{dollars(cost['total'])}"
    return f"{dollars(cost['known_total'])} + ?" if cost["known_total"] else "not known"


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(text: Any) -> str:
    return escape(printable(str(text)))
