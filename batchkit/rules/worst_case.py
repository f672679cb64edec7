"""The most that an attempt can cost, before it is sent; and what it did cost, as far as its answer tells.

A body has at least as many bytes as its texts have tokens, with any tokenizer whose tokens are made of bytes, and the JSON
around a message has more bytes than its framing has tokens. That bound costs nothing. It is several times the true count,
so it is counted out only where it decides (`counted`), and only for models whose count is known to be the billed one.

What the body does not show has an allowance: an image as many tokens as the dearest model takes for the largest one; a file,
or a part of a kind we do not know, as many as the longest context has; tools, the words that providers put around them.

A body whose cost has no bound here is refused (`UnboundedCostError`): no price, no length, a count that is no whole number and
that some servers read all the same, sound, a web search or another tool of the provider's, a dearer service tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Any, Final

from batchkit.records import Usage
from batchkit.rules.bill import band_of
from batchkit.rules.pricing import Price, PriceList
from batchkit.rules.tokens import count_prompt

__all__ = ["IMAGE_TOKENS", "PART_TOKENS", "TOOLS_TOKENS", "UnboundedCostError", "WorstCases"]

IMAGE_TOKENS: Final = 50_000
"""gpt-4o-mini bills 2,833 tokens for an image and 5,667 for each of at most eight tiles."""
PART_TOKENS: Final = 1_000_000
TOOLS_TOKENS: Final = 1_000
"""What providers write around tools: Anthropic's is the longest that is published, with up to 800 tokens."""

_CACHED_TOKENS: Final = 1024
"""Shorter prompts no provider caches; Claude's are cached where the body asks for it, others by themselves."""
_EXACTLY: Final = Context(prec=60)
_NOTHING: Final = Decimal(0)
# Compared one by one, for a body may have anything there, also what has no hash.
_USUAL_TIERS: Final = (None, "auto", "default", "standard", "standard_only", "flex")
_TEXTS: Final = ("text", "refusal")
_OWN_TOOLS: Final = (None, "function", "custom")
_SEARCHES: Final = ("web_search_options", "search_parameters", "plugins")
"""How OpenAI, xAI and OpenRouter are asked for a web search."""
_NAME_CHARS: Final = 200


class UnboundedCostError(ValueError):
    """What a request may cost has no bound; the message says why, and what would give it one."""


