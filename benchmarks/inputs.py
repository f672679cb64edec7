"""Inputs of made-up requests."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["write_requests"]


def write_requests(path: Path, count: int, size: int) -> None:
    """`count` lines of `size` bytes, each another."""
    with path.open("w", encoding="ascii") as out:
        for number in range(count):
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Question {number}. "}]}
            line = json.dumps({"custom_id": f"request-{number}", "body": body})
            out.write(line.replace('. "', ". " + "x" * (size - len(line) - 1) + '"') + "\n")
