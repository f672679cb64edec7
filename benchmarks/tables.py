"""What a benchmark found, on stdout and in a page of the docs; what it is at, on stderr."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["say", "show", "table"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown that can be read as it is."""
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]

    def draw(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([draw(head), draw(["-" * width for width in widths]), *map(draw, lines)])


def show(parts: Iterable[str], script: str, page: Path | None) -> None:
    """Print what was found and the command that did, and put it into a page between the two marks of that script."""
    command = shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]])
    figures = "\n\n".join([*parts, f"`{command}`"])
    print(figures)
    if page is None:
        return
    begin, end = f"<!-- {script}: begin -->", f"<!-- {script}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{page} has no {begin} … {end}")
    page.write_text(f"{before}{begin}\n\n{figures}\n\n{end}{after}", encoding="utf-8")
