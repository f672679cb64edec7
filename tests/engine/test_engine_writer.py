"""The one writer, its syncs and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import pytest
from msgspec.structs import replace

from batchkit.engine.stop import Stop
from batchkit.engine.writer import CHECKPOINT_INTERVAL_S, SYNC_INTERVAL_S, Writer
from batchkit.errors import Interrupted, OutputFull, OutputUnwritable
from batchkit.events import Event, Notice, RequestFinished
from batchkit.records import Answer, FailureKind, FoundLimit, Outcome
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally
from batchkit.testing import ManualClock, failure, reply


class Disk:
    """Where lines go, and in what order things were done to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.told: list[str] = []
        self.dirty = False
        self.full = False
        self.broken = False

    def append(self, outcomes: Sequence[Outcome]) -> None:
        if self.full:
            raise OutputFull("no room.")
        if self.broken:
            raise OutputUnwritable("input/output error")
        self.log.append(" ".join(["append", *(str(outcome.index) for outcome in outcomes)]))
        self.told += [limit.model for outcome in outcomes for limit in outcome.limits]
        self.dirty = True

    def sync(self) -> None:
        self.log.append("sync")
        self.dirty = False

    def snapshot(self) -> Callable[[], None]:
        self.log.append("snapshot")
        return lambda: self.log.append("checkpoint")


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.disk = Disk()
        self.tally = Tally()
        self.done = DoneIndexes()
        self.stop = Stop()
        self.events: list[Event] = []
        self.news: list[FoundLimit] = []
        """Told with the next line."""
        self.writer = Writer(
            append=self.disk.append,
            sync=self.disk.sync,
            is_dirty=lambda: self.disk.dirty,
            snapshot=self.disk.snapshot,
            tally=self.tally,
            done=self.done,
            clock=self.clock,
            stop=self.stop,
            emit=self.events.append,
            told_with=self.told_with,
        )

    def outcome(self, index: int, *, answer: Answer | None = None) -> Outcome:
        return Outcome(index, f"r{index}", answer or reply(), "t", 1, 0.5, self.clock.time())

    def told_with(self, outcome: Outcome) -> Outcome:
        limits = tuple(self.news)
        self.news.clear()
        return replace(outcome, limits=limits) if limits else outcome

    def write(self, *indexes: int) -> None:
        for index in indexes:
            self.writer.write(self.outcome(index))


async def test_an_outcome_is_a_line_then_a_part_of_the_totals_then_news():
    scene = Scene()
    outcome = scene.outcome(3)
    scene.writer.write(outcome)
    scene.writer.flush()
    assert scene.disk.log == ["append 3"]
    assert 3 in scene.done
    assert scene.tally.succeeded == 1
    assert scene.events == [RequestFinished(outcome)]


async def test_what_ends_in_one_turn_of_the_loop_is_written_together_in_the_next():
    scene = Scene()
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.run)
        await anyio.lowlevel.checkpoint()
        for indexes in ((1, 2, 3), (5,), (4, 7)):
            scene.write(*indexes)
            await anyio.lowlevel.checkpoint()
            assert scene.disk.log[-1] == " ".join(["append", *map(str, indexes)])
        group.cancel_scope.cancel()
    assert scene.tally.succeeded == 6


async def test_what_was_flushed_is_not_written_again_and_what_follows_is():
    """Whoever is about to send flushes, in the middle of a turn."""
    scene = Scene()
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.run)
        await anyio.lowlevel.checkpoint()
        scene.write(0, 1)
        scene.writer.flush()
        scene.write(2)
        scene.writer.flush()
        scene.write(3)
        await anyio.lowlevel.checkpoint()
        assert scene.disk.log == ["append 0 1", "append 2", "append 3"]
        group.cancel_scope.cancel()


async def test_a_failure_is_written_at_once_and_of_thousands_a_few_at_a_time():
    scene = Scene()
    broke = failure(FailureKind.SERVER_ERROR)
    for index in range(200):
        scene.writer.write(scene.outcome(index, answer=broke if index in (70, 71) else None))
        assert index != 70 or scene.tally.failed == 1
    scene.writer.flush()
    written = [entry.removeprefix("append ").split() for entry in scene.disk.log]
    assert [int(index) for some in written for index in some] == list(range(200))
    assert ["70"] in written
    assert max(map(len, written)) == 64
    assert (scene.tally.succeeded, scene.tally.failed) == (198, 2)


async def test_what_cannot_be_written_is_not_counted():
    scene = Scene()
    scene.disk.broken = True
    scene.write(3)
    with pytest.raises(OutputUnwritable):
        await scene.writer.run()
    assert 3 not in scene.done
    assert scene.tally.succeeded == 0
    assert scene.events == []
    with pytest.raises(OutputUnwritable):
        await scene.writer.settle()


async def test_an_output_that_broke_under_whoever_flushed_ends_the_run():
    scene = Scene()
    scene.disk.broken = True
    scene.write(3)
    scene.writer.flush()
    scene.disk.broken = False
    scene.write(4)
    for way in (scene.writer.run, scene.writer.keep_safe, scene.writer.settle):
        with pytest.raises(OutputUnwritable):
            await way()
    assert scene.disk.log == []


async def test_results_that_were_written_before_failures_found_no_room_are_not_written_again():
    scene = Scene()
    append = scene.disk.append

    def no_room_for_failures(outcomes: Sequence[Outcome]) -> None:
        scene.disk.full = not outcomes[0].succeeded
        append(outcomes)

    scene.writer._append = no_room_for_failures
    scene.write(0, 1)
    scene.writer.write(scene.outcome(2, answer=failure(FailureKind.SERVER_ERROR)))
    scene.write(3)
    scene.writer.flush()
    assert scene.disk.log == ["append 0 1"]
    scene.writer._append = append
    scene.disk.full = False
    await scene.writer.settle()
    assert scene.disk.log == ["append 0 1", "append 2", "append 3"]
    assert (scene.tally.succeeded, scene.tally.failed) == (3, 1)


