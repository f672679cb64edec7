"""When attempts are ended, by a clock that goes as it is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchkit.endpoint.deadlines import Deadlines


class Loop:
    """A clock, and the one timer that is set on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timer: tuple[float, Callable[[], None]] | None = None
        self.calls = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Loop:
        assert self.timer is None, "there is one timer"
        self.timer = when, call
        return self

    def cancel(self) -> None:
        self.timer = None

    def run(self, until: float, *, late: float = 0.0) -> None:
        while self.timer is not None and self.timer[0] <= until:
            (self.now, call), self.timer = self.timer, None
            self.now += late
            self.calls += 1
            call()
        self.now = max(self.now, until)


class Attempt:
    """Tells when its time was up."""

    def __init__(self, overdue: Callable[[], None]) -> None:
        self.overdue = overdue


class Ended(list[tuple[int, float]]):
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def __call__(self, number: int) -> Attempt:
        return Attempt(lambda: self.append((number, self._loop.now)))


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def ended(loop) -> Ended:
    return Ended(loop)


@pytest.fixture
def deadlines(loop) -> Deadlines:
    return Deadlines(loop, 10.0)


def test_each_attempt_ends_in_its_time_unless_it_is_over(loop, ended, deadlines):
    over = ended(2)
    for number in range(4):
        deadlines.start(over if number == 2 else ended(number), deadlines.next())
        loop.run(loop.now + 1.0)
    deadlines.stop(over)
    loop.run(100.0)
    assert ended == [(0, 10.0), (1, 11.0), (3, 13.0)]
    assert loop.timer is None
    assert not deadlines._running


def test_who_took_long_to_connect_ends_before_those_who_began_later(loop, ended, deadlines):
    due = deadlines.next()
    loop.run(5.0)
    deadlines.start(ended(1), deadlines.next())
    deadlines.start(ended(0), due)
    loop.run(100.0)
    assert ended == [(0, 10.0), (1, 15.0)]


def test_who_begins_when_the_time_is_up_ends_at_once_and_holds_up_no_other(loop, ended, deadlines):
    due = deadlines.next()
    deadlines.start(ended(0), 14.0)
    for second in range(12, 30):
        loop.run(float(second))
        deadlines.start(ended(second), due)
    loop.run(100.0)
    assert ended == [*((second, float(second)) for second in (12, 13)), (0, 14.0),
                     *((second, float(second)) for second in range(14, 30))]  # fmt: skip


def test_thousands_that_come_due_one_after_the_other_are_looked_through_a_hundred_times(
    loop, ended, deadlines
):
    for number in range(5000):
        loop.now = number * 0.002
        deadlines.start(ended(number), deadlines.next())
    loop.run(100.0)
    assert [number for number, _ in ended] == list(range(5000))
    assert all(-1e-9 <= when - (10.0 + number * 0.002) <= 0.1 for number, when in ended)
    assert loop.calls <= 102


def test_a_loop_that_stood_still_reads_for_a_second_before_it_ends_anything(loop, ended, deadlines):
    deadlines.start(ended(0), deadlines.next())
    loop.run(10.0, late=1.5)
    assert (ended, loop.now) == ([], 11.5)
    loop.run(12.4)
    assert ended == []
    loop.run(12.6)
    assert ended == [(0, 12.5)]


def test_nothing_ends_after_the_endpoint(loop, ended, deadlines):
    deadlines.start(ended(0), deadlines.next())
    deadlines.close()
    loop.run(100.0)
    assert ended == []
