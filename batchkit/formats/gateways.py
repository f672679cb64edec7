"""What a Portkey config lets the gateway make of one attempt (https://portkey.ai/docs/api-reference/inference-api/config-object).

Only what a cost can depend on is read: how often a provider may be asked, and what is put into the body on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

__all__ = ["MOST_RETRIES", "GatewayConfig", "read_config"]

MOST_RETRIES: Final = 5
"""More than five retries the gateway does not make."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`attempts` is how often providers may be asked for one attempt of ours, at most; `overrides` are fields of the body."""

    attempts: int = 1
    overrides: tuple[Mapping[str, Any], ...] = ()


def read_config(config: str | None) -> GatewayConfig:
    """What a config says that is spelled out. One that is named by its id only Portkey can read: it may retry at its most."""
    if config is None:
        return GatewayConfig()
    if not config.lstrip().startswith("{"):
        return GatewayConfig(1 + MOST_RETRIES)
    document = orjson.loads(config)
    return GatewayConfig(max(1, _attempts(document, 0)), tuple(_overrides(document, {})))


def _attempts(target: Any, inherited: int) -> int:
    if not isinstance(target, Mapping):
        return 1
    retry = target.get("retry")
    said = retry.get("attempts") if isinstance(retry, Mapping) else None
    retries = min(MOST_RETRIES, max(0, said)) if type(said) is int else inherited
    targets = target.get("targets")
    if isinstance(targets, list) and targets:
        # With a fallback each may be asked in turn.
        return sum(_attempts(each, retries) for each in targets)
    return 1 + retries


def _overrides(target: Any, inherited: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if not isinstance(target, Mapping):
        return
    said = target.get("override_params")
    fields = {**inherited, **said} if isinstance(said, Mapping) else inherited
    if fields:
        yield fields
    targets = target.get("targets")
    for each in targets if isinstance(targets, list) else ():
        yield from _overrides(each, fields)
