"""The requests under way: which they are, since when, and the end of an attempt that lies far beyond its peers.

An attempt is awaited by its request's own task, so it costs no other and no timer; all are looked at together, once a second.
Whoever ends one says what its answer is, and the task takes that for what the attempt brought.
"""

from __future__ import annotations

from asyncio import Task
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from batchkit.engine.gate import Clock
from batchkit.records import Answer, Failure, FailureKind, Request
from batchkit.rules import patience as bounds
from batchkit.rules.patience import Limit, Patience

__all__ = ["UnderWay", "Watch"]

_LOOKED_AT_S = 1.0
_LOOKED_AT_OFTEN_S = 0.1
_STALL_S = 1.0
"""Who comes later than this found an event loop that stood still, and answers that have long arrived are read first."""
_MOST_MODELS = 64
"""A file may name as many models as it has lines; those beyond so many are compared with one another."""


class UnderWay(Struct, eq=False):
    """A request on its way to its outcome, in the `task` that made this, and the attempt that is under way for it."""

    request: Request
    patience: Patience
    """What is known of its peers."""
    since: float
    """When it was taken up, in seconds of the run's clock."""
    task: Task[Any] | None
    started: float | None = None
    """When the attempt under way began; None while there is none."""
    answered_before: int = 0
    """How many of its peers were answered by then."""
    given_up_after: float = 0.0
    """The seconds after which an attempt was given up; 0.0 while none was. Those that follow have the whole timeout."""
    hedged: bool = False
    """Whether there is, or was, a second attempt beside one."""
    ending: Answer | None = None
    """What ends the attempt under way, if that is not what it brings itself."""

    def end(self, answer: Answer) -> None:
        """Have the attempt under way end at once, with this answer."""
        if self.ending is None and self.task is not None and not self.task.cancelling():
            self.ending = answer
            self.task.cancel()

    def ended_with(self) -> Answer | None:
        """The answer with which the attempt was ended. None if it was not, or if the task was cancelled by others as well."""
        answer, self.ending = self.ending, None
        return answer if answer is not None and self.task is not None and not self.task.uncancel() else None


class Watch:
    """All requests under way in a run. `patient` says that attempts are given up when they lie far beyond their peers."""

    def __init__(self, clock: Clock, *, patient: bool) -> None:
        self._clock = clock
        self._patient = patient
        self.hedge: Callable[[TaskGroup, Iterator[tuple[UnderWay, float]]], None] | None = None
        """Told ten times a second of the attempts under way and for how long they are; what it begins is ended with `run`."""
        self.requests: dict[UnderWay, None] = {}
        """In the order in which they were taken up."""
        self._patience: dict[str | None, Patience] = {}

    def patience_with(self, model: str | None) -> Patience:
        """What is known of a model."""
        patience = self._patience.get(model)
        if patience is None:
            model = model if len(self._patience) < _MOST_MODELS else None
            patience = self._patience.setdefault(model, Patience())
        return patience

    def answered(self) -> tuple[int, float]:
        """How many completions came, and the seconds that they took together."""
        every = self._patience.values()
        return sum(each.answered for each in every), sum(each.answering_s for each in every)

    def oldest(self, most: int) -> list[tuple[str, float]]:
        """So many of the requests that are under way for longest: custom_id, and for how many seconds."""
        now = self._clock.now()
        return [(each.request.custom_id, now - each.since) for each in islice(self.requests, most)]

    async def run(self) -> None:
        """Look at what is under way until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                before = self._clock.now()
                await self._clock.sleep(_LOOKED_AT_S if self.hedge is None else _LOOKED_AT_OFTEN_S)
                now = self._clock.now()
                if now - before >= _LOOKED_AT_S + _STALL_S:
                    continue
                if self._patient:
                    self._give_up(now)
                if self.hedge is not None:
                    self.hedge(group, self._under_way_for(0.0, now))

    def _give_up(self, now: float) -> None:
        overdue: dict[Patience, list[tuple[UnderWay, float, Limit]]] = {}
        for each, took in self._under_way_for(bounds.LEAST_S, now):
            limit = each.patience.limit(each.request.max_tokens)
            if limit is not None and took >= limit.seconds:
                overdue.setdefault(each.patience, []).append((each, took, limit))
        for patience, late in overdue.items():
            for each, took, limit in late:
                answered = patience.answered - each.answered_before
                if not each.given_up_after and patience.gives_up(overdue=len(late), answered=answered):
                    each.given_up_after = took
                    each.end(_given_up(took, limit))

    def _under_way_for(self, seconds: float, now: float) -> Iterator[tuple[UnderWay, float]]:
        """The requests whose attempt is under way for so long at least, and for how long."""
        for each in self.requests:
            if now - each.since < seconds:
                return  # and so are those behind it
            if each.started is not None and now - each.started >= seconds:
                yield each, now - each.started


def _given_up(took: float, limit: Limit) -> Failure:
    return Failure(
        FailureKind.TIMEOUT,
        "timeout",
        f"no answer after {took:.0f} s, when 99 of 100 of its like took {limit.usual_s:.3g} s at most",
        maybe_billed=True,
    )
