"""The pacer's seconds turned into waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import pytest
from msgspec.structs import replace

from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted
from batchkit.records import Announced, AnnouncedLimit, Request
from batchkit.rules.pacing import Pacer, Reservation
from batchkit.testing import ManualClock, failure, reply


def ask(index: int = 0, size: int = 300, max_tokens: int | None = None) -> Request:
    return Request(index, f"r{index}", b"x" * size, max_tokens=max_tokens)


async def test_without_a_limit_nobody_waits():
    """A window of those that run at once: as many begin as are answered."""
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(), clock, stop)
    for index in range(1000):
        reserved = await gate.admit(ask(index))
        assert reserved is not None
        assert (reserved.at, reserved.tokens) == (0.0, 0.0)
        gate.settle(ask(index), reply(), reserved)
    assert clock.now() == 0.0


async def test_a_model_at_its_limit_holds_up_no_other():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(), clock, stop)
    slow, fast = replace(ask(), model="slow"), replace(ask(), model="fast")
    refused = [await gate.admit(slow) for _ in range(4)]
    for reserved in refused:
        gate.settle(slow, failure("rate_limited", retry_after=60.0), reserved or Reservation(0.0))
    assert gate.pacers["slow"].paused_for(0.0) == 60.0
    passed: list[tuple[str | None, float]] = []

    async def one(request: Request) -> None:
        await gate.admit(request)
        passed.append((request.model, clock.now()))

    async with anyio.create_task_group() as group:
        group.start_soon(one, slow)
        group.start_soon(one, fast)
    assert passed == [("fast", 0.0), ("slow", pytest.approx(60.0, abs=0.1))]


async def test_a_limit_that_answers_announce_is_that_of_their_model():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(), clock, stop)
    told, other = replace(ask(), model="told"), replace(ask(), model="other")
    announced = Announced(AnnouncedLimit(600, 0, window_s=60.0))
    for request in (told, other) * 3:
        reserved = await gate.admit(request)
        assert reserved is not None
        answer = replace(reply(), announced=announced if request is told else None)
        gate.settle(request, answer, reserved)
    await gate.admit(told)
    assert gate.pacers["told"].limit_per_minute == (600, "requests")
    assert gate.pacers["other"].limit_per_minute is None


async def test_as_many_models_as_lines_take_no_more_memory():
    gate = Gate(Pacer(), ManualClock(), Stop())
    for index in range(1100):
        request = replace(ask(index), model=f"m{index}")
        reserved = await gate.admit(request)
        assert reserved is not None
        gate.settle(request, reply(), reserved)
    assert len(gate.pacers) == 1000
    assert gate.pacers["m0"].in_flight == 0


async def test_the_rpm_that_is_given_is_one_for_all_models_and_passes_in_order():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(rpm=60), clock, stop)
    passed: list[tuple[int, float]] = []

    async def one(index: int) -> None:
        await gate.admit(replace(ask(index), model=f"m{index % 2}"))
        passed.append((index, clock.now()))

    async with anyio.create_task_group() as group:
        for index in range(6):
            group.start_soon(one, index)
    assert [index for index, _ in passed] == list(range(6))
    assert [at for _, at in passed] == pytest.approx([float(second) for second in range(6)], abs=0.1)


async def test_a_large_request_is_not_starved_by_small_ones_to_another_model():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(tpm=6000), clock, stop)
    await gate.admit(replace(ask(max_tokens=4000), model="a"))
    passed: list[tuple[str, float]] = []

    async def one(name: str, tokens: int, model: str) -> None:
        await gate.admit(replace(ask(size=3, max_tokens=tokens), model=model))
        passed.append((name, clock.now()))

    async with anyio.create_task_group() as group:
        group.start_soon(one, "large", 3000, "a")
        for number in range(20):
            group.start_soon(one, f"small {number}", 50, "b")
    assert passed[0][0] == "large"


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
    assert reserved is not None
    assert (reserved.at, reserved.tokens) == (0.0, pytest.approx(1000))
    gate.settle(request, reply(), reserved)  # it was 15 in fact
    await gate.admit(request)
    assert clock.now() < 1.0


async def test_where_tokens_are_limited_the_forecast_is_what_answers_took():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(tpm=600_000), clock, stop)
    request = ask(size=300, max_tokens=900)
    for _ in range(20):
        reserved = await gate.admit(request)
        assert reserved is not None
        assert reserved.tokens == pytest.approx(1000)
        gate.settle(request, reply(), reserved)
    learned = await gate.admit(request)
    assert learned is not None
    assert learned.tokens == pytest.approx(15)


async def test_where_a_prompt_can_be_counted_its_tokens_are_reserved_exactly():
    clock, stop = ManualClock(), Stop()
    gate = Gate(Pacer(tpm=6000), clock, stop, count_prompt=lambda request: 700 if request.index else None)
    forecast = await gate.admit(ask(size=300, max_tokens=900))
    counted = await gate.admit(ask(1, size=300, max_tokens=900))
    assert forecast is not None
    assert counted is not None
    assert (forecast.tokens, counted.tokens) == (pytest.approx(1000), 1600)


@pytest.mark.parametrize("limited", ["tokens", "requests"])
async def test_prompts_are_counted_once_a_limit_on_tokens_is_known_of_and_for_no_other(limited):
    clock, stop = ManualClock(), Stop()
    counted: list[int] = []
    gate = Gate(Pacer(), clock, stop, count_prompt=lambda request: counted.append(request.index) or 700)
    announced = Announced(**{limited: AnnouncedLimit(12_000, 0, window_s=60.0)})
    for index in range(4):
        reserved = await gate.admit(ask(index))
        assert reserved is not None
        gate.settle(ask(index), replace(reply(), announced=announced), reserved)
    assert not counted
    reserved = await gate.admit(ask(4, size=300, max_tokens=900))
    assert reserved is not None
    assert reserved.tokens == (1600 if limited == "tokens" else pytest.approx(1000))
    assert counted == ([4] if limited == "tokens" else [])


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


class Bounded(Pacer):
    """A pacer that lets so many be in flight, and then no more until an answer comes; None for any number."""

    bound: int | None = 0
    is_open = False
    awaits_answers = False

    def wait(self, now: float, tokens: float = 0.0) -> float:
        return 0.0 if self.bound is None or self.in_flight < self.bound else float("inf")


async def standing(gate: Gate, requests: int) -> tuple[list[int], Callable[[], Awaitable[None]]]:
    """The indexes that have passed, and what lets a turn of the event loop go by."""
    passed: list[int] = []

    async def one(index: int) -> None:
        if await gate.admit(ask(index)) is not None:
            passed.append(index)

    tasks = [asyncio.ensure_future(one(index)) for index in range(requests)]

    async def turn() -> None:
        await anyio.sleep(0)
        await anyio.sleep(0)
        for task in tasks:
            if task.done():
                task.result()

    await turn()
    return passed, turn


async def test_all_that_may_start_do_in_one_turn_and_in_their_order():
    pacer, stop = Bounded(), Stop()
    gate = Gate(pacer, ManualClock(), stop)
    pacer.bound = 3
    passed, turn = await standing(gate, 40)
    assert passed == [0, 1, 2]
    assert gate.waiting == 37
    for _ in range(3):
        gate.settle(ask(), reply(), Reservation(0.0))
    await turn()
    await turn()
    assert passed == list(range(6))
    pacer.bound = 20
    gate.settle(ask(), reply(), Reservation(0.0))
    await turn()
    await turn()
    assert passed == list(range(24))
    stop.request(Interrupted(15, "enough"))
    for _ in range(40):
        await turn()
    assert gate.waiting == 0


async def test_a_bound_that_goes_away_with_an_answer_keeps_nobody_waiting():
    """Nobody would ask any more: whoever waited for an answer is called by any."""
    pacer = Bounded()
    gate = Gate(pacer, ManualClock(), Stop())
    pacer.bound = 1
    passed, turn = await standing(gate, 5)
    assert passed == [0]
    pacer.bound = None
    gate.settle(ask(), failure("rate_limited"), Reservation(0.0))
    await turn()
    await turn()
    assert passed == list(range(5))


async def test_who_gives_up_before_the_gate_keeps_nobody_behind_it_waiting():
    pacer = Bounded()
    gate = Gate(pacer, ManualClock(), Stop())
    front, next_one = (asyncio.ensure_future(gate.admit(ask(index))) for index in range(2))
    await anyio.sleep(0)
    assert gate.waiting == 2
    pacer.bound = 1
    front.cancel()
    with pytest.raises(asyncio.CancelledError):
        await front
    assert await next_one is not None
    assert gate.waiting == 0
