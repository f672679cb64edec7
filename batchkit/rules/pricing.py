"""What tokens cost: list prices, exactly, or None. Never a guess and never a silent zero.

The prices are those of genai-prices, a list that ships as data and is looked at offline. It finds a model by clauses
of which some are loose ("starts with gpt-4o-audio"), fit for a dashboard and not for a bill: a fine-tune of one's own
would be charged as its parent. So what it finds is taken only where the name is a spelling of the model that was
found: the same, or with a date, a version, `latest` or a vendor's namespace around it. All else has no price.

Many models cost more for all of a request whose prompt is long. `Tally` keeps sums apart by the bands between all
such lengths, so a price applied to a band's sum gives what the single requests would have come to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from batchkit.records import Usage
from batchkit.rules.tally import BAND_EDGES, FROM_CACHE, Tally

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelPrice, Provider

__all__ = ["Cost", "Price", "PriceList", "Rate", "cost_of"]

_SUFFIX = r"(?:[-@:.](?:latest|preview|exp|beta|v\d+|\d{3,8}|\d{4}-\d{2}-\d{2}|\d{2}-\d{2}(?:-\d{4})?|v\d+:\d+)){0,4}"
_NAMESPACE = r"(?:[a-z0-9-]+[./])*"
_DIGITS = 60


@dataclass(frozen=True, slots=True)
class Rate:
    """US dollars for a million tokens: `base`, or where the prompt is longer than a tier's start, that tier's.

    `tiers` are (start in prompt tokens, price) in ascending order.
    """

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, band: int) -> Decimal:
        """The price in a band of `tally.BAND_EDGES`. A tier that begins within the band counts for all of it."""
        longest = BAND_EDGES[band] if band < len(BAND_EDGES) else None
        price = self.base
        for start, tier in self.tiers:
            if longest is None or longest > start:
                price = tier
        return price


@dataclass(frozen=True, slots=True)
class Price:
    """What one model costs, in US dollars. `model` and `provider` are the price list's own names.

    Without a rate of their own cached tokens cost what others of the prompt do, and reasoning what others of the
    completion do. `per_request` comes on top of each request.
    """

    model: str
    provider: str
    prompt: Rate
    completion: Rate
    cached: Rate | None = None
    reasoning: Rate | None = None
    per_request: Decimal = Decimal(0)

    def cost(self, usage: Usage, band: int = 0, requests: int = 1) -> Decimal:
        """What `requests` of one band (`tally.band_of`) that took `usage` together cost, exactly."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
        with localcontext() as context:
            context.prec = _DIGITS
            millionths = (
                (usage.prompt_tokens - cached) * self.prompt.at(band)
                + cached * (self.cached or self.prompt).at(band)
                + (usage.completion_tokens - reasoning) * self.completion.at(band)
                + reasoning * (self.reasoning or self.completion).at(band)
            )
            return millionths.scaleb(-6) + requests * self.per_request


class PriceList:
    """The price list as it stood at `at` (Unix time in seconds, say a job's start) for one endpoint.

    `base_url` tells the provider. One that the list does not know, a gateway or a server of one's own, tells nothing:
    then the model's name has to say whose it is. The list is read at the first look, which takes a second.
    """

    def __init__(self, *, at: float, base_url: str = "") -> None:
        self._at = datetime.fromtimestamp(at, UTC)
        self._base_url = base_url
        self._found: dict[str, Price | None] = {}

    @cached_property
    def name(self) -> str:
        """The list and its version, as `genai-prices 0.2.3`."""
        import genai_prices  # noqa: PLC0415 - slow to import, so only when a price is asked for

        return f"genai-prices {genai_prices.__version__}"

    def find(self, model: str) -> Price | None:
        """The price of `model` as a request or an answer spells it, also `vendor/model` and Portkey's `@slug/model`.

        None if the model is not in the list or has no price there.
        """
        if model not in self._found:
            self._found[model] = self._look_up(model.strip().lower())
        return self._found[model]

    def load(self) -> None:
        """Read the list now, which takes a second, instead of at the first look."""
        _ = self._list

    @cached_property
    def _list(self) -> DataSnapshot:
        from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - as above

        return get_snapshot()

    @cached_property
    def _provider(self) -> Provider | None:
        if not self._base_url:
            return None
        return _provider_at(self._base_url)

    def _look_up(self, name: str) -> Price | None:
        if self._provider is not None:
            return self._of(self._provider, name)
        vendor, slash, model = name.partition("/")
        return (
            self._by_name(name)
            or self._by_vendor(vendor.removeprefix("@"), model)
            # A slug of Portkey's is a name that someone gave to an account, so it need not say whose the model is.
            or (self._look_up(model) if slash and vendor.startswith("@") else None)
        )

    def _by_name(self, name: str) -> Price | None:
        owners = (
            each for each in self._list.providers if each.model_match and each.model_match.is_match(name)
        )
        return next((price for owner in owners if (price := self._of(owner, name))), None)

    def _by_vendor(self, vendor: str, model: str) -> Price | None:
        owner = next((each for each in self._list.providers if each.id == vendor), None)
        return self._of(owner, model) if owner else None

    def _of(self, provider: Provider, name: str) -> Price | None:
        found = provider.find_model(name, all_providers=self._list.providers)
        if found is None or not any(_is_spelling(name, span) for span in _spans(found.match, name)):
            return None
        return _price(found.id, provider.id, found.get_prices(self._at))


