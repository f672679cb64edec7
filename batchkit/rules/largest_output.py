"""How long one answer of a model can be at most, where its provider says.

The figures are the "max output tokens" of the providers' own model pages: OpenAI's at
https://platform.openai.com/docs/models, Anthropic's at https://docs.claude.com/en/docs/about-claude/models/overview,
Google's at https://ai.google.dev/gemini-api/docs/models. A model whose page we do not know is not in the table, for a
bound that is too low is worse than none; what has a beta header or an option of its own for longer answers stands with
the longer one.
"""

from __future__ import annotations

import re
from functools import lru_cache

from batchkit.rules.spelling import NAMESPACE, VERSION

__all__ = ["largest_output"]

_TABLE = (
    # A model's name without date and version, and tokens of an answer. First match wins.
    (r"gpt-4o-2024-05-13", 4_096),
    (r"(?:chat)?gpt-4o(?:-mini)?(?:-(?:audio|search)-preview)?", 16_384),
    (r"gpt-audio(?:-mini)?", 16_384),
    (r"gpt-4\.1(?:-mini|-nano)?", 32_768),
    (r"gpt-4\.5", 16_384),
    (r"gpt-5(?:\.\d)?-chat", 16_384),
    (r"gpt-5-pro", 272_000),
    (r"gpt-5(?:\.\d)?(?:-mini|-nano|-pro|-sol|-terra|-luna)?(?:-codex(?:-mini|-max)?)?", 128_000),
    (r"o1-preview", 32_768),
    (r"o1-mini", 65_536),
    (r"o[134](?:-mini|-pro)?(?:-deep-research)?", 100_000),
    (r"gpt-4-turbo|gpt-4-(?:1106|0125|vision)", 4_096),
    (r"gpt-4", 8_192),
    (r"gpt-3\.?5-turbo(?:-16k)?", 4_096),
    (r"gpt-oss-(?:20|120)b", 131_072),
    (r"claude-3-(?:opus|sonnet|haiku)", 4_096),
    (r"claude-3[-.]5-(?:sonnet|haiku)", 8_192),
    (r"claude-3[-.]7-sonnet", 128_000),
    (r"claude-(?:opus-4(?:[-.][01])?|4-opus)", 32_000),
    (r"claude-(?:sonnet-4(?:[-.]0)?|4-sonnet)", 64_000),
    (r"claude-(?:sonnet|haiku|opus)-4[-.]5", 64_000),
    (r"claude-(?:sonnet|opus)-4[-.][678]", 128_000),
    (r"gemini-(?:1\.5|2\.0)-(?:pro|flash|flash-lite|flash-8b)", 8_192),
    (r"gemini-(?:2\.5|3|3\.1)-(?:pro|flash|flash-lite)", 65_536),
)
_PATTERNS = tuple((re.compile(rf"@?{NAMESPACE}(?:{name}){VERSION}"), tokens) for name, tokens in _TABLE)


@lru_cache(maxsize=1024)
def largest_output(model: str) -> int | None:
    """The most tokens, reasoning among them, that one answer of `model` can have; None where that is not known.

    A vendor or a slug in front, a date behind and a fine-tune's name are looked through.
    """
    name = model.strip().lower()
    if name.startswith("ft:"):
        # A fine-tune is called after the model it was made of: ft:gpt-4o-mini-2024-07-18:acme::abc
        name = name.removeprefix("ft:").partition(":")[0]
    return next((tokens for pattern, tokens in _PATTERNS if pattern.fullmatch(name)), None)
