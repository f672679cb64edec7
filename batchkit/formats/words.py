"""Figures, times and names in words, for whoever reads them on a screen or a page.

Much in what people read was written by strangers: names, codes and ids are shown with control characters made visible, so
that none of them can move a terminal's cursor or hide another.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

__all__ = ["amount", "cost_in_words", "dollars", "duration", "moment", "printable", "unlisted_tokens"]


def printable(text: str) -> str:
    r"""`text` on one line, with what a terminal would obey, or hide, written out as `\x1b` or `\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else _escape(char) for char in text
    )


def duration(seconds: float) -> str:
    """`seconds` in its two largest units, as `45 s`, `1 min 23 s` or `2 d 5 h`."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    for unit, size, part, part_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def dollars(value: float) -> str:
    """An amount in US dollars: cents from a dollar on, below it four significant digits."""
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    return f"${value:.4f}" if value >= 0.1 else f"${Decimal(f'{value:.3g}'):f}"


def amount(value: float) -> str:
    """A rate or a duration with three digits, or all of its whole ones: 0.81, 12.3, 41,000."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cost_in_words(figures: Mapping[str, Any]) -> str:
    """The cost of some answers, as `$1.23`, or as far as it is known."""
    if figures["cost"] is not None:
        usage = figures["usage"]
        at_least = "at least " if usage["unknown"] or unlisted_tokens(usage) else ""
        return f"{at_least}{dollars(figures['cost'])}"
    return f"{dollars(figures['known_cost'])} + ?" if figures["known_cost"] else "not known"


def unlisted_tokens(usage: Mapping[str, int]) -> int:
    """Tokens in the totals of answers and in neither part of them: billed, and in no cost.

    Google and xAI leave what a model thought out of the completion's tokens.
    """
    # Some answers' totals are less than their parts.
    return max(0, usage["total_tokens"] - usage["prompt_tokens"] - usage["completion_tokens"])


def moment(unix_time: float) -> str:
    """A Unix time as date and time of day, in UTC."""
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
