"""Who sends the requests of the table of `pacing.py`: one that knows the limits, batchkit, and what its peers do.

The peers are re-implemented, as far as pacing goes, from their source.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from random import Random
from typing import Protocol

from limits import WORKERS, Provider, VirtualClock

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.records import Failure, Reply, Request
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer

__all__ = ["CONTROLLERS", "Batchkit", "Controller", "Ideal"]


class Controller(Protocol):
    async def deliver(self, request: Request) -> object: ...


class Ideal:
    """Knows the limits and sends what will be taken, when it will be."""

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random) -> None:  # noqa: ARG002 - as the others
        self._provider = provider
        self._clock = clock
        self._turns: dict[str | None, asyncio.Lock] = {}

    async def deliver(self, request: Request) -> None:
        provider, model = self._provider, request.model or ""
        slots = provider._limits[model].slots  # noqa: SLF001 - it knows everything
        while True:
            async with self._turns.setdefault(model, asyncio.Lock()):
                while (wait := provider.against(request)) is not None or (
                    slots is not None and provider.in_flight[model] >= slots
                ):
                    if wait is not None and wait < math.inf:
                        await self._clock.sleep(wait)
                    else:
                        provider.freed.clear()
                        await provider.freed.wait()
                sent = asyncio.ensure_future(provider.attempt(request))
                await asyncio.sleep(0)
            if isinstance(await sent, Reply):
                return


class Backoff:
    """Each worker by itself, as OpenAI's SDK does it: 0.5 s doubled up to 8 s, less up to a quarter."""

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random) -> None:
        self._provider, self._clock, self._random = provider, clock, random

    async def deliver(self, request: Request) -> None:
        for attempt in count():
            answer = await self._provider.attempt(request)
            if isinstance(answer, Reply):
                return
            await self._clock.sleep(self._wait(answer, attempt))

    def _wait(self, failure: Failure, attempt: int) -> float:
        if failure.retry_after is not None and failure.retry_after <= 60.0:
            return failure.retry_after
        return min(8.0, 0.5 * 2.0 ** min(attempt, 10)) * (1.0 - 0.25 * self._random.random())


class SharedPause(Backoff):
    """Everyone waits 15 s from the last refusal on, as OpenAI's cookbook script does it."""

    _until = 0.0

    async def deliver(self, request: Request) -> None:
        while True:
            while (wait := self._until - self._clock.now()) > 0.0:
                await self._clock.sleep(wait)
            if isinstance(await self._provider.attempt(request), Reply):
                return
            self._until = self._clock.now() + 15.0


class _Window(Backoff):
    """Bounds what is in flight; subclasses move the bound. Who is refused gives its place back while it waits."""

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random, start: int) -> None:
        super().__init__(provider, clock, random)
        self.bound = start
        self._in_flight = 0
        self._waiting: deque[asyncio.Event] = deque()

    async def deliver(self, request: Request) -> None:
        for attempt in count():
            while self._in_flight >= self.bound:
                turn = asyncio.Event()
                self._waiting.append(turn)
                await turn.wait()
            self._in_flight += 1
            await self._admitted()
            answer = await self._provider.attempt(request)
            self._in_flight -= 1
            if isinstance(answer, Reply):
                self.taken(clean=not attempt)
            else:
                self.refused(answer)
            while self._waiting and len(self._waiting) > 0 and self._in_flight < self.bound:
                self._waiting.popleft().set()
                if len(self._waiting) + self._in_flight >= self.bound:
                    break
            if isinstance(answer, Reply):
                return
            await self._clock.sleep(self._wait(answer, attempt))

    async def _admitted(self) -> None:
        """A last wait before an attempt."""

    def taken(self, *, clean: bool) -> None:
        raise NotImplementedError

    def refused(self, failure: Failure) -> None:
        raise NotImplementedError


class InspectAI(_Window):
    """inspect_ai's AdaptiveConcurrencyController: doubled by rounds until a refusal, then times 0.8 and 5 % a round."""

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random) -> None:
        super().__init__(provider, clock, random, 20)
        self._successes = 0
        self._slow_start = True
        self._cool_until = 0.0

    def taken(self, *, clean: bool) -> None:
        if not clean or self._clock.now() < self._cool_until:
            return
        self._successes += 1
        if self._successes >= max(4, self.bound):
            self._successes = 0
            grown = 2 * self.bound if self._slow_start else self.bound + max(1, int(0.05 * self.bound))
            self.bound = min(WORKERS, grown)

    def refused(self, failure: Failure) -> None:  # noqa: ARG002 - as the others
        self._slow_start, self._successes = False, 0
        if self._clock.now() >= self._cool_until:
            self.bound = max(1, int(0.8 * self.bound))
            self._cool_until = self._clock.now() + 15.0


