"""The one writer, its syncs and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from batchkit.engine.writer import CHECKPOINT_INTERVAL_S, SYNC_INTERVAL_S, Writer
from batchkit.errors import OutputUnwritable
from batchkit.events import Event, RequestFinished
from batchkit.records import Outcome
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally
from batchkit.testing import ManualClock, reply


class Disk:
    """Where lines go, and in what order things were done to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.dirty = False
        self.full = False

    def append(self, outcome: Outcome) -> None:
        if self.full:
            raise OutputUnwritable("no room")
        self.log.append(f"append {outcome.index}")
        self.dirty = True

    def sync(self) -> None:
        self.log.append("sync")
        self.dirty = False

    def snapshot(self) -> Callable[[], None]:
        self.log.append("snapshot")
        return lambda: self.log.append("checkpoint")


async def at_once(work: Callable[[], None]) -> None:
    """A thread that takes no time: to a real one, the manual clock would not stand still."""
    work()


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.disk = Disk()
        self.tally = Tally()
        self.done = DoneIndexes()
        self.events: list[Event] = []
        self.writer = Writer(
            append=self.disk.append,
            sync=self.disk.sync,
            is_dirty=lambda: self.disk.dirty,
            snapshot=self.disk.snapshot,
            tally=self.tally,
            done=self.done,
            clock=self.clock,
            emit=self.events.append,
            in_thread=at_once,
        )

    def outcome(self, index: int) -> Outcome:
        return Outcome(index, f"r{index}", reply(), "t", 1, 0.5, self.clock.time())


def test_an_outcome_is_a_line_then_a_part_of_the_totals_then_news():
    scene = Scene()
    outcome = scene.outcome(3)
    scene.writer.write(outcome)
    assert scene.disk.log == ["append 3"]
    assert 3 in scene.done
    assert scene.tally.succeeded == 1
    assert scene.events == [RequestFinished(outcome)]


def test_what_cannot_be_written_is_not_counted():
    scene = Scene()
    scene.disk.full = True
    with pytest.raises(OutputUnwritable):
        scene.writer.write(scene.outcome(3))
    assert 3 not in scene.done
    assert scene.tally.succeeded == 0
    assert scene.events == []


def test_a_request_that_has_its_line_gets_no_second_one():
    scene = Scene()
    scene.writer.write(scene.outcome(3))
    with pytest.raises(RuntimeError, match="twice"):
        scene.writer.write(scene.outcome(3))
    assert scene.disk.log == ["append 3"]
    assert scene.tally.succeeded == 1


async def keep_safe_for(scene: Scene, seconds: float, *, write_every: float | None = None) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(scene.writer.keep_safe)
        until = scene.clock.now() + seconds
        index = 0
        while scene.clock.now() < until:
            if write_every is not None:
                scene.writer.write(scene.outcome(index))
                index += 1
            await scene.clock.sleep(write_every or seconds)
        group.cancel_scope.cancel()


async def test_a_line_is_synced_within_the_interval_and_once():
    scene = Scene()
    scene.writer.write(scene.outcome(0))
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