class WorstCases:
    """The bounds at a list of prices.

    `attempts` is how often a gateway may ask a provider for one attempt of ours, `overrides` what it may put into a body on
    the way (`formats.gateways`).
    """

    def __init__(
        self, prices: PriceList, *, attempts: int = 1, overrides: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._prices = prices
        self._attempts = attempts
        self._overrides = tuple(overrides)

    def check(self, body: Mapping[str, Any]) -> None:
        """Raise UnboundedCostError where `of` would."""
        _unseen_tokens(body)
        self._bounds(body)
        for override in self._overrides:
            _unseen_tokens(override)
            self._bounds({**body, **override})

    def of(self, body: Mapping[str, Any], size: int) -> Decimal:
        """The most that an attempt with `body`, JSON of `size` bytes, can cost. Raises UnboundedCostError."""
        return self._most(body, size + _unseen_tokens(body))

    def counted(self, body: Mapping[str, Any]) -> Decimal | None:
        """The same with the prompt's tokens counted; None where their count is an estimate. May take a second."""
        count = count_prompt(body)
        return self._most(body, count.tokens) if count.exact and not self._overrides else None

    def share(self, worst: Decimal, retries: int) -> Decimal:
        """What so many retries of a gateway's, -1 for all it had, may have cost of an attempt's `worst` case."""
        each = _EXACTLY.divide(worst, Decimal(self._attempts))
        return _EXACTLY.multiply(each, Decimal(retries if retries >= 0 else max(1, self._attempts - 1)))

    def cost(self, model: str, usage: Usage) -> Decimal | None:
        """What an answer of `model` cost; None where that has no price, or where the usage is that of no prompt."""
        price = self._prices.find(model) if model and usage.prompt_tokens else None
        return None if price is None else price.cost(usage, band_of(usage.prompt_tokens))

    def cache_writes(self, model: str, usage: Usage, body: bytes) -> Decimal:
        """What an answer may have cost on top: for putting the prompt into the provider's cache, of which no usage tells."""
        price = self._prices.find(model)
        if price is None or price.cache_write is None or usage.prompt_tokens < _CACHED_TOKENS:
            return _NOTHING
        if "claude" in price.model and b"cache_control" not in body:
            return _NOTHING
        band = band_of(usage.prompt_tokens)
        dearer = _EXACTLY.subtract(price.cache_write.at(band), price.prompt.at(band))
        written = max(0, usage.prompt_tokens - usage.cached_tokens)
        return _EXACTLY.multiply(max(_NOTHING, dearer), Decimal(written)).scaleb(-6, _EXACTLY)

    def unlisted(self, model: str, usage: Usage) -> Decimal:
        """The same for tokens that are in the total and in neither part of it.

        Google and xAI leave out what a model reasoned, Anthropic's answers through a gateway what has to do with its cache.
        """
        price = self._prices.find(model)
        tokens = usage.total_tokens - usage.prompt_tokens - usage.completion_tokens
        if price is None or tokens <= 0:
            return _NOTHING
        of_prompt, of_completion = (price.prompt, price.cache_write), (price.completion, price.reasoning)
        band = band_of(usage.total_tokens)
        rates = of_prompt if "claude" in price.model else of_completion
        dearest = max(rate.most(band) for rate in rates if rate is not None)
        return _EXACTLY.multiply(dearest, Decimal(tokens)).scaleb(-6, _EXACTLY)

    def _most(self, body: Mapping[str, Any], prompt_tokens: int) -> Decimal:
        worst = self._worst(body, prompt_tokens)
        for override in self._overrides:
            more = _size_of(override) + _unseen_tokens(override)
            worst = max(worst, self._worst({**body, **override}, prompt_tokens + more))
        return worst if self._attempts == 1 else _EXACTLY.multiply(worst, Decimal(self._attempts))

    def _worst(self, body: Mapping[str, Any], prompt_tokens: int) -> Decimal:
        price, completion_tokens = self._bounds(body)
        return price.worst(prompt_tokens, completion_tokens)

    def _bounds(self, body: Mapping[str, Any]) -> tuple[Price, int]:
        """The price of the model and the most tokens that its answers can have."""
        model = body.get("model")
        if not isinstance(model, str):
            raise UnboundedCostError("names no model, so it has no price; fill one in with --model")
        price = self._prices.find(model)
        if price is None:
            raise UnboundedCostError(
                f"names the model {model[:_NAME_CHARS]!r}, which has no known price; give it one with --prices"
            )
        return price, _completion_tokens(body, price, model)


def _completion_tokens(body: Mapping[str, Any], price: Price, model: str) -> int:
    limits = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    # "20" is no limit here, and one for some servers: which of two they take, nobody knows.
    is_limited = limits and all(type(limit) is int and limit > 0 for limit in limits)
    most = max(limits) if is_limited else price.largest_output
    if most is None:
        raise UnboundedCostError(
            f"has no max_tokens, and how long an answer of {model[:_NAME_CHARS]!r} can be is not known; bound it with "
            "--set max_tokens=N, or with max_output_tokens in --prices"
        )
    # What was predicted and not used is billed on top.
    predicted = _size_of(body["prediction"]) if body.get("prediction") else 0
    return (most + predicted) * max(1, _answers(body, "n"), _answers(body, "best_of"))


def _answers(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | None):
        # Five answers for some servers, where it is "5".
        raise UnboundedCostError(f"has a value for {name} that is no whole number")
    return value or 0


def _size_of(value: Any) -> int:
    try:
        return len(str(value).encode("utf-8", "replace"))
    except RecursionError:
        raise UnboundedCostError("has a value that is nested too deep to be measured") from None


def _unseen_tokens(body: Mapping[str, Any]) -> int:
    """What a prompt may have beyond the bytes of its body. Raises UnboundedCostError for what is billed otherwise."""
    tier = body.get("service_tier")
    if tier not in _USUAL_TIERS:
        named = f"the service tier {tier[:_NAME_CHARS]!r}" if isinstance(tier, str) else "a service tier"
        raise UnboundedCostError(f"asks for {named}, whose prices are not known")
    if any(body.get(name) is not None for name in _SEARCHES):
        raise UnboundedCostError("asks for a web search, which is billed by itself")
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping) and tool.get("type") not in _OWN_TOOLS:
            raise UnboundedCostError("has a tool of the provider's own, which is billed by itself")
    modalities = body.get("modalities")
    if body.get("audio") or (isinstance(modalities, list) and "audio" in modalities):
        raise UnboundedCostError("asks for sound, which has prices of its own")
    tokens = TOOLS_TOKENS if tools or body.get("functions") else 0
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, Mapping):
            continue
        if message.get("audio"):
            raise UnboundedCostError("has sound in it, which has prices of its own")
        content = message.get("content")
        if isinstance(content, list):
            tokens += sum(map(_unseen_part, content))
    return tokens


def _unseen_part(part: Any) -> int:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS:
        return 0
    if kind == "input_audio":
        raise UnboundedCostError("has sound in it, which has prices of its own")
    return IMAGE_TOKENS if kind == "image_url" else PART_TOKENS
