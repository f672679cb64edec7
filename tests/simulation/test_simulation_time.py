"""Virtual time: it passes at once and only for those who wait; who waits in vain is told so."""

import asyncio

import anyio
import pytest
from virtual_time import VirtualClock

EPOCH = 1_763_820_000.0


def run(clock, main):
    with asyncio.Runner(loop_factory=clock.loop) as runner:
        return runner.run(main)


def test_sleepers_wake_in_the_order_of_their_times_and_at_them():
    clock, woken = VirtualClock(EPOCH), []

    async def sleeper(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, round(clock.now(), 6), round(clock.time() - EPOCH, 6)))

    async def main():
        await asyncio.gather(*map(sleeper, (3600.0, 0.2, 5.0)))

    run(clock, main())
    assert woken == [(0.2, 0.2, 0.2), (5.0, 5.0, 5.0), (3600.0, 3600.0, 3600.0)]


def test_no_time_passes_while_anyone_has_something_to_do():
    clock, seen = VirtualClock(EPOCH), []

    async def busy():
        for _ in range(1000):
            await asyncio.sleep(0)
            seen.append(clock.now())

    async def main():
        await asyncio.gather(clock.sleep(0.001), busy())

    run(clock, main())
    assert set(seen) == {0.0}


def test_a_library_that_waits_waits_by_this_clock():
    clock = VirtualClock(EPOCH)

    async def main():
        with anyio.move_on_after(86_400):
            await anyio.sleep_forever()

    run(clock, main())
    assert clock.now() == pytest.approx(86_400)


def test_a_run_in_which_everyone_waits_for_someone_is_found_out():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(AssertionError, match="nobody for time"):
        run(VirtualClock(EPOCH), main())


def test_a_run_that_does_not_end_is_found_out():
    clock = VirtualClock(EPOCH)

    async def main():
        while True:
            await clock.sleep(3600)

    with pytest.raises(AssertionError, match="does not end"):
        run(clock, main())
