"""Observers are told, and none of them can harm the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from batchkit.engine.monitor import Monitor, Readings
from batchkit.engine.under_way import UnderWay, Watch
from batchkit.events import Event, Gauges, Notice
from batchkit.records import Request, Usage
from batchkit.rules.pacing import Pacer
from batchkit.rules.tally import Tally
from batchkit.testing import ManualClock


class Listener:
    interval_s = 10.0

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.closed = False

    def handle(self, event: Event) -> None:
        self.heard.append(event)

    def tick(self, gauges: Gauges) -> None:
        """Not called without readings."""

    def close(self) -> None:
        self.closed = True


class Broken(Listener):
    def handle(self, event: Event) -> None:
        raise ZeroDivisionError("a bar of no width")


def test_an_observer_that_fails_is_dropped_and_the_others_are_told_why():
    listener, broken = Listener(), Broken()
    monitor = Monitor([broken, listener], ManualClock())
    monitor.emit(Notice("one"))
    monitor.emit(Notice("two"))
    said = [event.message for event in listener.heard if isinstance(event, Notice)]
    assert [message for message in said if message in ("one", "two")] == ["one", "two"]
    assert any("Broken failed and was dropped" in message for message in said)


def test_an_observer_that_fails_at_its_end_does_not_harm_the_others():
    class Clinging(Listener):
        def close(self) -> None:
            raise OSError("the terminal is gone")

    clinging, listener = Clinging(), Listener()
    Monitor([clinging, listener], ManualClock()).close()
    assert listener.closed


class Watched:
    """A run that stands still, and what a monitor says of it; `at_gate` of the `busy` requests stand before the gate."""

    def __init__(self, *, busy: int, total: int | None, at_gate: int = 0, starved: bool = False) -> None:
        self.watching = anyio.CancelScope()
        self.clock = ManualClock()
        self.under_way = Watch(self.clock, patient=True)
        self.in_flight = 0
        self.last: Gauges | None = None
        self.monitor = Monitor([self], self.clock)
        self.monitor.readings = Readings(
            tally=Tally(),
            pipeline=cast("Any", SimpleNamespace(busy=busy, starved=starved)),
            delivery=cast(
                "Any", SimpleNamespace(in_flight=busy - at_gate, unpaid=0, under_way=self.under_way)
            ),
            gate=cast("Any", SimpleNamespace(waiting=at_gate, pacer=Pacer(rpm=60))),
            concurrency=4,
            ended=lambda: (1, 0),
            total=lambda: total,
            cost=lambda: (None, False),
        )

    interval_s = 10.0

    def handle(self, event: Event) -> None:
        raise AssertionError(event)

    def tick(self, gauges: Gauges) -> None:
        self.last = gauges
        self.watching.cancel()

    def close(self) -> None:
        """Nothing is left to do."""

    def take_up(self, *custom_ids: str) -> None:
        for custom_id in custom_ids:
            patience = self.under_way.patience_with("m")
            way = UnderWay(Request(0, custom_id, b"{}", "m"), patience, self.clock.now(), None)
            self.under_way.requests[way] = None

    async def gauges(self) -> Gauges:
        with self.watching:
            await self.monitor.watch()
        assert self.last is not None
        return self.last


async def test_a_run_that_is_over_is_held_back_by_nothing():
    # Three requests were taken up and never answered; one of them stands at the gate.
    run = Watched(busy=3, total=10, at_gate=1)
    gauges = await run.gauges()
    assert (gauges.holding, gauges.waiting) == ("limit", 1)
    run.monitor.close()
    assert run.last is not None
    assert (run.last.holding, run.last.waiting, run.last.seconds_left) == ("", 0, None)


async def test_what_ended_before_tells_nothing_of_the_end_of_a_run_that_stands_still():
    run = Watched(busy=2, total=5)
    run.interval_s = 1.0
    ended = iter([0, 1, 2, 3, 3, 3, 3, 3, 3, 3])
    assert run.monitor.readings is not None
    run.monitor.readings.ended = lambda: (next(ended), 0)
    left: list[float | None] = []

    def tick(gauges: Gauges) -> None:
        left.append(gauges.seconds_left)
        if len(left) == 9:
            run.watching.cancel()

    run.tick = tick
    with run.watching:
        await run.monitor.watch()
    # The last three have ended at the third second.
    assert left == pytest.approx(
        [4.0, 3.0, 2.0, 2 / (3 / 4), 2 / (3 / 5), 2 / (3 / 6), 2 / (3 / 7), None, None]
    )


@pytest.mark.parametrize("total", [5, None])
async def test_near_its_end_a_run_names_what_it_waits_for(total):
    run = Watched(busy=3 if total is None else 4, total=total)
    run.take_up("first", "second", "third", "fourth")
    gauges = await run.gauges()
    assert gauges.awaited == (("first", 10.0), ("second", 10.0), ("third", 10.0))
    assert gauges.unfinished == (3 if total is None else 4)
    run.monitor.close()
    assert run.last is not None
    assert run.last.awaited == ()


@pytest.mark.parametrize(
    "standing",
    [
        {"busy": 4, "total": 6},
        {"busy": 4, "total": None},
        {"busy": 2, "total": None, "starved": True},
        {"busy": 4, "total": 5, "at_gate": 1},
    ],
    ids=["more_to_begin", "none_idle", "lines_to_come", "at_the_gate"],
)
async def test_while_there_is_more_to_begin_nobody_is_waited_for(standing):
    run = Watched(**standing)
    run.take_up("first")
    assert (await run.gauges()).awaited == ()


async def test_a_full_house_says_what_an_answer_takes():
    run = Watched(busy=4, total=10)

    async def answer() -> None:
        await run.clock.sleep(1.0)
        for seconds in (2.0, 4.0):
            run.under_way.patience_with("m").learn(seconds, Usage(1, 1, 2), None)

    async with anyio.create_task_group() as group:
        group.start_soon(answer)
        gauges = await run.gauges()
    assert gauges.detail == "4 in flight, the server takes 3 s each"


async def test_watching_ends_when_nobody_is_left_to_tell():
    monitor = Monitor([], ManualClock())
    with anyio.fail_after(5):
        await monitor.watch()
