"""Prices of one's own: a TOML file, or a mapping in Python, with a table for each model.

    ["my-model"]                   US dollars for a million tokens, as it is spelled in a request or an answer
    prompt = 0.15                  or input
    completion = 0.60              or output
    cached = 0.075                 or cached_input: prompt tokens that were in the provider's cache
    reasoning = 0.60               completion tokens that were reasoning
    per_request = 0.0              US dollars for each request
    batch = 0.5                    what the provider's own batch API charges, as a share
    max_output_tokens = 16384      the most tokens one answer can have

`prompt` and `completion` have to be there, the rest may. Amounts are decimal numbers throughout, so nothing is rounded:
they go into JSON as strings and come back the same.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

__all__ = ["decode_prices", "prices_from_json", "prices_of", "prices_to_json"]

_SPELLINGS = {"input": "prompt", "output": "completion", "cached_input": "cached"}
_MOST = {
    "prompt": 1_000_000,
    "completion": 1_000_000,
    "cached": 1_000_000,
    "reasoning": 1_000_000,
    "per_request": 1_000_000,
    "batch": 1,
    "max_output_tokens": 1_000_000_000,
}
_WANTED = {
    "per_request": "US dollars for a request, from 0 to 1,000,000",
    "batch": "the share of the price that the provider's batch API charges, from 0 to 1",
    "max_output_tokens": "a whole number of tokens, from 1 to 1,000,000,000",
}
_WANTED_RATE = "US dollars for a million tokens, from 0 to 1,000,000"
_LONGEST_NAME = 200
_LEAST: Final = Decimal("1e-12")
"""Anything smaller but 0 is a mistake, and may take a million digits to be written out."""

Prices = dict[str, dict[str, Decimal]]


def decode_prices(data: bytes) -> Prices:
    """The prices of a TOML file, a BOM in front or not. Raises ValueError that names the key and what is expected there."""
    try:
        return prices_of(tomllib.loads(data.decode("utf-8-sig"), parse_float=Decimal))
    except (InvalidOperation, RecursionError):
        raise ValueError("a number in it is out of all bounds, or it is nested too deep") from None


def prices_of(tables: Mapping[Any, Any]) -> Prices:
    """Prices by model and `prompt`, `completion`, …; a float is taken for the number it is written as. Raises ValueError."""
    prices: Prices = {}
    seen: set[str] = set()
    for model, table in tables.items():
        if not isinstance(model, str) or not 0 < len(model.strip()) <= _LONGEST_NAME:
            raise ValueError(f"{str(model)[:_LONGEST_NAME]!r} is no name of a model")
        if not isinstance(table, Mapping):
            raise _wrong(model, repr(table), "a table with prompt and completion")
        if model.strip().lower() in seen:
            raise ValueError(f"{model} stands there twice; capital letters make no other model")
        seen.add(model.strip().lower())
        prices[model] = _price_of(model, table)
    return prices


def prices_to_json(prices: Mapping[str, Mapping[str, Decimal]]) -> dict[str, dict[str, str]]:
    """The same as JSON values, amounts as strings; `prices_from_json` gives it back exactly."""
    return {model: {name: str(value) for name, value in values.items()} for model, values in prices.items()}


def prices_from_json(value: Mapping[str, Mapping[str, str]]) -> Prices:
    """The prices whose JSON this is. Raises ValueError if it is none."""
    try:
        return prices_of(
            {model: {name: Decimal(text) for name, text in table.items()} for model, table in value.items()}
        )
    except (AttributeError, TypeError, InvalidOperation) as error:
        raise ValueError(f"not the JSON of prices: {error!r}") from error


def _price_of(model: str, table: Mapping[str, Any]) -> dict[str, Decimal]:
    price: dict[str, Decimal] = {}
    for key, value in table.items():
        name = _SPELLINGS.get(key, key)
        if name not in _MOST:
            hint = (
                f'; a name with dots stands in quotes, ["{model}.{key}"]'
                if isinstance(value, Mapping)
                else ""
            )
            raise ValueError(f"{model} has no {key}; it has {', '.join(_MOST)}{hint}")
        if name in price:
            raise ValueError(f"{model}: {key} is another word for {name}, which is there already")
        price[name] = _number(value, name, f"{model}: {key}")
    for name in ("prompt", "completion"):
        if name not in price:
            raise ValueError(f"{model} has no {name}: {_WANTED_RATE}")
    return price


def _number(value: Any, name: str, place: str) -> Decimal:
    wanted = _WANTED.get(name, _WANTED_RATE)
    is_count = name == "max_output_tokens"
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _wrong(place, repr(value), wanted)
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if (
        not number.is_finite()
        or 0 < number < _LEAST
        or not is_count <= number <= _MOST[name]
        or (is_count and number != number.to_integral_value())
    ):
        raise _wrong(place, str(value), wanted)
    return number


def _wrong(place: str, value: str, wanted: str) -> ValueError:
    return ValueError(f"{place} is {value}; it is {wanted}")
