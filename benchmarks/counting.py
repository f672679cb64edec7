"""How fast the tokens of an input are counted: on one core, and on all.

Without a file it makes one of 64 MB in a temporary folder, each request a page of this repository's own prose. Prints tokens a
second by the clock, and a second of a core's time, which a busy machine changes less; the sums have to be the same.

    python benchmarks/counting.py [requests.jsonl]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from batchkit.counting import Piece, cores, count_pieces
from batchkit.rules.estimating import Demand
from batchkit.source import Source

ROOT = Path(__file__).parent.parent
PAGE = 6_000
SIZE = 64 << 20
PIECE_LINES = 40


def make(path: Path) -> None:
    prose = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    )
    pages = [prose[start : start + PAGE] for start in range(0, len(prose), PAGE)]
    with path.open("w", encoding="utf-8") as lines:
        for page in islice(cycle(pages), SIZE // PAGE):
            messages = [{"role": "user", "content": page}]
            lines.write(json.dumps({"model": "gpt-4o-mini", "messages": messages}) + "\n")


def measure(path: Path, processes: int) -> Demand:
    lines = Source(str(path)).lines()
    pieces: list[Piece] = []
    while piece := list(islice(lines, PIECE_LINES)):
        pieces.append(piece)
    whole = Demand()
    began, before = time.perf_counter(), os.times()
    for part in count_pieces(pieces, {}, processes):
        whole.merge(part)
    took, after = time.perf_counter() - began, os.times()
    # Those of children that have ended, and our own.
    worked = sum(after[:4]) - sum(before[:4])
    tokens = whole.prompt_tokens
    print(
        f"{processes} {'process ' if processes == 1 else 'processes'}: {tokens:,} tokens in {took:.1f} s, "
        f"{tokens / took:,.0f} a second, {tokens / worked:,.0f} a second of a core"
    )
    return whole


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "requests.jsonl"
        if len(sys.argv) == 1:
            make(path)
        assert measure(path, 1) == measure(path, max(2, cores()))


if __name__ == "__main__":
    main()
