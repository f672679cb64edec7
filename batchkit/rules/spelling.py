"""Whether a name means a model, however it is spelled: `gpt-4o`, `openai/GPT-4o`, `gpt-4o-2024-08-06` are one."""

from __future__ import annotations

import re

__all__ = ["NAMESPACE", "VERSION", "is_spelling"]

VERSION = r"(?:[-@:.](?:latest|preview|exp|beta|v\d+|\d{3,8}|\d{4}-\d{2}-\d{2}|\d{2}-\d{2}(?:-\d{4})?|v\d+:\d+)){0,4}"
"""What may stand behind a model's name without making it another: dates, versions, `latest`."""

NAMESPACE = r"(?:[a-z0-9-]+[./])*"
"""What may stand before it: vendors and regions, as in `us.anthropic.` or `publishers/google/`."""


def is_spelling(name: str, span: tuple[int, int]) -> bool:
    """Whether `name`, in lower case, says no more than its part `span` does, but for a namespace and a version."""
    start, end = span
    return (
        start < end
        and re.fullmatch(NAMESPACE, name[:start]) is not None
        and re.fullmatch(VERSION, name[end:]) is not None
    )
