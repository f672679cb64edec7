"""Has the lines of a run tell which limits it found: the first line that is written after one changed says so.

The limits are in no other place that outlives the run, and everything a summary tells is a fold over lines.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from batchkit.engine.gate import Clock, Gate
from batchkit.records import FoundLimit, Outcome
from batchkit.rules.names import MAX_NAME
from batchkit.rules.over_time import is_news
from batchkit.rules.pacing import Pacer

__all__ = ["LimitNews"]

_LOOK_EVERY_S: Final = 0.5


class LimitNews:
    """Looks at the limits that `gate` found, now and then."""

    def __init__(self, gate: Gate, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        self._look_at = clock.now()
        self._told: dict[str, FoundLimit] = {}

    def told_with(self, outcome: Outcome) -> Outcome:
        """`outcome` with the limits that changed since this was last asked; most are given back as they are."""
        now = self._clock.now()
        if now < self._look_at:
            return outcome
        self._look_at = now + _LOOK_EVERY_S
        changed = [
            limit
            for model, pacer in self._gate.pacers.items()
            if is_news(self._told.get((limit := _found((model or "")[:MAX_NAME], pacer)).model), limit)
        ]
        if not changed:
            return outcome
        self._told.update((limit.model, limit) for limit in changed)
        return replace(outcome, limits=tuple(changed))


def _found(model: str, pacer: Pacer) -> FoundLimit:
    per_minute, unit = pacer.limit_per_minute or (0.0, "")
    rate = _rounded(per_minute)
    return FoundLimit(
        model,
        requests_per_min=rate if unit == "requests" else None,
        tokens_per_min=rate if unit == "tokens" else None,
        in_flight=pacer.most_in_flight,
    )


def _rounded(rate: float) -> float:
    """To three digits: no limit is known better than that."""
    return float(f"{rate:.3g}")
