"""What the simulator is to behave like: every option with its default, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from batchkit.errors import UsageError

__all__ = ["DEFAULT_PORT", "FaultKind", "SimulatorSettings"]

DEFAULT_PORT = 8000
"""Where the command listens when it is not told; in Python the default is any free port."""


class FaultKind(StrEnum):
    """What can be made to go wrong, by the word that asks for it."""

    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    RATE_LIMITED = "429"
    RESET = "reset"
    """The connection is reset without an answer."""
    CUT = "cut"
    """The connection ends in the middle of a good answer, which is billed."""
    HANG = "hang"
    """No answer, for as long as the client waits."""
    HTML = "html"
    """A page with status 200."""
    ERROR_200 = "error200"
    """An error object with status 200."""
    EMPTY = "empty"
    """A completion without choices; its prompt is billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """How the simulator behaves. Times are seconds; a median with its sigma is a lognormal distribution.

    Raises `UsageError` for a value that cannot be meant.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 is any free port."""
    seed: int = 0
    """With the same seed the same body is answered alike, whatever came before it."""

    output_tokens: float = 60
    """Median length of an answer in tokens."""
    output_sigma: float = 0.6
    first_token_s: float = 0.5
    """Median time until the first token."""
    first_token_sigma: float = 0.5
    tokens_per_s: float = 60
    """Median speed of one answer after its first token."""
    tokens_per_s_sigma: float = 0.3
    speed: float = 1
    """How many times faster than life; it divides all latencies, and leaves the limits as they are."""
    instant: bool = False
    """No latency at all."""

    rpm: int | None = None
    """Requests a minute; None is no limit. Enforced by the second: a burst is at most one second's worth."""
    tpm: int | None = None
    """Tokens a minute, prompt and the most an answer may have (its median where the request does not say)."""
    max_in_flight: int | None = None
    """Requests worked on at once; None is no limit."""
    refusal_cost: int = 0
    """Requests that each refusal for `rpm` takes out of it, as with providers that count what they refuse."""
    hide_limits: bool = False
    """Tell nothing of the limits: neither where they stand nor, unless `retry_after_s` is given, when to come again."""
    retry_after_s: float | None = None
    """When every refusal by a limit says to come again; None is when there will be room."""
    refuse_key: bool = False
    """Refuse every request as one with a wrong key."""
    quota: int | None = None
    """Billed answers after which the account is empty; None is never."""

    faults: Mapping[str, float] = field(default_factory=dict)
    """`FaultKind` to the share of bodies it hits; together at most 1."""
    fault_times: int = 1
    """How often a body that is hit fails before it is answered."""
    ledger: str | None = None
    """A file that gets one JSON line for each billed answer, appended before the answer is sent."""

    def __post_init__(self) -> None:
        for name in ("output_tokens", "tokens_per_s", "speed"):
            self._check(name, above_zero=True)
        for name in ("output_sigma", "first_token_s", "first_token_sigma", "tokens_per_s_sigma"):
            self._check(name)
        for name in ("rpm", "tpm", "max_in_flight"):
            if getattr(self, name) is not None:
                self._check(name, above_zero=True)
        for name in ("quota", "retry_after_s"):
            if getattr(self, name) is not None:
                self._check(name)
        self._check("refusal_cost")
        self._check("fault_times", above_zero=True)
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"port is {self.port}: a port is a number from 0 (any free one) to 65535.")
        kinds = ", ".join(FaultKind)
        for kind, share in self.faults.items():
            if kind not in tuple(FaultKind):
                raise UsageError(f"There is no fault {kind!r}; the faults are {kinds}.")
            if not 0 <= share <= 1:
                raise UsageError(f"The share of fault {kind} is {share}: it is a number from 0 to 1.")
        if sum(self.faults.values()) > 1 + 1e-9:
            raise UsageError(
                f"The shares of all faults are {sum(self.faults.values()):g} together: at most 1 is possible."
            )

    def _check(self, name: str, *, above_zero: bool = False) -> None:
        value = getattr(self, name)
        if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
            raise UsageError(
                f"{name} is {value}: it must be a number {'above' if above_zero else 'of at least'} 0."
            )

    def lived(self, seconds: float) -> float:
        """What a latency of `seconds` takes here, in seconds."""
        return 0.0 if self.instant else seconds / self.speed
