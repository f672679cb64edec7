"""How well batchkit finds a hidden limit, beside what its peers do, in simulated time.

A provider that takes a median of 4 s (lognormal, sigma 0.5) for an answer and 50 ms for a refusal hides a limit. A thousand workers
have requests without end. `ideal` knows the limit, never has a request refused, and is what the others are measured by. Three
figures stand in each cell: useful answers over those of the ideal; refusals for each hundred answers; and the time until nine
of ten of the ideal's answers were there, over the ideal's own (`-` if they never were).

batchkit is its real gate and delivery, on a clock that passes while nobody has anything to do. The peers are re-implemented, as far
as pacing goes, from their source. No figure depends on the machine, only on the seeds.
"""

import argparse
import asyncio
import math
import multiprocessing
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from statistics import mean
from typing import Protocol

sys.path.append(str(Path(__file__).parents[1] / "tests" / "simulation"))

from virtual_time import VirtualClock

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.records import (
    Announced,
    AnnouncedLimit,
    Answer,
    Failure,
    FailureKind,
    Reply,
    Request,
    Trace,
    Usage,
)
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer

WORKERS = 1000
MEDIAN_S = 4.0
SIGMA = 0.5
REFUSED_S = 0.05
PER_S = 50.0
LARGE = 20_000
"""Tokens: more than a second's worth of a million a minute."""


# --- the provider --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """What a provider takes of one model; whatever is None or zero is not limited."""

    per_s: Callable[[float], float] | None = None
    """Requests a second at a moment: a bucket of so many seconds' worth, and of one request at least."""
    burst_s: float = 1.0
    tokens_per_s: float | None = None
    in_flight: int | None = None
    """Refuses beyond so many at once."""
    slots: int | None = None
    """Works on so many at once; the others wait."""
    refusal_costs: float = 0.0
    """Requests that each refusal takes out of the bucket."""
    hint: float | None = None
    """The Retry-After of every refusal."""
    stray: float = 0.0
    """The share of requests that are refused for no reason."""
    announced: float | None = None
    """What all answers announce: the limit times this; None is nothing."""


@dataclass(frozen=True)
class Row:
    """One provider, and the requests that are sent to it for so many seconds."""

    limits: Mapping[str, Limit]
    seconds: float = 900.0
    shares: Mapping[str, float] = field(default_factory=lambda: {"m": 1.0})
    """The share of each model among the requests."""
    mixed_sizes: bool = False
    large: float = 0.0
    """The share of requests with a prompt of `LARGE` tokens."""
    median_s: float = MEDIAN_S
    """Of the lognormal time that an answer takes."""
    workers: int = WORKERS


def steady(rate: float) -> Callable[[float], float]:
    return lambda _: rate


def one(**limit: object) -> Mapping[str, Limit]:
    return {"m": Limit(**limit)}  # type: ignore[arg-type]


ROWS: Mapping[str, Row] = {
    "50/s": Row(one(per_s=steady(PER_S))),
    "5/s": Row(one(per_s=steady(5.0))),
    "0.5/s": Row(one(per_s=steady(0.5))),
    "50→20→50": Row(one(per_s=lambda now: 20.0 if 300 <= now < 600 else PER_S)),
    "Retry-After 30": Row(one(per_s=steady(PER_S), hint=30.0)),
    "a refusal counts": Row(one(per_s=steady(PER_S), refusal_costs=1.0)),
    "a refusal costs 2": Row(one(per_s=steady(PER_S), refusal_costs=2.0)),
    "200 in flight": Row(one(in_flight=200)),
    "20 in flight": Row(one(in_flight=20)),
    "slow beyond 200": Row(one(slots=200), seconds=600.0),
    "tokens": Row(one(tokens_per_s=25_000.0), mixed_sizes=True),
    "50/s, announced": Row(one(per_s=steady(PER_S), announced=1.0)),
    "50/s by the minute": Row(one(per_s=steady(PER_S), burst_s=60.0, announced=1.0)),
    "tokens, announced": Row(one(tokens_per_s=25_000.0, announced=1.0), mixed_sizes=True),
    "announced fourfold": Row(one(per_s=steady(PER_S), announced=4.0)),
    "ten keys, announced": Row(one(per_s=steady(PER_S), burst_s=60.0, announced=0.1)),
    "1M tokens a minute": Row(one(tokens_per_s=1e6 / 60), mixed_sizes=True, large=0.02),
    "two models": Row(
        {"m": Limit(per_s=steady(PER_S)), "n": Limit(per_s=steady(5.0))}, shares={"m": 10.0, "n": 1.0}
    ),
    "no limit": Row(one(), seconds=120.0),
    "no limit, 10 ms": Row(one(), seconds=0.9, median_s=0.01, workers=256),
    "1 % strays": Row(one(stray=0.01), seconds=240.0),
    "50/s, 1 % strays": Row(one(per_s=steady(PER_S), stray=0.01)),
    "out for 10 min": Row(one(per_s=lambda now: 0.0 if 300 <= now < 900 else PER_S), seconds=1500.0),
}


