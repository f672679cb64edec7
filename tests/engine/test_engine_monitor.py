"""Observers are told, and none of them can harm the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio

from batchkit.engine.monitor import Monitor, Readings
from batchkit.events import Event, Gauges, Notice
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


async def test_a_run_that_is_over_is_held_back_by_nothing():
    watching = anyio.CancelScope()

    class Watcher(Listener):
        def tick(self, gauges: Gauges) -> None:
            self.last = gauges
            watching.cancel()

    clock, watcher = ManualClock(), Watcher()
    monitor = Monitor([watcher], clock)
    pacer = Pacer(rpm=60)
    # Three requests were taken up and never answered; one of them stands at the gate.
    monitor.readings = Readings(
        tally=Tally(),
        pipeline=cast("Any", SimpleNamespace(busy=3, starved=False)),
        delivery=cast("Any", SimpleNamespace(in_flight=0, unpaid=0)),
        gate=cast("Any", SimpleNamespace(waiting=1, pacer=pacer)),
        concurrency=4,
        ended=lambda: (1, 0),
        total=lambda: 10,
        cost=lambda: (None, False),
    )
    with watching:
        await monitor.watch()
    assert (watcher.last.holding, watcher.last.waiting) == ("limit", 3)
    monitor.close()
    assert (watcher.last.holding, watcher.last.waiting, watcher.last.seconds_left) == ("", 0, None)


async def test_watching_ends_when_nobody_is_left_to_tell():
    monitor = Monitor([], ManualClock())
    with anyio.fail_after(5):
        await monitor.watch()
