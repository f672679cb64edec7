"""What tokens cost: list prices, exactly, or None. Never a guess and never a silent zero.

The prices are those of genai-prices, a list that ships as data and is looked at offline. It finds a model by clauses
of which some are loose ("starts with gpt-4o-audio"), fit for a dashboard and not for a bill: a fine-tune of one's own
would be charged as its parent. So what it finds is taken only where the name is a spelling of the model that was
found: the same, or with a date, a version, `latest` or a vendor's namespace around it. All else has no price.

Prices of one's own (`--prices`) come before the list's: for a server of one's own, a discount, or a model that the list
does not know yet. They are found by the same rule.

Many models cost more for all of a request whose prompt is long. `Bill` keeps sums apart by the bands between all
such lengths, so a price applied to a band's sum gives what the single requests would have come to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

from batchkit.records import Usage
from batchkit.rules.bill import BAND_EDGES, FROM_CACHE, OUTCOMES, BandTotal, Bill, OutcomeTotal, band_of
from batchkit.rules.largest_output import largest_output
from batchkit.rules.money import sum_of
from batchkit.rules.spelling import is_spelling
from batchkit.rules.tally import Tally

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

__all__ = ["RELEASED", "Cost", "GivenPrices", "OutcomeCost", "Price", "PriceList", "Rate", "cost_of"]

RELEASED: Final = ("0.2.3", "2026-11-10")
"""The version of the price list that requirements.lock names, and the day it was published: the package does not tell."""

GivenPrices = Mapping[str, Mapping[str, Decimal]]
"""Prices of one's own by model: `prompt` and `completion`, and where they are known `cached`, `reasoning` (US dollars for a
million tokens), `per_request` (US dollars), `batch` (what the provider's own batch API charges, as a share) and
`max_output_tokens`."""

_GIVEN: Final = "given"
_BATCH: Final = {"processing": "batch"}
"""How the list marks prices of the providers' own batch APIs."""
_DIGITS = 60


@dataclass(frozen=True, slots=True)
class Rate:
    """US dollars for a million tokens: `base`, or where the prompt is longer than a tier's start, that tier's.

    `tiers` are (start in prompt tokens, price) in ascending order.
    """

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, band: int) -> Decimal:
        """The price in a band of `bill.BAND_EDGES`. A tier that begins within the band counts for all of it."""
        longest = BAND_EDGES[band] if band < len(BAND_EDGES) else None
        price = self.base
        for start, tier in self.tiers:
            if longest is None or longest > start:
                price = tier
        return price

    def most(self, band: int) -> Decimal:
        """The highest price in a band or any below it."""
        return max(self.at(each) for each in range(band + 1))


