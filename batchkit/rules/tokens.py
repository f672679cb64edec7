"""How many tokens a prompt has, before it is sent.

A chat is billed as 3 tokens, plus for each message 3, its role, its content and, where it has one, its name and 1: the
framing that OpenAI's chat models put around the text. For text messages to gpt-4o, gpt-4.1, gpt-4 and gpt-3.5 the count
is the billed one; where something else is in the body (images, tools, a schema) or the model's framing is not published,
it is an estimate and says so.

The tables of an encoding take a tenth of a second and 65 MB: they are read when a text is first counted, not on import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import orjson

from batchkit.records import Request

__all__ = ["DEFAULT_ENCODING", "PromptCount", "count_prompt", "count_text", "encoding_for", "exact_prompt"]

DEFAULT_ENCODING = "o200k_base"
"""What a model is counted with that is not OpenAI's, or not known: close for most of them, exact for none."""

_FAMILIES = (
    # What a model's name begins with, its encoding, whether its framing is the published one. First match wins.
    ("gpt-4o", "o200k_base", True),
    ("chatgpt-4o", "o200k_base", True),
    ("gpt-4.1", "o200k_base", True),
    ("gpt-4.5", "o200k_base", True),
    ("gpt-5", "o200k_base", False),
    ("o1", "o200k_base", False),
    ("o3", "o200k_base", False),
    ("o4", "o200k_base", False),
    ("gpt-4", "cl100k_base", True),
    ("gpt-3.5-turbo-0301", "cl100k_base", False),
    ("gpt-3.5", "cl100k_base", True),
    ("gpt-35", "cl100k_base", True),
)

_PER_PROMPT = 3
_PER_MESSAGE = 3
_PER_NAME = 1
_PER_SMALL_IMAGE = 85
_PER_IMAGE = 765

_SHORT = 2_000
"""Roles and system prompts come again and again, and 512 texts of so many characters are at most a few megabytes."""


@dataclass(frozen=True, slots=True)
class PromptCount:
    """`tokens` of a prompt; `exact` when that is what is billed, false when it is an estimate."""

    tokens: int
    exact: bool


@lru_cache(maxsize=64)
def encoding_for(model: str | None) -> tuple[str, bool]:
    """The encoding of `model`, and whether prompts to it are known to be counted by this module's rule.

    A provider in front (`openai/gpt-4o`, `@slug/gpt-4o`) and a fine-tuning prefix (`ft:`) are looked through.
    """
    if model is not None:
        name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:")
        for prefix, encoding, known in _FAMILIES:
            if name.startswith(prefix):
                return encoding, known
    return DEFAULT_ENCODING, False


def count_text(text: str, encoding: str = DEFAULT_ENCODING) -> int:
    """Tokens of `text`, special tokens in it (`<|endoftext|>`) counted as the plain text they are."""
    return _count_short(text, encoding) if len(text) <= _SHORT else _count(text, encoding)


def count_prompt(body: Mapping[str, Any]) -> PromptCount:
    """Tokens of the prompt in a chat completion's `body`. Never raises, whatever the body holds.

    An image is taken for one of 1024x1024 pixels, sound and files for nothing; tools, tool calls and schemas count as
    the JSON they are written in. All of these make the count inexact.
    """
    model = body.get("model")
    encoding, exact = encoding_for(model if isinstance(model, str) else None)
    tokens = _PER_PROMPT
    messages = body.get("messages")
    if not isinstance(messages, list):
        return PromptCount(tokens, exact=False)
    for message in messages:
        count = _count_message(message, encoding)
        tokens += count.tokens
        exact = exact and count.exact
    for value in (body.get("tools"), body.get("functions"), _schema(body.get("response_format"))):
        if value:
            tokens += _count_json(value, encoding)
            exact = False
    return PromptCount(tokens, exact)


def exact_prompt(request: Request) -> int | None:
    """Tokens of the prompt of `request` where it is known how they are billed, else None; the tables are only read if it may be."""
    if not encoding_for(request.model)[1]:
        return None
    count = count_prompt(orjson.loads(request.body))
    return count.tokens if count.exact else None


def _count_message(message: Any, encoding: str) -> PromptCount:
    if not isinstance(message, Mapping):
        return PromptCount(_PER_MESSAGE + _count_json(message, encoding), exact=False)
    tokens, exact = _PER_MESSAGE, "content" in message
    for key, value in message.items():
        if key == "content":
            content = _count_content(value, encoding)
            tokens += content.tokens
            exact = exact and content.exact
        elif key in ("role", "name") and isinstance(value, str):
            tokens += count_text(value, encoding) + (_PER_NAME if key == "name" else 0)
        elif value is not None:
            tokens += _count_json(value, encoding)
            exact = False
    return PromptCount(tokens, exact)


def _count_content(content: Any, encoding: str) -> PromptCount:
    if isinstance(content, str):
        return PromptCount(count_text(content, encoding), exact=True)
    if not isinstance(content, list):
        return PromptCount(0 if content is None else _count_json(content, encoding), exact=False)
    # How several parts are joined is not published.
    tokens, exact = 0, len(content) == 1
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if isinstance(text, str):
            tokens += count_text(text, encoding)
        else:
            exact = False
            if kind == "image_url":
                image = part.get("image_url")
                detail = image.get("detail") if isinstance(image, Mapping) else None
                tokens += _PER_SMALL_IMAGE if detail == "low" else _PER_IMAGE
    return PromptCount(tokens, exact)


def _schema(response_format: Any) -> Any:
    return response_format.get("json_schema") if isinstance(response_format, Mapping) else None


def _count_json(value: Any, encoding: str) -> int:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (RecursionError, TypeError, ValueError):  # nested deeper than can be written down
        return 0
    return count_text(text, encoding)


@lru_cache(maxsize=512)
def _count_short(text: str, encoding: str) -> int:
    return _count(text, encoding)


def _count(text: str, encoding: str) -> int:
    count: Callable[[str], int] = _tokenizer(encoding).count
    try:
        return count(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return count(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


@lru_cache(maxsize=8)
def _tokenizer(encoding: str) -> Any:
    return _bindings().tokenizer_for_encoding(encoding)


@lru_cache(maxsize=1)
def _bindings() -> ModuleType:
    """The compiled part of bpe_openai alone.

    The package around it reads every vocabulary it has into dicts, which takes a second and as much memory as all the tables,
    for a translation from tokens to text that nobody asks for here.
    """
    package = find_spec("bpe_openai")
    assert package is not None
    found = PathFinder.find_spec("bpe_openai._bindings", package.submodule_search_locations)
    assert found is not None
    assert found.loader is not None
    bindings = module_from_spec(found)
    found.loader.exec_module(bindings)
    return bindings