class Provider:
    """Answers, refuses, and counts both."""

    def __init__(self, row: Row, clock: VirtualClock, seed: int) -> None:
        self._clock = clock
        self._random = Random(seed)
        self._limits = row.limits
        self._median_s = row.median_s
        self._levels = dict.fromkeys(row.limits, math.inf)
        self._token_levels = dict(self._levels)
        self._filled_at = dict.fromkeys(row.limits, 0.0)
        self.in_flight = dict.fromkeys(row.limits, 0)
        self._served = {
            model: None if limit.slots is None else asyncio.Semaphore(limit.slots)
            for model, limit in row.limits.items()
        }
        self.answered: list[float] = []
        self.refused = 0
        self.freed = asyncio.Event()

    async def attempt(self, request: Request, trace: Trace | None = None) -> Answer:  # noqa: ARG002 - as an endpoint's
        model = request.model or ""
        limit = self._limits[model]
        if self.against(request) is not None or (limit.stray and self._random.random() < limit.stray):
            if limit.refusal_costs:
                self._levels[model] -= limit.refusal_costs
            self.refused += 1
            announced = self._announced(model)
            await self._clock.sleep(REFUSED_S)
            return Failure(
                FailureKind.RATE_LIMITED,
                "rate_limit_exceeded",
                "slow down",
                429,
                retry_after=limit.hint,
                announced=announced,
            )
        self._levels[model] -= 1.0
        size = tokens_of(request)
        self._token_levels[model] -= size
        announced = self._announced(model)
        takes_s = self._random.lognormvariate(math.log(self._median_s), SIGMA)
        self.in_flight[model] += 1
        served = self._served[model]
        if served is None:
            await self._clock.sleep(takes_s)
        else:
            async with served:
                await self._clock.sleep(takes_s)
        self.in_flight[model] -= 1
        self.freed.set()
        self.answered.append(self._clock.now())
        prompt = len(request.body) // 4
        return Reply(200, "", b"{}", model, Usage(prompt, size - prompt, size), "stop", announced=announced)

    def against(self, request: Request) -> float | None:
        """None if `request` is taken now; else the seconds until it may be, infinite until another is answered."""
        model = request.model or ""
        limit, now = self._limits[model], self._clock.now()
        passed, self._filled_at[model] = now - self._filled_at[model], now
        wait = 0.0
        if limit.per_s is not None:
            rate = limit.per_s(now)
            most = max(1.0, rate * limit.burst_s) if rate else 0.0
            level = self._levels[model] = min(most, self._levels[model] + passed * rate)
            if level < 1.0 - 1e-9:
                wait = (1.0 - level) / rate if rate else 1.0
        if limit.tokens_per_s is not None:
            rate = limit.tokens_per_s
            level = self._token_levels[model] = min(rate, self._token_levels[model] + passed * rate)
            missing = min(rate, tokens_of(request)) - level
            if missing > 1e-6:
                wait = max(wait, missing / rate)
        if limit.in_flight is not None and self.in_flight[model] >= limit.in_flight:
            wait = math.inf
        return wait or None

    def _announced(self, model: str) -> Announced | None:
        """As OpenAI's headers have it: the limit a minute, what is left of it now, and when all of it is there again."""
        limit = self._limits[model]
        if limit.announced is None:
            return None
        requests = tokens = None
        if limit.per_s is not None:
            rate = limit.per_s(self._clock.now())
            requests = _announced(limit.announced, rate, rate * limit.burst_s, self._levels[model])
        if limit.tokens_per_s is not None:
            rate = limit.tokens_per_s
            tokens = _announced(limit.announced, rate, rate, self._token_levels[model])
        return Announced(requests, tokens)


