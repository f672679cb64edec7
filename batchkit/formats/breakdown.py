"""The totals of a job apart by a value of its requests: as JSON for programs, as a table for people.

    {"metadata.team": {"blue": {"requests", "succeeded", "failed", "attempts", "usage", "cost"}, …, "(none)": …}}

The groups of one such object add up to the summary's own figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchkit.formats.summary import Figures, figures_to_json
from batchkit.formats.words import cost_in_words, printable

__all__ = ["GroupFigures", "build_breakdown", "render_breakdown"]

_MOST_ROWS = 50
_NAME_CHARS = 40
_HEADS = ("requests", "failed", "prompt", "completion", "cost")


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The totals of requests with one value."""

    succeeded: int
    failed: int
    attempts: int
    answered: Figures


def build_breakdown(by: str, groups: Mapping[str, GroupFigures]) -> dict[str, Any]:
    """The JSON object of the groups `by` what they are told apart, in the order in which they are given."""
    return {
        by: {
            value: {
                "requests": group.succeeded + group.failed,
                "succeeded": group.succeeded,
                "failed": group.failed,
                "attempts": group.attempts,
                **figures_to_json(group.answered),
            }
            for value, group in groups.items()
        }
    }


def render_breakdown(breakdown: Mapping[str, Any], *, none: str) -> str:
    """Tables for a terminal, of the groups with most tokens; `none` is the value that stands for having none."""
    return "\n".join(_table(by, groups, none) for by, groups in breakdown.items())


def _table(by: str, groups: Mapping[str, Any], none: str) -> str:
    if not set(groups) - {none}:
        return f"No request of the job has {printable(by)}.\n"
    ordered = sorted(groups.items(), key=lambda item: (-item[1]["usage"]["total_tokens"], item[0]))
    rows = [(_short(printable(by)), *_HEADS)]
    for value, group in ordered[:_MOST_ROWS]:
        usage = group["usage"]
        rows.append(
            (
                _short(printable(value)),
                f"{group['requests']:,}",
                f"{group['failed']:,}",
                f"{usage['prompt_tokens']:,}",
                f"{usage['completion_tokens']:,}",
                cost_in_words(group),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    if len(ordered) > _MOST_ROWS:
        lines.append(f"… and {len(ordered) - _MOST_ROWS:,} more; --json tells all")
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    return text if len(text) <= _NAME_CHARS else text[: _NAME_CHARS - 1] + "…"
