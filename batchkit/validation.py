"""Looks at an input without sending anything: every bad line with its number and reason, and custom_ids that come twice."""

from __future__ import annotations

import os
from typing import Any

from batchkit.formats.requests import parse_line
from batchkit.records import BadLine
from batchkit.source import Source

__all__ = ["validate"]


def validate(input: str | os.PathLike[str]) -> dict[str, Any]:  # noqa: A002 - the contract's word
    """What is wrong with an input, `lines` counting all but blank ones:

        {"lines", "requests", "invalid": [{"index", "code", "message"}],
         "duplicate_custom_ids": [{"custom_id", "indexes"}]}

    Two requests with one custom_id are allowed, but their answers are hard to tell apart. A path is read twice and only
    custom_ids that look alike are kept, 64 bits for each line; stdin or a pipe is read once and all its custom_ids are kept. Raises
    UsageError where the input cannot be read.
    """
    source = Source(os.fspath(input))
    read_once = source.identify().size is None
    seen: set[int] = set()
    suspects: set[int] = set()
    known: dict[str, list[int]] = {}
    invalid = []
    lines = 0
    for line in source.lines():
        lines += 1
        request = parse_line(line, {})
        if isinstance(request, BadLine):
            invalid.append({"index": request.index, "code": request.code, "message": request.message})
            continue
        if read_once:
            known.setdefault(request.custom_id, []).append(request.index)
            continue
        key = hash(request.custom_id)
        (suspects if key in seen else seen).add(key)
    if suspects:
        for line in source.lines():
            request = parse_line(line, {})
            if not isinstance(request, BadLine) and hash(request.custom_id) in suspects:
                known.setdefault(request.custom_id, []).append(request.index)
    return {
        "lines": lines,
        "requests": lines - len(invalid),
        "invalid": invalid,
        "duplicate_custom_ids": [
            {"custom_id": custom_id, "indexes": indexes}
            for custom_id, indexes in known.items()
            if len(indexes) > 1
        ],
    }
