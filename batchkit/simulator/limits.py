"""The limits a provider has: requests and tokens a minute, and requests at once.

Told the time, they answer whether a request is let in and, if not, when it may come again. A limit of N a minute is
enforced by the second, as providers do: a bucket that holds one second's worth and fills steadily. A request larger
than the bucket is let in when the bucket is full, and leaves it in debt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from batchkit.simulator.settings import SimulatorSettings

__all__ = ["Bucket", "Limits", "Refusal", "Standing"]

_ROUNDING = 1e-6
"""So that who comes back exactly when told is let in."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not let in: by which limit, and in how many seconds it may be; None where that is never, or not told."""

    limit: Literal["requests", "tokens"]
    message: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How one limit stands: what it is a minute, what is left at this moment, the seconds until it is whole again."""

    limit: Literal["requests", "tokens"]
    per_minute: int
    remaining: int
    reset_s: float


class Bucket:
    """One limit of `per_minute`. The clock is whatever `now` says, in seconds; it may not run backwards."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._per_s = per_minute / 60
        self._capacity = max(1.0, self._per_s)
        self._level = self._capacity
        self._filled_at = float("-inf")

    def level(self, now: float) -> float:
        """What is in it; below 0 while it is in debt."""
        if now > self._filled_at:
            self._level = min(self._capacity, self._level + (now - self._filled_at) * self._per_s)
            self._filled_at = now
        return self._level

    def wait(self, now: float, cost: float) -> float:
        """Seconds until `cost` can be taken; 0 is now."""
        missing = min(cost, self._capacity) - self.level(now)
        return missing / self._per_s if missing > _ROUNDING else 0.0

    def take(self, now: float, cost: float) -> None:
        """Take `cost` out, into debt if need be."""
        self._level = self.level(now) - cost

    def reset(self, now: float) -> float:
        """Seconds until it is full."""
        return (self._capacity - self.level(now)) / self._per_s


class Limits:
    """All limits of `settings` together: a request is let in by every one of them or touches none."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._requests = Bucket(settings.rpm) if settings.rpm is not None else None
        self._tokens = Bucket(settings.tpm) if settings.tpm is not None else None
        self._max_in_flight = settings.max_in_flight
        self._refusal_cost = settings.refusal_cost
        self._hidden = settings.hide_limits
        self._retry_after_s = settings.retry_after_s

    def admit(self, now: float, *, tokens: int, in_flight: int) -> Refusal | None:
        """Let a request of so many `tokens` in (None), or say what is against it, with `in_flight` being worked on."""
        if self._max_in_flight is not None and in_flight >= self._max_in_flight:
            return Refusal(
                "requests",
                f"Too many requests at once: Limit {self._max_in_flight}, Used {in_flight}.",
                self._hint(1),
            )
        if self._requests is not None and (wait := self._requests.wait(now, 1)):
            limit = self._requests.per_minute
            if self._refusal_cost:
                self._requests.take(now, self._refusal_cost)
                wait = self._requests.wait(now, 1)
            return Refusal(
                "requests",
                f"Rate limit reached on requests per min (RPM): Limit {limit}, Requested 1.",
                self._hint(wait),
            )
        if self._tokens is not None:
            limit = self._tokens.per_minute
            if tokens > limit:
                return Refusal(
                    "tokens",
                    f"Request too large on tokens per min (TPM): Limit {limit}, Requested {tokens}.",
                    retry_after_s=None,
                )
            if wait := self._tokens.wait(now, tokens):
                return Refusal(
                    "tokens",
                    f"Rate limit reached on tokens per min (TPM): Limit {limit}, Requested {tokens}.",
                    self._hint(wait),
                )
            self._tokens.take(now, tokens)
        if self._requests is not None:
            self._requests.take(now, 1)
        return None

    def standings(self, now: float) -> list[Standing]:
        """How the limits of rate stand, those that are set and told."""
        standings: list[Standing] = []
        if self._hidden:
            return standings
        if self._requests is not None:
            standings.append(_standing("requests", self._requests, now))
        if self._tokens is not None:
            standings.append(_standing("tokens", self._tokens, now))
        return standings

    def _hint(self, wait: float) -> float | None:
        """What a refusal says of coming again, when there will be room after `wait` seconds."""
        if self._retry_after_s is not None:
            return self._retry_after_s
        return None if self._hidden else wait


def _standing(limit: Literal["requests", "tokens"], bucket: Bucket, now: float) -> Standing:
    return Standing(limit, bucket.per_minute, max(0, int(bucket.level(now))), bucket.reset(now))