@lru_cache(maxsize=8)
def _provider_at(base_url: str) -> Provider | None:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - as above

    providers = get_snapshot().providers
    return next((each for each in providers if re.match(each.api_pattern, base_url)), None)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job cost, in US dollars. `total` is None if some model has no price; `known_total` is that of the rest.

    `dearest` is what one answer cost at most, as far as prices are known: none was longer than what it is of.
    """

    total: Decimal | None
    known_total: Decimal
    unpriced_models: tuple[str, ...]
    by_model: Mapping[str, Decimal | None]
    dearest: Decimal = Decimal(0)


def cost_of(tally: Tally, prices: PriceList) -> Cost:
    """What all tokens of `tally` cost at `prices`.

    A model none of whose answers gave its usage counts as unpriced, for its cost is as unknown. Where only some
    answers did not (`ModelTotal.unknown`) the others are counted. Answers from a gateway's cache cost nothing.
    """
    by_model: dict[str, Decimal | None] = {}
    dearest = Decimal(0)
    for model, total in tally.models.items():
        bands = [(band, each) for band, each in total.bands.items() if band != FROM_CACHE]
        price = prices.find(model)
        if not bands:
            by_model[model] = Decimal(0)
        elif price is None or 0 < sum(each.requests for _, each in bands) == sum(
            each.unknown for _, each in bands
        ):
            by_model[model] = None
        else:
            by_model[model] = sum(
                (price.cost(each.usage, band, each.requests) for band, each in bands), Decimal(0)
            )
            dearest = max(dearest, *(price.cost(each.longest, band) for band, each in bands))
    known = sum((cost for cost in by_model.values() if cost is not None), Decimal(0))
    unpriced = tuple(model for model, cost in by_model.items() if cost is None)
    return Cost(None if unpriced else known, known, unpriced, by_model, dearest)


def _price(model: str, provider: str, prices: ModelPrice) -> Price | None:
    prompt, completion = _rate(prices.input_mtok), _rate(prices.output_mtok)
    if prompt is None or completion is None:
        return None
    per_thousand = _rate(prices.requests_kcount)
    return Price(
        model,
        provider,
        prompt,
        completion,
        cached=_rate(prices.cache_read_mtok),
        reasoning=_rate(prices.output_reasoning_mtok),
        per_request=per_thousand.base / 1000 if per_thousand else Decimal(0),
    )


def _rate(price: Any) -> Rate | None:
    if price is None:
        return None
    if isinstance(price, Decimal):
        return Rate(price)
    return Rate(price.base, tuple((tier.start, tier.price) for tier in price.tiers))


def _spans(clause: Any, name: str) -> Iterator[tuple[int, int]]:
    """Where in `name` the clauses of the price list that are met say something of it."""
    from genai_prices import types  # noqa: PLC0415 - as above

    match clause:
        case types.ClauseOr(or_=parts) | types.ClauseAnd(and_=parts):
            for part in parts:
                yield from _spans(part, name)
        case _ if not clause.is_match(name):
            return
        case types.ClauseEquals():
            yield 0, len(name)
        case types.ClauseStartsWith(starts_with=text):
            # A fine-tune's name goes on with whatever its owner chose; its price is that of the class before it.
            yield 0, len(name) if text.startswith("ft:") else len(text)
        case types.ClauseEndsWith(ends_with=text):
            yield len(name) - len(text), len(name)
        case types.ClauseContains(contains=text):
            start = name.index(text.lower())
            yield start, start + len(text)
        case types.ClauseRegex(regex=regex):
            if found := re.search(regex, name):
                yield found.span()


def _is_spelling(name: str, span: tuple[int, int]) -> bool:
    """Whether `name` says no more than its part `span` does, but for a namespace before and a version behind it."""
    start, end = span
    if start == end or not re.fullmatch(_NAMESPACE, name[:start]):
        return False
    # A clause may end within the version: "claude-sonnet-4-2025", "gemini-2.0-flash-0".
    stem = re.sub(r"[-@:.]\d*$", "", name[start:end])
    return any(re.fullmatch(_SUFFIX, rest) for rest in (name[end:], name[start + len(stem) :]))