def _announced(factor: float, rate: float, capacity: float, level: float) -> AnnouncedLimit:
    return AnnouncedLimit(
        round(60.0 * rate * factor), max(0, int(level * factor)), round((capacity - level) / rate, 3)
    )


def tokens_of(request: Request) -> int:
    """Prompt and completion of a request; the completion is told by its custom_id, where no controller looks."""
    return len(request.body) // 4 + int(request.custom_id)


def requests(row: Row, seed: int) -> Callable[[], Request]:
    random, number = Random(seed + 1), count()
    models, weights = list(row.shares), list(row.shares.values())

    def following() -> Request:
        model = random.choices(models, weights)[0] if len(models) > 1 else models[0]
        prompt, completion = 200, 300
        if row.mixed_sizes:
            prompt, completion = int(random.lognormvariate(5.3, 1.0)), int(random.lognormvariate(5.2, 0.8))
            if row.large and random.random() < row.large:
                prompt = LARGE
        return Request(next(number), str(completion), bytes(4 * prompt), model, max_tokens=4096)

    return following


# --- the controllers -----------------------------------------------------------------------------------------------


class Controller(Protocol):
    async def deliver(self, request: Request) -> object: ...


Attempt = Callable[[Request], Awaitable[Answer]]


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


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    answered: list[float]
    refused: int


def run(
    make: Callable[[Provider, VirtualClock, Random], Controller],
    row: Row,
    seed: int,
    watch: Callable[[float, Controller, Provider], None] | None = None,
) -> Ran:
    """A job of `row` until its time is over. `watch` sees it once a second."""
    clock = VirtualClock(0.0)

    async def main() -> Ran:
        provider = Provider(row, clock, seed)
        controller = make(provider, clock, Random(seed + 2))
        following = requests(row, seed)

        async def work() -> None:
            while True:
                await controller.deliver(following())

        workers = [asyncio.ensure_future(work()) for _ in range(row.workers)]
        while (
            left := row.seconds - clock.now()
        ) > 1e-6:  # waits add up to a little less than they are together
            await clock.sleep(min(1.0, left) if watch else left)
            if watch is not None:
                watch(clock.now(), controller, provider)
        ran = Ran(provider.answered[:], provider.refused)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return ran

    with asyncio.Runner(loop_factory=clock.loop) as runner:
        return runner.run(main())


def measured(cell: tuple[str, str, int]) -> Ran:
    name, row, seed = cell
    return run(Ideal if name == "ideal" else CONTROLLERS[name], ROWS[row], seed)


def told(ran: list[Ran], ideal: list[Ran]) -> str:
    goodput = mean(len(each.answered) / len(best.answered) for each, best in zip(ran, ideal, strict=True))
    refused = mean(each.refused / max(1, len(each.answered)) for each in ran)
    late = []
    for each, best in zip(ran, ideal, strict=True):
        wanted = int(0.9 * len(best.answered))
        if len(each.answered) > wanted:
            late.append(each.answered[wanted] / best.answered[wanted])
    time = f"{mean(late):.2f}" if len(late) == len(ran) else "-"
    return f"{goodput:.1%} ({100 * refused:.1f}) {time}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        metavar="ROW",
        help=" · ".join(ROWS).replace("%", "%%"),
    )
    parser.add_argument(
        "--controllers", nargs="+", choices=CONTROLLERS, default=list(CONTROLLERS), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    chosen = parser.parse_args()
    seeds = range(1, chosen.seeds + 1)
    names = ["ideal", *chosen.controllers]
    cells = [(name, row, seed) for row in chosen.rows for name in names for seed in seeds]
    width = max(map(len, chosen.rows))
    print(
        f"{'answers/ideal (refusals %) time':{width}}  "
        + "  ".join(f"{name:>20}" for name in chosen.controllers)
    )
    with multiprocessing.Pool() as pool:
        ran = pool.imap(measured, cells)
        for row in chosen.rows:
            found = {name: [next(ran) for _ in seeds] for name in names}
            line = "  ".join(f"{told(found[name], found['ideal']):>20}" for name in chosen.controllers)
            print(f"{row:{width}}  {line}", flush=True)


if __name__ == "__main__":
    main()
