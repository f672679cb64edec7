"""Reader, bounded workers, one writer, with a scripted endpoint's place taken by plain functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from batchkit.engine.pipeline import Pipeline
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted, OutputUnwritable, RunStopped
from batchkit.records import BadLine, Failure, Line, Outcome, Request
from batchkit.testing import ManualClock, reply


class Scene:
    def __init__(
        self, lines: int = 100, *, concurrency: int = 8, batch: int = 10, latency_s: float = 1.0, **more: Any
    ) -> None:
        self.clock = ManualClock()
        self.stop = Stop()
        self.read = 0
        self.lines = lines
        self.batch = batch
        self.latency_s = latency_s
        self.in_flight = 0
        self.most_in_flight = 0
        self.sent: list[int] = []
        self.written: list[Outcome] = []
        self.proven = False
        self.on_send: Callable[[Request], None] = lambda _: None
        self.pipeline = Pipeline(
            more.pop("batches", None) or self.batches(),
            parse=more.pop("parse", lambda line: Request(line.index, f"r{line.index}", b"{}")),
            is_done=more.pop("is_done", lambda _: False),
            deliver=more.pop("deliver", None) or self.deliver,
            proven=lambda: self.proven,
            write=more.pop("write", None) or self.written.append,
            concurrency=concurrency,
            job_id="job",
            stop=self.stop,
            clock=self.clock,
            **more,
        )

    async def batches(self) -> AsyncIterator[list[Line]]:
        while self.read < self.lines:
            batch = [
                Line(index, index * 10, b"{}")
                for index in range(self.read, min(self.lines, self.read + self.batch))
            ]
            self.read += len(batch)
            yield batch

    async def deliver(self, request: Request) -> Outcome | None:
        if self.stop.cause is not None:
            return None
        self.on_send(request)
        self.sent.append(request.index)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.clock.sleep(self.latency_s)
        self.in_flight -= 1
        self.proven = True
        return Outcome(request.index, request.custom_id, reply(), "t", 1, 1.0, self.clock.time())

    @property
    def indexes(self) -> list[int]:
        return [outcome.index for outcome in self.written]


async def test_every_line_is_worked_through_once():
    scene = Scene(1000)
    await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(1000))
    assert scene.pipeline.busy == 0


async def test_concurrency_is_used_and_never_exceeded():
    scene = Scene(200, concurrency=8)
    await scene.pipeline.run()
    assert scene.most_in_flight == 8
    # One alone, then 199 in eights.
    assert scene.clock.now() == pytest.approx(26.0, abs=1.0)


async def test_the_first_request_goes_alone_until_it_is_answered():
    scene = Scene(50, latency_s=2.0)
    first_others: list[float] = []
    scene.on_send = lambda request: first_others.append(scene.clock.now()) if request.index else None
    await scene.pipeline.run()
    assert min(first_others) == pytest.approx(2.0)


async def test_a_slow_first_answer_holds_the_others_back_for_two_seconds_at_most():
    scene = Scene(50, latency_s=60.0)
    first_others: list[float] = []
    scene.on_send = lambda request: first_others.append(scene.clock.now()) if request.index else None
    await scene.pipeline.run()
    assert min(first_others) == pytest.approx(2.0)
    assert sorted(scene.indexes) == list(range(50))


async def test_a_slow_first_answer_lets_no_second_request_past_a_concurrency_of_one():
    scene = Scene(3, concurrency=1, latency_s=60.0)
    await scene.pipeline.run()
    assert scene.most_in_flight == 1


async def test_the_reader_is_at_most_one_batch_ahead_of_the_workers():
    scene = Scene(10_000, concurrency=4, batch=10)
    ahead = 0

    def look(_: Request) -> None:
        nonlocal ahead
        ahead = max(ahead, scene.read - len(scene.sent))

    scene.on_send = look
    await scene.pipeline.run()
    assert ahead <= 10 + 4


async def test_lines_that_are_done_are_not_sent():
    scene = Scene(100, is_done=lambda line: line.index % 2 == 0)
    await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(1, 100, 2))


async def test_a_bad_line_is_a_failure_without_an_attempt():
    scene = Scene(
        3, parse=lambda line: BadLine(line.index, f"line-{line.index}", "invalid_request_line", "no JSON", 5)
    )
    await scene.pipeline.run()
    assert scene.sent == []
    assert [(outcome.attempts, outcome.input_crc32) for outcome in scene.written] == [(0, 5)] * 3
    assert all(isinstance(outcome.answer, Failure) for outcome in scene.written)


async def test_limit_counts_requests_from_the_beginning_of_the_input():
    scene = Scene(100, limit=30, before=20)
    await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(10))
    assert scene.read <= 20


async def test_a_stop_drains_what_is_in_flight_and_begins_nothing():
    scene = Scene(100, concurrency=8)

    def stop_at_twenty(request: Request) -> None:
        if request.index == 20:
            scene.stop.request(Interrupted(2, "enough"))

    scene.on_send = stop_at_twenty
    await scene.pipeline.run()
    assert sorted(scene.indexes) == sorted(scene.sent)
    assert len(scene.sent) <= 21 + 8


async def test_position_is_a_line_before_which_all_are_done():
    scene = Scene(100, concurrency=8)
    seen: list[tuple[set[int], tuple[int, int] | None]] = []
    scene.on_send = lambda _: seen.append((set(scene.indexes), scene.pipeline.position()))
    await scene.pipeline.run()
    for done, position in seen:
        assert position is not None
        assert set(range(position[0])) <= done
        assert position[1] == position[0] * 10
    assert scene.pipeline.position() == (99, 990)


async def test_a_run_that_stops_leaves_what_was_parsed_and_not_sent_to_the_next():
    parsed: list[int] = []

    def parse(line: Line) -> Request:
        parsed.append(line.index)
        return Request(line.index, f"r{line.index}", b"{}")

    scene = Scene(100, batch=100, concurrency=4, parse=parse)
    scene.on_send = lambda request: scene.stop.request(Interrupted(15, "")) if request.index == 30 else None
    await scene.pipeline.run()
    assert sorted(scene.indexes) == sorted(scene.sent) == list(range(len(scene.sent)))
    assert len(parsed) > len(scene.sent) > 30
    assert scene.pipeline.position() == (len(scene.sent), 10 * len(scene.sent))
    assert scene.pipeline.busy == 0


@pytest.mark.parametrize(("size", "most"), [(2, 31), (20_000, 3), (1 << 20, 0)])
async def test_few_lines_are_parsed_before_their_turn_and_of_large_ones_none(size: int, most: int):
    parsed = ahead = 0

    def parse(line: Line) -> Request:
        nonlocal parsed
        parsed += 1
        return Request(line.index, f"r{line.index}", bytes(size))

    def look(_: Request) -> None:
        nonlocal ahead
        ahead = max(ahead, parsed - len(scene.sent) - 1)

    scene = Scene(200, batch=100, concurrency=4, parse=parse)
    scene.on_send = look
    await scene.pipeline.run()
    assert ahead == most


async def test_a_writer_that_breaks_ends_the_run_with_its_own_error():
    def write(outcome: Outcome) -> None:
        raise OutputUnwritable("the disk is gone")

    scene = Scene(100, write=write)
    with pytest.raises(OutputUnwritable, match="the disk is gone"):
        await scene.pipeline.run()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()  # or whoever closes what the run had open would be cancelled at it


async def test_an_abandoned_run_ends_all_attempts_at_once():
    ended: list[int] = []

    async def deliver(request: Request) -> Outcome | None:
        if request.index >= 20:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(request.index)
        return await scene.deliver(request)

    scene = Scene(100, concurrency=8, deliver=deliver)
    async with anyio.create_task_group() as group:
        group.start_soon(_abandon_when, scene, lambda: len(scene.written) == 20)
        with scene.stop.abandoned:
            await scene.pipeline.run()
    assert scene.stop.abandoned.cancelled_caught
    assert sorted(ended) == list(range(20, 28))
    assert scene.pipeline.position() == (20, 200)


async def test_what_breaks_while_a_run_is_abandoned_is_its_error():
    async def deliver(request: Request) -> Outcome | None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OutputUnwritable("the disk is gone")

    scene = Scene(100, deliver=deliver)
    async with anyio.create_task_group() as group:
        group.start_soon(_abandon_when, scene, lambda: scene.pipeline.busy > 0)
        with pytest.raises(OutputUnwritable, match="the disk is gone"), scene.stop.abandoned:
            await scene.pipeline.run()


async def _abandon_when(scene: Scene, comes: Callable[[], bool]) -> None:
    while not comes():
        await anyio.lowlevel.checkpoint()
    scene.stop.abandon(Interrupted(15, "at once"))


@pytest.mark.parametrize("reads_ahead", [False, True])
@pytest.mark.parametrize("concurrency", [1, 3, 20])
async def test_an_input_that_breaks_ends_the_run_once_all_that_could_be_read_is_done(
    concurrency, reads_ahead
):
    async def batches() -> AsyncIterator[list[Line]]:
        yield [Line(index, index, b"{}") for index in range(10)]
        raise RunStopped("cannot read on", code="input_unreadable")

    scene = Scene(batches=batches(), concurrency=concurrency, reads_ahead=reads_ahead)
    await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(10))
    assert isinstance(scene.stop.cause, RunStopped)


async def test_an_input_that_breaks_does_not_send_home_who_waits_for_a_turn():
    async def batches() -> AsyncIterator[list[Line]]:
        yield [Line(index, index, b"{}") for index in range(10)]
        raise RunStopped("cannot read on", code="input_unreadable")

    async def deliver(request: Request) -> Outcome | None:
        await scene.clock.sleep(float(request.index))
        return await scene.deliver(request)

    scene = Scene(batches=batches(), concurrency=4, reads_ahead=True, deliver=deliver)
    await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(10))
    assert isinstance(scene.stop.cause, RunStopped)


async def test_what_cannot_be_read_beyond_the_limit_is_nobodys_business():
    async def batches() -> AsyncIterator[list[Line]]:
        yield [Line(index, index, b"{}") for index in range(10)]
        raise RunStopped("cannot read on", code="input_unreadable")

    scene = Scene(batches=batches(), limit=10, reads_ahead=True)
    await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(10))
    assert scene.stop.cause is None


async def test_a_stop_does_not_wait_for_an_input_that_says_nothing():
    silent = anyio.Event()

    async def batches() -> AsyncIterator[list[Line]]:
        yield [Line(0, 0, b"{}")]
        await silent.wait()

    scene = Scene(batches=batches())
    async with anyio.create_task_group() as group:
        group.start_soon(scene.pipeline.run)
        while not scene.written:
            await anyio.lowlevel.checkpoint()
        scene.stop.request(Interrupted(15, "enough"))
    assert scene.indexes == [0]


async def test_a_full_consumer_holds_back_the_next_line():
    room = anyio.Event()
    taken: list[int] = []

    def full() -> Awaitable[None] | None:
        taken.append(1)
        return room.wait() if len(taken) > 5 else None

    scene = Scene(100, room=full)
    async with anyio.create_task_group() as group:
        group.start_soon(scene.pipeline.run)
        for _ in range(500):
            await anyio.lowlevel.checkpoint()
        assert len(scene.sent) <= 5
        room.set()
    assert sorted(scene.indexes) == list(range(100))


async def test_an_empty_input_is_no_work():
    scene = Scene(0)
    await scene.pipeline.run()
    assert scene.written == []
    assert scene.pipeline.position() is None


class Counted(Pipeline):
    takes = 0

    def _take(self):
        self.takes += 1
        return super()._take()


@pytest.mark.parametrize("limit", [None, 20, 22, 23, 24, 30])
async def test_who_waits_for_lines_leaves_when_the_run_stops_wherever_the_limit_is(limit: int | None):
    """Ten work, the next lines are three, and none of these three has an outcome."""

    async def batches() -> AsyncIterator[list[Line]]:
        for after_s, first, last in ((0, 0, 20), (10, 20, 23), (10, 23, 24)):
            await scene.clock.sleep(after_s)
            yield [Line(index, index * 10, b"{}") for index in range(first, last)]

    async def deliver(request: Request) -> Outcome | None:
        if request.index < 20:
            return await scene.deliver(request)
        while scene.stop.cause is None:
            await scene.clock.sleep(1)
        return None

    async def stop() -> None:
        await scene.clock.sleep(60)
        scene.stop.request(Interrupted(2))

    scene = Scene(concurrency=10, batches=batches(), deliver=deliver, limit=limit)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            await scene.pipeline.run()
    assert sorted(scene.indexes) == list(range(20))


@pytest.mark.parametrize(("reads_ahead", "most"), [(False, 10), (True, 20)])
async def test_a_reader_that_may_take_for_ever_is_not_asked_before_its_lines_are_taken(
    reads_ahead: bool, most: int
):
    scene = Scene(reads_ahead=reads_ahead)
    read: list[int] = []
    scene.on_send = lambda request: read.append(scene.read) if request.index == 5 else None
    await scene.pipeline.run()
    assert read == [most]


async def trickled(scene: Scene, lines: int, concurrency: int, limit: int | None = None) -> Counted:
    """A run whose lines come one by one, long after all its workers wait for them."""

    async def one_by_one() -> AsyncIterator[list[Line]]:
        for index in range(lines):
            if index >= concurrency:
                await scene.clock.sleep(10.0)
            yield [Line(index, index, b"{}")]

    pipeline = Counted(
        one_by_one(),
        parse=lambda line: Request(line.index, f"r{line.index}", b"{}"),
        is_done=lambda _: False,
        deliver=scene.deliver,
        proven=lambda: True,
        write=scene.written.append,
        concurrency=concurrency,
        job_id="job",
        stop=scene.stop,
        clock=scene.clock,
        limit=limit,
    )
    with anyio.fail_after(10):
        await pipeline.run()
    return pipeline


async def test_a_line_that_trickles_in_wakes_two_of_those_that_wait():
    """One that takes it, and one that reads on."""
    scene = Scene()
    pipeline = await trickled(scene, lines=400, concurrency=100)
    assert sorted(scene.indexes) == list(range(400))
    assert scene.most_in_flight > 90
    assert pipeline.takes <= 4 * 400


async def test_all_that_wait_for_lines_leave_when_there_are_no_more_to_come():
    scene = Scene()
    await trickled(scene, lines=400, concurrency=50, limit=120)
    assert sorted(scene.indexes) == list(range(120))


async def test_all_that_wait_for_lines_leave_when_the_run_stops():
    scene = Scene()
    scene.on_send = lambda request: (
        scene.stop.request(Interrupted(2, "enough")) if request.index == 120 else None
    )
    await trickled(scene, lines=400, concurrency=50)
    assert max(scene.indexes) <= 121
