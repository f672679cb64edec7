"""Observers are told, and none of them can harm the run."""

from __future__ import annotations

import anyio

from batchkit.engine.monitor import Monitor
from batchkit.events import Event, Gauges, Notice
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


async def test_watching_ends_when_nobody_is_left_to_tell():
    monitor = Monitor([], ManualClock())
    with anyio.fail_after(5):
        await monitor.watch()
