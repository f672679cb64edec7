"""Several models in one file, each with a limit of its own, through pipeline, gate and delivery."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "simulation"))

from virtual_time import VirtualClock

from batchkit.engine import gate as gate_module
from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.pipeline import Pipeline
from batchkit.engine.stop import Stop
from batchkit.records import Answer, Line, Outcome, Request, Trace
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer
from batchkit.testing import failure, reply

LATENCY_S = 0.1
PER_S = 5.0
SHUT_S = 3000.0


class Scene:
    """A job of `models`, in this order; "slow" is refused beyond five a second, "shut" until `SHUT_S`, others are not."""

    def __init__(
        self, clock: VirtualClock, models: list[str], concurrency: int, size: int, retry_after: float | None
    ) -> None:
        self.models = models
        self.size = size
        self.retry_after = retry_after
        self.clock, self.stop = clock, Stop()
        self.gate = Gate(Pacer(), self.clock, self.stop, concurrency)
        self.delivery = Delivery(
            self.attempt,
            gate=self.gate,
            policy=RetryPolicy(6),
            budget=RetryBudget(concurrency),
            stop_rule=StopRule(None),
            tracer=Tracer("job", 1),
            stop=self.stop,
            clock=self.clock,
            jitter=lambda: 0.5,
            emit=lambda _: None,
        )
        self.pipeline = Pipeline(
            self.batches(),
            parse=self.parse,
            is_done=lambda _: False,
            deliver=self.delivery.deliver,
            proven=lambda: self.delivery.proven,
            write=self.write,
            concurrency=concurrency,
            job_id="job",
            stop=self.stop,
            clock=self.clock,
            held=self.gate.held,
        )
        self.level, self.filled_at = PER_S, 0.0
        self.most_in_flight = self.most_busy = 0
        self.ended: Counter[str] = Counter()
        self.ended_at: dict[str, float] = {}

    async def batches(self) -> AsyncIterator[list[Line]]:
        for index in range(len(self.models)):
            yield [Line(index, index, b"{}")]

    def parse(self, line: Line) -> Request:
        return Request(line.index, f"r{line.index}", b"x" * self.size, self.models[line.index])

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        self.most_in_flight = max(self.most_in_flight, self.delivery.in_flight)
        self.most_busy = max(self.most_busy, self.pipeline.busy)
        refused = False
        if request.model == "slow":
            now = self.clock.now()
            self.level = min(PER_S, self.level + PER_S * (now - self.filled_at))
            self.filled_at = now
            refused = self.level < 1.0
            self.level -= not refused
        await self.clock.sleep(LATENCY_S)
        if request.model == "shut" and self.clock.now() < SHUT_S:
            refused = True
        return failure("rate_limited", retry_after=self.retry_after) if refused else reply()

    def write(self, outcome: Outcome) -> None:
        model = self.models[outcome.index]
        self.ended[model] += 1
        self.ended_at[model] = self.clock.now()


def work_through(
    models: list[str], *, concurrency: int = 16, size: int = 100, retry_after: float | None = None
) -> Scene:
    clock = VirtualClock(0.0)
    loop = clock.loop()

    async def work() -> Scene:
        scene = Scene(clock, models, concurrency, size, retry_after)
        await scene.pipeline.run()
        return scene

    try:
        scene = loop.run_until_complete(work())
    finally:
        loop.close()
    assert scene.ended == Counter(models)
    assert scene.pipeline.busy == 0
    return scene


def test_a_model_without_a_limit_goes_on_beside_one_at_its_limit():
    """In turn in one file: the free one is through as if it were alone, though all workers would stand before the other."""
    alone = work_through(["free"] * 1000)
    both = work_through(["slow", "free"] * 1000)
    assert alone.ended_at["free"] < 10.0
    assert both.ended_at["free"] < 2.0 * alone.ended_at["free"]
    # The slow one takes what it takes: its limit is used up.
    assert both.ended_at["slow"] < 1.05 * 1000 / PER_S


def test_what_is_in_flight_stays_within_the_concurrency_however_many_are_let_in():
    scene = work_through(["slow", "free", "other"] * 700)
    assert scene.most_busy > 200
    assert scene.most_in_flight == 16


def test_a_job_of_one_model_reads_nothing_ahead():
    scene = work_through(["slow"] * 300)
    assert scene.most_busy <= 16


def test_reading_ahead_ends_with_what_may_wait(monkeypatch):
    monkeypatch.setattr(gate_module, "_MOST_HELD", 100)
    scene = work_through(["slow", "free"] * 700)
    assert 100 <= scene.most_busy <= 100 + 2 * 16


def test_reading_ahead_ends_with_the_bytes_that_may_wait(monkeypatch):
    monkeypatch.setattr(gate_module, "_MOST_HELD_BYTES", 100 * 1000)
    scene = work_through(["slow", "free"] * 700, size=1000)
    assert 100 <= scene.most_busy <= 100 + 3 * 16


def test_a_concurrency_of_one_has_one_in_flight_with_two_models():
    scene = work_through(["slow", "free"] * 100, concurrency=1)
    assert scene.most_in_flight == 1


@pytest.mark.parametrize("concurrency", [2, 8, 256])
@pytest.mark.parametrize("limited", ["slow", "shut"])
def test_a_model_that_is_to_be_left_alone_for_minutes_holds_up_no_other(limited, concurrency):
    """Neither the pause that it asks for, nor those that were refused and wait it out by themselves."""
    scene = work_through([limited, "free"] * 400, concurrency=concurrency, retry_after=300.0)
    assert scene.ended_at["free"] < 400 * LATENCY_S * 2 + 10.0
    assert scene.most_in_flight <= concurrency
