"""Attempts that lie far beyond their peers, on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import anyio
import pytest
from msgspec.structs import replace

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.events import AttemptFailed, Event
from batchkit.records import Answer, Outcome, Request, Trace, Usage
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer
from batchkit.testing import ManualClock, failure, reply

TIMEOUT_S = 600.0
HUNG = 1e9


class Run:
    """So many workers at requests, over attempts that take `seconds(index, attempt, now)` or run into the timeout."""

    def __init__(
        self, seconds: Callable[[int, int, float], float], *, workers: int = 64, patient: bool = True
    ) -> None:
        self.clock, self.stop = ManualClock(), Stop()
        self.seconds, self.workers = seconds, workers
        self.asked: dict[int, int] = {}
        self.events: list[Event] = []
        self.outcomes: list[Outcome] = []
        self.delivery = Delivery(
            self.attempt,
            gate=Gate(Pacer(), self.clock, self.stop),
            policy=RetryPolicy(),
            budget=RetryBudget(workers),
            stop_rule=StopRule(),
            tracer=Tracer("job", 7),
            stop=self.stop,
            clock=self.clock,
            jitter=Random(7).random,
            emit=self.events.append,
            patient=patient,
        )

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        asked = self.asked[request.index] = self.asked.get(request.index, 0) + 1
        seconds = self.seconds(request.index, asked, self.clock.now())
        await self.clock.sleep(min(seconds, TIMEOUT_S))
        if seconds > TIMEOUT_S:
            return replace(failure("timeout"), maybe_billed=True)
        return reply(usage=Usage(5, 100, 105))

    async def work(self, requests: int) -> float:
        """Bring so many requests to their outcomes. What that took, in seconds."""
        left, began = iter(range(requests)), self.clock.time()

        async def worker() -> None:
            for index in left:
                outcome = await self.delivery.deliver(Request(index, f"r{index}", b"{}", "m"))
                assert outcome is not None
                self.outcomes.append(outcome)

        async with anyio.create_task_group() as group:
            group.start_soon(self.delivery.under_way.run)
            async with anyio.create_task_group() as working:
                for _ in range(self.workers):
                    working.start_soon(worker)
            group.cancel_scope.cancel()
        return max(outcome.finished_at for outcome in self.outcomes) - began

    @property
    def given_up(self) -> list[AttemptFailed]:
        return [event for event in self.events if isinstance(event, AttemptFailed)]


async def test_an_attempt_that_hangs_is_given_up_and_asked_again():
    run = Run(lambda index, attempt, _: HUNG if index == 990 and attempt == 1 else 2.0)
    assert await run.work(1000) < 100.0
    (given_up,) = run.given_up
    assert given_up.index == 990
    assert given_up.failure.message.endswith("s, when 99 of 100 of its like took 2 s at most")
    outcome = next(outcome for outcome in run.outcomes if outcome.index == 990)
    assert outcome.succeeded
    assert (outcome.attempts, dict(outcome.retries), outcome.maybe_billed) == (2, {"timeout": 1}, 1)
    assert outcome.latency_s == 2.0
    assert run.delivery.in_flight == 0
    assert not run.delivery.under_way.requests


async def test_one_in_fifty_that_hang_hold_up_nobody_for_long():
    """More than may be doubted: those that were given up rightly make room for others."""
    random = Random(3)
    run = Run(lambda _index, attempt, _: HUNG if attempt == 1 and random.random() < 0.02 else 2.0)
    assert await run.work(3000) < 400.0
    assert len(run.given_up) > 40
    assert all(outcome.succeeded for outcome in run.outcomes)


async def test_without_patience_it_has_the_whole_timeout():
    run = Run(lambda index, attempt, _: HUNG if index == 990 and attempt == 1 else 2.0, patient=False)
    assert await run.work(1000) > TIMEOUT_S


async def test_what_was_given_up_once_has_the_whole_timeout():
    run = Run(lambda index, _attempt, _now: 500.0 if index == 990 else 2.0)
    await run.work(1000)
    outcome = next(outcome for outcome in run.outcomes if outcome.index == 990)
    assert (outcome.attempts, outcome.latency_s) == (2, 500.0)


@pytest.mark.parametrize("workers", [4, 64])
async def test_a_server_that_stands_still_for_all_is_waited_for(workers):
    """From the 60th second to the 400th nothing is answered."""
    run = Run(lambda _index, _attempt, now: 402.0 - now if 58.0 < now < 400.0 else 2.0, workers=workers)
    await run.work(40 * workers)
    assert run.given_up == []


@pytest.mark.parametrize("slower", [3.0, 10.0, 100.0])
@pytest.mark.parametrize("workers", [8, 32])
async def test_a_server_that_becomes_slow_for_all_is_not_asked_again_for_it(slower, workers):
    random = Random(5)
    run = Run(
        lambda _index, _attempt, now: min(
            599.0, random.lognormvariate(1.0, 0.6) * (slower if now > 60.0 else 1.0)
        ),
        workers=workers,
    )
    await run.work(30 * workers)
    assert len(run.given_up) <= 10
    assert all(outcome.succeeded for outcome in run.outcomes)


async def test_long_answers_that_are_not_rare_are_given_up_a_few_times_in_all():
    random = Random(9)
    slow = frozenset(index for index in range(3000) if random.random() < 0.02)
    run = Run(lambda index, _attempt, _now: 120.0 if index in slow else 2.0)
    await run.work(3000)
    assert len(run.given_up) <= 10


async def test_an_attempt_that_is_cancelled_and_ended_at_once_is_cancelled():
    run = Run(lambda *_: 5.0)
    task = asyncio.ensure_future(run.delivery.deliver(Request(0, "a", b"{}", "m")))
    await asyncio.sleep(0)
    (way,) = run.delivery.under_way.requests
    task.cancel()
    way.end(reply())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not run.delivery.under_way.requests


async def test_an_attempt_that_is_ended_and_then_cancelled_is_cancelled():
    run = Run(lambda *_: 5.0)
    task = asyncio.ensure_future(run.delivery.deliver(Request(0, "a", b"{}", "m")))
    await asyncio.sleep(0)
    (way,) = run.delivery.under_way.requests
    way.end(reply())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_that_is_there_first_is_kept():
    run = Run(lambda *_: 5.0)

    async def swallowing(request: Request, trace: Trace) -> Answer:
        try:
            await run.clock.sleep(5.0)
        except asyncio.CancelledError:
            return reply("mine")
        raise AssertionError

    run.delivery._send = swallowing
    task = asyncio.ensure_future(run.delivery.deliver(Request(0, "a", b"{}", "m")))
    await asyncio.sleep(0)
    (way,) = run.delivery.under_way.requests
    way.end(failure("timeout"))
    outcome = await task
    assert outcome is not None
    assert outcome.succeeded
    assert task.cancelling() == 0
