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

_IMAGES = (
    # What a model's name begins with, its tokens for an image of 1024x1024 pixels, and for one with `detail: "low"`.
    ("gpt-4o-mini", 25_501, 2_833),
    ("gpt-4.1-mini", 1_659, 1_659),
    ("gpt-4.1-nano", 2_519, 2_519),
    ("gpt-5-mini", 1_659, 1_659),
    ("gpt-5-nano", 2_519, 2_519),
    ("gpt-5", 630, 70),
    ("o1", 675, 75),
    ("o3", 675, 75),
    ("o4-mini", 1_761, 1_761),
    ("claude", 1_398, 1_398),
    ("", 765, 85),
)
"""From https://platform.openai.com/docs/guides/images-vision (Calculating costs), where an image is four tiles and a base, or 1,024
patches times a factor whatever its detail, and from https://docs.claude.com/en/docs/build-with-claude/vision (pixels / 750). The
last is gpt-4o's, and taken for all others. First match wins."""

_PER_PROMPT = 3
_PER_MESSAGE = 3
_PER_NAME = 1

_SHORT = 2_000
"""Roles and system prompts come again and again, and 512 texts of so many characters are at most a few megabytes."""


@dataclass(frozen=True, slots=True)
class PromptCount:
    """`tokens` of a prompt; `exact` when that is what is billed, false when it is an estimate.

    The tokens of `images` are guessed; those of `uncounted` parts, such as sound and files, are not in it.
    """

    tokens: int
    exact: bool
    images: int = 0
    uncounted: int = 0


@lru_cache(maxsize=64)
def encoding_for(model: str | None) -> tuple[str, bool]:
    """The encoding of `model`, and whether prompts to it are known to be counted by this module's rule.

    A provider in front (`openai/gpt-4o`, `@slug/gpt-4o`) and a fine-tuning prefix (`ft:`) are looked through.
    """
    if model is not None:
        name = _bare(model)
        for prefix, encoding, known in _FAMILIES:
            if name.startswith(prefix):
                return encoding, known
    return DEFAULT_ENCODING, False


def _bare(model: str) -> str:
    return model.lower().rsplit("/", 1)[-1].removeprefix("ft:")


@lru_cache(maxsize=64)
def _image_tokens(model: str) -> tuple[int, int]:
    """The tokens of an image of 1024x1024 pixels, and of one with `detail: "low"`."""
    name = _bare(model)
    return next((usual, low) for prefix, usual, low in _IMAGES if name.startswith(prefix))


def count_text(text: str, encoding: str = DEFAULT_ENCODING) -> int:
    """Tokens of `text`, special tokens in it (`<|endoftext|>`) counted as the plain text they are."""
    return _count_short(text, encoding) if len(text) <= _SHORT else _count(text, encoding)


def count_prompt(body: Mapping[str, Any]) -> PromptCount:
    """Tokens of the prompt in a chat completion's `body`. Never raises, whatever the body holds.

    An image is taken for one of 1024x1024 pixels, sound and files for nothing; tools, tool calls and schemas count as
    the JSON they are written in. All of these make the count inexact.
    """
    model = body.get("model")
    model = model if isinstance(model, str) else None
    encoding, exact = encoding_for(model)
    tokens, images, uncounted = _PER_PROMPT, 0, 0
    messages = body.get("messages")
    if not isinstance(messages, list):
        return PromptCount(tokens, exact=False)
    for message in messages:
        count = _count_message(message, encoding, model)
        tokens += count.tokens
        exact = exact and count.exact
        images += count.images
        uncounted += count.uncounted
    for value in (body.get("tools"), body.get("functions"), _schema(body.get("response_format"))):
        if value:
            tokens += _count_json(value, encoding)
            exact = False
    return PromptCount(tokens, exact, images, uncounted)


def exact_prompt(request: Request) -> int | None:
    """Tokens of the prompt of `request` where it is known how they are billed, else None; the tables are only read if it may be."""
    if not encoding_for(request.model)[1]:
        return None
    count = count_prompt(orjson.loads(request.body))
    return count.tokens if count.exact else None


def _count_message(message: Any, encoding: str, model: str | None) -> PromptCount:
    if not isinstance(message, Mapping):
        return PromptCount(_PER_MESSAGE + _count_json(message, encoding), exact=False)
    tokens, exact, images, uncounted = _PER_MESSAGE, "content" in message, 0, 0
    for key, value in message.items():
        if key == "content":
            content = _count_content(value, encoding, model)
            tokens += content.tokens
            exact = exact and content.exact
            images, uncounted = images + content.images, uncounted + content.uncounted
        elif key in ("role", "name") and isinstance(value, str):
            tokens += count_text(value, encoding) + (_PER_NAME if key == "name" else 0)
        elif value is not None:
            exact = False
            if key == "audio":
                uncounted += 1
            else:
                tokens += _count_json(value, encoding)
    return PromptCount(tokens, exact, images, uncounted)


def _count_content(content: Any, encoding: str, model: str | None) -> PromptCount:
    if isinstance(content, str):
        return PromptCount(count_text(content, encoding), exact=True)
    if not isinstance(content, list):
        return PromptCount(0 if content is None else _count_json(content, encoding), exact=False)
    # How several parts are joined is not published.
    tokens, exact, images, uncounted = 0, len(content) == 1, 0, 0
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
                usual, low = _image_tokens(model or "")
                tokens += low if detail == "low" else usual
                images += 1
            else:
                uncounted += 1
    return PromptCount(tokens, exact, images, uncounted)


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
