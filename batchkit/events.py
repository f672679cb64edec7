"""What happened, told to the observers. The run is the same without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct

from batchkit.records import Failure, Outcome

__all__ = [
    "AttemptFailed",
    "Event",
    "Gauges",
    "Notice",
    "Observer",
    "RequestFinished",
    "RunFinished",
    "RunStarted",
    "RunStopping",
]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The job's files are open. `succeeded` and `failed` stand from earlier runs."""

    job_id: str
    succeeded: int
    failed: int
    endpoint: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt failed and will be repeated, in `wait_s` seconds at the earliest."""

    index: int
    attempt: int
    failure: Failure
    wait_s: float


class RequestFinished(Struct, frozen=True, gc=False):
    """A request ended; its line is in the output."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should read: what was mended, raised, lowered or waited for."""

    message: str


@dataclass(frozen=True, slots=True)
class RunStopping:
    """No new request is begun; what is in flight is drained."""

    reason: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over; `summary` is the one that stands in the summary file."""

    summary: Mapping[str, Any]


Event = RunStarted | AttemptFailed | RequestFinished | Notice | RunStopping | RunFinished


@dataclass(frozen=True, slots=True)
class Gauges:
    """The job at one moment, over all its runs but for what says otherwise.

    `total` is None while the input is still being counted. Rates are of this run's last half minute. `cost` is in USD
    and None while no price is known; `cost_is_partial` says that some model has no price. `max_cost` is None where there is no
    bound; with one, `cost` is all that counts against it. `holding` is what holds the
    run back: "server", "limit", "concurrency", "cost", "disk", "input" or "" for nothing. `detail` says it in words.
    `seconds_left` is None until it can be told. `awaited` are the requests that are under way for longest, with their custom_id and
    for how many seconds, once no more are to be begun and nothing but their answers is waited for; `unfinished` is how many
    there are of them in all.
    """

    total: int | None
    succeeded: int
    failed: int
    in_flight: int
    waiting: int
    requests_per_s: float
    tokens_per_s: float
    cost: float | None
    cost_is_partial: bool
    holding: str
    detail: str
    seconds_left: float | None
    max_cost: float | None = None
    awaited: tuple[tuple[str, float], ...] = ()
    unfinished: int = 0


class Observer(Protocol):
    """What a run tells of itself. A failing observer is dropped with a warning; the run goes on."""

    interval_s: float
    """How often `tick` is called, in seconds."""

    def handle(self, event: Event) -> None:
        """Told of everything that happens, in order, on the event loop: be quick."""

    def tick(self, gauges: Gauges) -> None:
        """Told how the run stands, every `interval_s` and once at its end."""

    def close(self) -> None:
        """Leave the terminal as it was found."""