async def test_a_limit_told_with_an_answer_that_finds_no_room_stands_in_its_line_when_there_is():
    scene = Scene()
    scene.disk.full = True
    scene.news.append(FoundLimit("small", 100.0, None, None))
    scene.write(0, 1)
    scene.writer.flush()
    scene.news.append(FoundLimit("large", 50.0, None, None))
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.keep_safe)
        await scene.clock.sleep(5)
        scene.disk.full = False
        await scene.clock.sleep(5)
        scene.write(2)
        scene.writer.flush()
        group.cancel_scope.cancel()
    assert scene.disk.told == ["small", "large"]


async def test_nothing_is_appended_after_a_sync_that_failed():
    """What a failed fsync lost is not known, and a second one says nothing about it (Rebello et al., "Can Applications
    Recover from fsync Failures?", USENIX ATC 2020)."""
    scene = Scene()

    def broken() -> None:
        scene.write(1)  # an outcome comes at that very moment
        raise OutputUnwritable("input/output error")

    scene.writer._sync = broken
    scene.write(0)
    scene.writer.flush()
    with pytest.raises(OutputUnwritable):
        await scene.writer.keep_safe()
    scene.writer.flush()
    with pytest.raises(OutputUnwritable):
        await scene.writer.settle()
    assert scene.disk.log == ["append 0"]
    assert scene.tally.succeeded == 1


async def test_a_large_answer_is_written_at_once_with_those_before_it():
    """Many of them together would be as much memory again."""
    scene = Scene()
    scene.write(0)
    scene.writer.write(scene.outcome(1, answer=reply("x" * 100_000)))
    assert scene.disk.log == ["append 0 1"]


async def test_a_request_that_has_its_line_gets_no_second_one():
    scene = Scene()
    scene.write(3)
    scene.writer.flush()
    scene.write(3)
    with pytest.raises(RuntimeError, match="twice"):
        await scene.writer.settle()
    assert scene.disk.log == ["append 3"]
    assert scene.tally.succeeded == 1


async def keep_safe_for(scene: Scene, seconds: float, *, write_every: float | None = None) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.keep_safe)
        until = scene.clock.now() + seconds
        index = 0
        while scene.clock.now() < until:
            if write_every is not None:
                scene.write(index)
                index += 1
            await scene.clock.sleep(write_every or seconds)
        group.cancel_scope.cancel()


async def test_a_line_is_synced_within_the_interval_and_once():
    scene = Scene()
    scene.write(0)
    await keep_safe_for(scene, 1.5 * SYNC_INTERVAL_S)
    assert scene.disk.log == ["append 0", "sync"]


async def test_an_idle_disk_is_left_alone():
    scene = Scene()
    await keep_safe_for(scene, 60)
    assert scene.disk.log == []


async def test_a_checkpoint_is_written_only_after_what_it_counts_was_synced():
    scene = Scene()
    await keep_safe_for(scene, 3 * CHECKPOINT_INTERVAL_S, write_every=0.5)
    log = scene.disk.log
    assert log.count("checkpoint") >= 2
    for at, what in enumerate(log):
        if what == "snapshot":
            after = [entry for entry in log[at + 1 :] if not entry.startswith("append")]
            assert after[:2] == ["sync", "checkpoint"]


async def test_a_full_disk_holds_lines_and_begins_nothing_until_there_is_room():
    scene = Scene()
    scene.disk.full = True
    scene.write(0, 1, 2)
    scene.writer.flush()
    assert scene.disk.log == []
    assert len(scene.done) == 0
    assert scene.tally.succeeded == 0
    assert sum(isinstance(event, Notice) for event in scene.events) == 1
    waiting = scene.writer.room()
    assert waiting is not None
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.keep_safe)
        await scene.clock.sleep(5)
        assert scene.disk.log == []
        scene.disk.full = False
        await waiting
        group.cancel_scope.cancel()
    # One by one: who knows where the room ends?
    assert scene.disk.log[:3] == ["append 0", "append 1", "append 2"]
    assert scene.tally.succeeded == 3
    assert scene.writer.room() is None


async def test_no_checkpoint_is_written_while_answers_are_held():
    """Its place in the input would be behind theirs."""
    scene = Scene()
    scene.disk.full = True
    scene.write(0)
    scene.writer.flush()
    scene.disk.dirty = True
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.keep_safe)
        await scene.clock.sleep(3 * CHECKPOINT_INTERVAL_S)
        assert "snapshot" not in scene.disk.log
        scene.disk.full = False
        await scene.clock.sleep(2)
        scene.disk.dirty = True
        await scene.clock.sleep(CHECKPOINT_INTERVAL_S)
        group.cancel_scope.cancel()
    assert "checkpoint" in scene.disk.log


async def test_a_job_that_ends_on_a_full_disk_waits_for_room():
    scene = Scene()
    scene.disk.full = True
    scene.write(0)

    async def make_room() -> None:
        await scene.clock.sleep(60)
        scene.disk.full = False

    async with anyio.create_task_group() as group:
        group.start_soon(make_room)
        await scene.writer.settle()
    assert scene.disk.log == ["append 0"]


async def test_a_stop_on_a_full_disk_says_which_indexes_are_not_on_it():
    scene = Scene()
    scene.disk.full = True
    scene.write(7, 9)
    scene.stop.request(Interrupted(15, "enough"))
    with pytest.raises(OutputUnwritable, match="index 7, 9"):
        await scene.writer.settle()