@dataclass(frozen=True, slots=True)
class Price:
    """What one model costs, in US dollars. `model` and `provider` are the price list's own names, or "given".

    Without a rate of their own cached tokens cost what others of the prompt do, and reasoning what others of the
    completion do. `per_request` comes on top of each request. `cache_write` is what a token costs at most that the
    provider puts into its cache; answers do not tell how many were, so it counts in `worst` alone. `batch` is what the
    same model costs through its provider's own batch API, None where that is not known. `largest_output` bounds the
    tokens of one answer: what its provider says, else the context window, None where neither is known.
    """

    model: str
    provider: str
    prompt: Rate
    completion: Rate
    cached: Rate | None = None
    reasoning: Rate | None = None
    cache_write: Rate | None = None
    per_request: Decimal = Decimal(0)
    batch: Price | None = None
    largest_output: int | None = None

    @property
    def is_given(self) -> bool:
        """Whether it is one of `GivenPrices`."""
        return self.provider == _GIVEN

    @classmethod
    def given(cls, model: str, values: Mapping[str, Decimal]) -> Price:
        """The price of one model of `GivenPrices`."""
        most = values.get("max_output_tokens")

        def price(share: Decimal, batch: Price | None = None) -> Price:
            def rate(name: str) -> Rate | None:
                return Rate(values[name] * share) if name in values else None

            return cls(
                model,
                _GIVEN,
                Rate(values["prompt"] * share),
                Rate(values["completion"] * share),
                cached=rate("cached"),
                reasoning=rate("reasoning"),
                per_request=values.get("per_request", Decimal(0)) * share,
                batch=batch,
                largest_output=largest_output(model) if most is None else int(most),
            )

        share = values.get("batch")
        return price(Decimal(1), None if share is None else price(share))

    def cost(self, usage: Usage, band: int = 0, requests: int = 1) -> Decimal:
        """What `requests` of one band (`bill.band_of`) that took `usage` together cost, exactly."""
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

    def worst(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """The most that one request of at most so many tokens of each kind can cost, whatever of them is cached or reasoning."""
        band = band_of(prompt_tokens)

        def dearest(*rates: Rate | None) -> Decimal:
            return max(rate.most(band) for rate in rates if rate is not None)

        with localcontext() as context:
            context.prec = _DIGITS
            millionths = prompt_tokens * dearest(
                self.prompt, self.cached, self.cache_write
            ) + completion_tokens * dearest(self.completion, self.reasoning)
            return millionths.scaleb(-6) + self.per_request


class PriceList:
    """The price list as it stood at `at` (Unix time in seconds, say a job's start) for one endpoint.

    `base_url` tells the provider. One that the list does not know, a gateway or a server of one's own, tells nothing:
    then the model's name has to say whose it is. `given` are prices that come before the list's. Where a provider asks
    more at some hours of the day, all is priced as at the hour of `at`. The list is read at the first look, which takes a
    second.
    """

    def __init__(self, *, at: float, base_url: str = "", given: GivenPrices | None = None) -> None:
        self._at = datetime.fromtimestamp(at, UTC)
        self._base_url = base_url
        own = {model.strip().lower(): values for model, values in (given or {}).items()}
        # The longest first: what is called "m-mini" is not meant by the price of "m".
        self._given = {model: Price.given(model, own[model]) for model in sorted(own, key=len, reverse=True)}
        self._found: dict[str, Price | None] = {}

    @cached_property
    def name(self) -> str:
        """The list and its version, as `genai-prices 0.2.3`."""
        import genai_prices  # noqa: PLC0415 - slow to import, so only when a price is asked for

        return f"genai-prices {genai_prices.__version__}"

    @cached_property
    def date(self) -> str | None:
        """The day on which the list was published, as `2026-11-10`; None for another version than we know of."""
        version, day = RELEASED
        return day if self.name == f"genai-prices {version}" else None

    def find(self, model: str) -> Price | None:
        """The price of `model` as a request or an answer spells it, also `vendor/model` and Portkey's `@slug/model`.

        None if the model is not in the list or has no price there.
        """
        if model not in self._found:
            name = model.strip().lower()
            self._found[model] = self._find_given(name) or self._look_up(name)
        return self._found[model]

    def largest_output(self, model: str) -> int | None:
        """The most tokens that one answer of `model` can have, or a bound of that; None where nothing is known of it."""
        price = self.find(model)
        return largest_output(model) if price is None else price.largest_output

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

    def _find_given(self, name: str) -> Price | None:
        if name in self._given:
            return self._given[name]
        for model, price in self._given.items():
            for spelled in (name, name.removeprefix("@")):
                start = spelled.rfind(model)
                if start >= 0 and is_spelling(spelled, (start, start + len(model))):
                    return price
        return None

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
        if found is None or not any(_names(name, span) for span in _spans(found.match, name)):
            return None
        price = _price(found.id, provider.id, found.get_prices(self._at))
        if price is None:
            return None
        return replace(
            price,
            batch=self._batch(found, provider),
            largest_output=largest_output(name) or found.context_window,
        )

    def _batch(self, model: ModelInfo, provider: Provider) -> Price | None:
        known = any(
            variant.when == _BATCH and (variant.constraint is None or variant.constraint.active(self._at))
            for variant in model.price_variants or ()
        )
        # Some providers' models are found at others, who need not have a batch API.
        if not known or not any(model is each for each in provider.models):
            return None
        return _price(model.id, provider.id, model.get_prices(self._at, _BATCH))


@lru_cache(maxsize=8)
def _provider_at(base_url: str) -> Provider | None:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - as above

    providers = get_snapshot().providers
    return next((each for each in providers if re.match(each.api_pattern, base_url)), None)


@dataclass(frozen=True, slots=True)
class OutcomeCost:
    """What answers cost of which the same became, in US dollars; as in `Cost`."""

    total: Decimal | None
    known_total: Decimal
    by_model: Mapping[str, Decimal | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job cost, in US dollars. `total` is None if some model has no price; `known_total` is that of the rest.

    `by_outcome` splits the cost by `bill.OUTCOMES`; its `known_total`s add up to the one here.
    `dearest` is what one answer cost at most, as far as prices are known: none was longer than what it is of.
    `batch_total` is what the same tokens come to through the providers' own batch APIs, None if that is not known of all.
    """

    total: Decimal | None
    known_total: Decimal
    unpriced_models: tuple[str, ...]
    by_model: Mapping[str, Decimal | None]
    by_outcome: Mapping[str, OutcomeCost]
    dearest: Decimal = Decimal(0)
    batch_total: Decimal | None = None


def cost_of(bill: Bill | Tally, prices: PriceList) -> Cost:
    """What all tokens cost at `prices`.

    A model none of whose answers gave its usage counts as unpriced, for its cost is as unknown. Where only some
    answers did not (`ModelTotal.unknown`) the others are counted. Answers from a gateway's cache cost nothing.
    """
    models = bill.models
    whole = _cost_of(models, prices)
    dearest = Decimal(0)
    batch_total: Decimal | None = Decimal(0)
    for model, total in models.items():
        cost, price = whole.by_model[model], prices.find(model)
        if cost is None or price is None:
            batch_total = batch_total if cost == 0 else None
            continue
        bands = _billed(total)
        dearest = max(dearest, *(price.cost(each.longest, band) for band, each in bands), Decimal(0))
        if cost and batch_total is not None:
            batch_total = None if price.batch is None else batch_total + _sum_of(price.batch, bands)
    return Cost(
        whole.total,
        whole.known_total,
        tuple(model for model, cost in whole.by_model.items() if cost is None),
        whole.by_model,
        {
            outcome: _cost_of({model: total.outcomes[outcome] for model, total in models.items()}, prices)
            for outcome in OUTCOMES
        },
        dearest,
        batch_total,
    )


def _cost_of(models: Mapping[str, OutcomeTotal], prices: PriceList) -> OutcomeCost:
    by_model: dict[str, Decimal | None] = {}
    known: list[Decimal] = []
    for model, total in models.items():
        bands, price = _billed(total), prices.find(model)
        # Of an answer without usage what the request itself costs is known all the same.
        cost = Decimal(0) if price is None else _sum_of(price, bands)
        known.append(cost)
        is_known = price is not None and any(each.unknown < each.answers for _, each in bands)
        by_model[model] = cost if is_known or not bands else None
    known_total = sum_of(known)
    return OutcomeCost(None if None in by_model.values() else known_total, known_total, by_model)


def _billed(total: OutcomeTotal) -> list[tuple[int, BandTotal]]:
    return [(band, each) for band, each in total.bands.items() if band != FROM_CACHE]


def _sum_of(price: Price, bands: Iterable[tuple[int, BandTotal]]) -> Decimal:
    return sum_of(price.cost(each.usage, band, each.answers) for band, each in bands)


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
        # A token that is kept for an hour costs more than one for minutes, and a request may ask for either.
        cache_write=_rate(prices.cache_write_1h_mtok) or _rate(prices.cache_write_mtok),
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


def _names(name: str, span: tuple[int, int]) -> bool:
    start, end = span
    # A clause may end within the version: "claude-sonnet-4-2025", "gemini-2.0-flash-0".
    stem = re.sub(r"[-@:.]\d*$", "", name[start:end])
    return is_spelling(name, span) or (start < end and is_spelling(name, (start, start + len(stem))))