class DataDesigner(_Window):
    """DataDesigner's ThrottleManager: times 0.75 and a pause for all, one more for each 25 in a row, up to 110 % of the last bound."""

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random) -> None:
        super().__init__(provider, clock, random, WORKERS)
        self._streak = 0
        self._ceiling = 0
        self._in_a_row = 0
        self._until = 0.0

    async def _admitted(self) -> None:
        while (wait := self._until - self._clock.now()) > 0.0:
            await self._clock.sleep(wait)

    def taken(self, *, clean: bool) -> None:  # noqa: ARG002 - as the others
        self._in_a_row = 0
        self._streak += 1
        if self._streak >= 25:
            self._streak = 0
            most = WORKERS if not self._ceiling else math.ceil(1.1 * self._ceiling)
            self.bound = max(self.bound, min(self.bound + 1, most, WORKERS))

    def refused(self, failure: Failure) -> None:
        first = not self._in_a_row
        self._in_a_row += 1
        self._streak = 0
        self._until = self._clock.now() + (failure.retry_after or 2.0)
        if first:
            self._ceiling = min(self._ceiling or self.bound, self.bound)
            self.bound = max(1, int(0.75 * self.bound))


class Botocore(Backoff):
    """botocore's adaptive mode: CUBIC on the rate of a token bucket, which refusals switch on; SDK backoff beside it."""

    _SCALE, _BETA, _SMOOTH = 0.4, 0.7, 0.8

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random) -> None:
        super().__init__(provider, clock, random)
        self._measured = self._most = self._rate = 0.0
        self._slot = self._counted = 0
        self._limited_at = self._filled_at = self._level = 0.0
        self._limits = False
        self._turn = asyncio.Lock()

    async def deliver(self, request: Request) -> None:
        for attempt in count():
            await self._acquire()
            answer = await self._provider.attempt(request)
            self._heard(limited=not isinstance(answer, Reply))
            if isinstance(answer, Reply):
                return
            await self._clock.sleep(self._wait(answer, attempt))

    async def _acquire(self) -> None:
        if not self._limits:
            return
        async with self._turn:
            while True:
                now = self._clock.now()
                self._level = min(max(1.0, self._rate), self._level + (now - self._filled_at) * self._rate)
                self._filled_at = now
                if self._level >= 1.0 - 1e-9:
                    self._level -= 1.0
                    return
                await self._clock.sleep(max(0.001, (1.0 - self._level) / self._rate))

    def _heard(self, *, limited: bool) -> None:
        now = self._clock.now()
        self._counted += 1
        slot = int(2 * now)
        if slot > self._slot:
            rate = self._counted / ((slot - self._slot) / 2)
            self._measured = self._SMOOTH * rate + (1 - self._SMOOTH) * self._measured
            self._slot, self._counted = slot, 0
        if limited:
            base = min(self._measured, self._rate) if self._limits else self._measured
            self._most, self._limited_at = base, now
            wanted = self._BETA * base
            self._limits = True
        else:
            still = (self._most * (1 - self._BETA) / self._SCALE) ** (1 / 3)
            wanted = self._SCALE * (now - self._limited_at - still) ** 3 + self._most
        self._rate = max(0.5, min(wanted, 2.0 * self._measured))


class Batchkit:
    """The real thing: gate, pacer, delivery and all rules."""

    def __init__(self, provider: Provider, clock: VirtualClock, random: Random) -> None:
        stop = Stop()
        self.gate = Gate(Pacer(), clock, stop)
        self._delivery = Delivery(
            provider.attempt,
            gate=self.gate,
            policy=RetryPolicy(),
            budget=RetryBudget(WORKERS),
            stop_rule=StopRule(),
            tracer=Tracer("job", 7),
            stop=stop,
            clock=clock,
            jitter=random.random,
            emit=lambda _: None,
        )

    async def deliver(self, request: Request) -> None:
        await self._delivery.deliver(request)


CONTROLLERS: Mapping[str, Callable[[Provider, VirtualClock, Random], Controller]] = {
    "1000 with SDK backoff": Backoff,
    "shared 15 s pause": SharedPause,
    "inspect_ai": InspectAI,
    "DataDesigner": DataDesigner,
    "botocore": Botocore,
    "batchkit": Batchkit,
}
