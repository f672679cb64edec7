"""The pacer's seconds turned into waiting."""

from __future__ import annotations

import anyio
import pytest

from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted
from batchkit.records import Request
from batchkit.rules.pacing import Pacer, Reservation
from batchkit.testing import ManualClock, failure, reply


def ask(index: int = 0, size: int = 300, max_tokens: int | None = None) -> Request:
    return Request(index, f"r{index}", b"x" * size, max_tokens=max_tokens)


async def test_without_a_limit_nobody_waits():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(), clock, stop)
    for index in range(1000):
        assert await gate.admit(ask(index)) == Reservation(0.0)
    assert clock.now() == 0.0


async def test_rpm_lets_requests_pass_evenly_and_in_their_order():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(rpm=60), clock, stop)
    passed: list[tuple[int, float]] = []

    async def one(index: int) -> None:
        await gate.admit(ask(index))
        passed.append((index, clock.now()))

    async with anyio.create_task_group() as group:
        for index in range(10):
            group.start_soon(one, index)
    assert [index for index, _ in passed] == list(range(10))
    assert [at for _, at in passed] == pytest.approx([float(second) for second in range(10)], abs=0.1)
    assert gate.waiting == 0


async def test_tpm_reserves_the_forecast_and_settles_with_what_was_used():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(tpm=6000), clock, stop)
    request = ask(size=300, max_tokens=900)
    reserved = await gate.admit(request)
    assert reserved == Reservation(0.0, pytest.approx(1000))
    gate.settle(request, reply(), reserved)  # it was 15 in fact
    await gate.admit(request)
    assert clock.now() < 1.0


async def test_a_refusal_holds_everyone_back_for_a_moment():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(), clock, stop)
    reserved = await gate.admit(ask())
    gate.settle(ask(), failure("rate_limited", retry_after=7.0), reserved or Reservation(0.0))
    await gate.admit(ask(1))
    assert clock.now() >= 0.25


async def test_who_waits_when_the_run_stops_is_not_let_through():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(rpm=1), clock, stop)
    await gate.admit(ask())
    results: list[Reservation | None] = []

    async def one() -> None:
        results.append(await gate.admit(ask(1)))

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        stop.request(Interrupted(2, "enough"))
    assert results == [None]
    assert gate.waiting == 0
