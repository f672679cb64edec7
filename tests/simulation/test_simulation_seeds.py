"""Whole jobs, made of seeds: the promises hold over all of them; and a store that breaks one is found out.

`make simulation` lives through a million. `python tests/simulation/simulated_job.py 4711` tells the story of one.
"""

from collections import Counter
from decimal import Decimal
from functools import partial

import pytest
import simulated_job

from batchkit.engine.hedging import Hedging
from batchkit.engine.purse import Purse
from batchkit.rules import patience
from batchkit.testing import FaultyDisk

SEEDS = 500
AT_ONCE = 125


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_nothing_is_lost_and_nothing_stands_twice_whatever_happened(first):
    totals = simulated_job.live_through_all(range(first, first + AT_ONCE))
    assert not totals.broken
    assert totals.seeds == AT_ONCE
    assert totals.crashes > AT_ONCE / 4


@pytest.mark.parametrize("seed", [7, 23, 99])
def test_a_seed_told_twice_is_the_same_story(seed):
    first, second = simulated_job.check(seed), simulated_job.check(seed)
    assert first.told == second.told
    assert first.billed == second.billed
    assert first.wall == second.wall


class LyingSync(FaultyDisk):
    """Says that all is on the disk, and has put nothing there."""

    def sync(self, descriptor):
        self._step("sync")


class ForgetfulWrite(FaultyDisk):
    """Now and then reports a line as written and does not write it."""

    def write(self, descriptor, data):
        if self.steps % 13 == 7 and data.startswith(b'{"id":"batch_req_'):
            self._step("write")
            return len(data)
        return super().write(descriptor, data)


class StutteringWrite(FaultyDisk):
    """Now and then writes a line twice."""

    def write(self, descriptor, data):
        if self.steps % 13 == 7 and data.startswith(b'{"id":"batch_req_'):
            super().write(descriptor, data)
        return super().write(descriptor, data)


class StuckTruncate(FaultyDisk):
    """Says that a torn end was cut off, and leaves it standing."""

    def truncate(self, descriptor, size):
        self._step("truncate")


@pytest.mark.parametrize("disk", [LyingSync, ForgetfulWrite, StutteringWrite, StuckTruncate])
def test_a_store_that_breaks_a_promise_is_found_out(disk, monkeypatch, capsys):
    """Within so few seeds, by an assertion or because the next run finds its files damaged."""
    monkeypatch.setattr(simulated_job, "FaultyDisk", disk)
    with pytest.raises((AssertionError, simulated_job.JobDamaged)):
        list(map(simulated_job.check, range(60)))
    assert "seed " in capsys.readouterr().err


async def unwritten(*_, **__):
    return True


def nothing_unseen(purse, claim, known, unsure=Decimal(0)):
    return SETTLE(purse, claim, Decimal(0) if known is None else known, unsure)


SETTLE = Purse._settle


@pytest.mark.parametrize(
    ("place", "broken"),
    [
        ("batchkit.job.write_authorised", unwritten),
        ("batchkit.job.read_authorised", lambda *_: Decimal(0)),
        ("batchkit.engine.purse.Purse._settle", nothing_unseen),
    ],
    ids=["not_written_down", "not_read", "not_counted"],
)
def test_a_job_that_passes_its_max_cost_is_found_out(place, broken, monkeypatch):
    """Within so few seeds: what may be spent is not written down, or not read again, or what nobody saw is not counted."""
    monkeypatch.setattr(place, broken)
    worlds = map(simulated_job.live_through, range(240))
    assert any("were billed" in str(world.broken) for world in worlds)


def test_jobs_with_a_max_cost_stop_at_it_and_are_done_with_a_larger_one():
    worlds = [simulated_job.check(seed) for seed in range(40)]
    capped = [world for world in worlds if world.max_cost is not None]
    assert len(capped) > 10
    stopped = [world for world in capped if any("MaxCostReached" in each for each in world.told)]
    assert len(stopped) > 5
    assert all(0 < world.bill <= world.max_cost for world in stopped)


def test_attempts_that_are_given_up_and_second_ones_break_no_promise(monkeypatch):
    """With impatience that these small jobs can feel: after three answers, and a little above what is usual."""
    monkeypatch.setattr(patience, "_ENOUGH", 3)
    monkeypatch.setattr(patience, "LEAST_S", 0.5)
    monkeypatch.setattr(patience, "_TIMES", 1.2)
    monkeypatch.setattr(simulated_job, "Settings", partial(simulated_job.Settings, hedge="100%"))
    seen = Counter()

    def counted(place, name):
        decide = getattr(place, name)

        def decided(*args, **kwargs):
            yes = decide(*args, **kwargs)
            seen[name] += yes
            return yes

        monkeypatch.setattr(place, name, decided)

    counted(patience.Patience, "gives_up")
    counted(Hedging, "_begins")
    totals = simulated_job.live_through_all(range(60))
    assert totals.broken == []
    assert (totals.lost, totals.doubled) == (0, 0)
    assert min(seen["gives_up"], seen["_begins"]) > 20


class HerePool:
    """Stands for the processes: works in this one."""

    def __init__(self, initializer):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def imap(self, work, pieces):
        return map(work, pieces)


class StoppedPool(HerePool):
    """Is stopped from the keyboard after a first piece."""

    def imap(self, work, pieces):
        yield work(pieces[0])
        raise KeyboardInterrupt


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(simulated_job.multiprocessing, "Pool", HerePool)
    monkeypatch.setattr(simulated_job.signal, "signal", lambda *_: None)


@pytest.mark.usefixtures("here")
def test_a_range_without_a_broken_promise_tells_its_totals_and_succeeds(capsys):
    assert simulated_job.live_through_range(100, 120) == 0
    told = capsys.readouterr().out
    assert "20 seeds, " in told
    assert "0 lost, 0 doubled, 0 seeds with a broken promise" in told


@pytest.mark.usefixtures("here")
def test_a_seed_that_breaks_a_promise_is_named_and_breaks_it_again_alone(monkeypatch, capsys):
    monkeypatch.setattr(simulated_job, "FaultyDisk", StutteringWrite)
    monkeypatch.setattr(simulated_job, "MOST_BROKEN", 1)
    monkeypatch.setattr(simulated_job, "AT_ONCE", 5)
    assert simulated_job.live_through_range(0, 100) == 1
    first = capsys.readouterr().out.splitlines()[0]
    seed = int(first.removeprefix("seed ").split()[0])
    with pytest.raises((AssertionError, simulated_job.JobDamaged)):
        simulated_job.check(seed)


@pytest.mark.usefixtures("here")
def test_a_range_that_is_stopped_says_where_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(simulated_job.multiprocessing, "Pool", StoppedPool)
    monkeypatch.setattr(simulated_job, "AT_ONCE", 5)
    assert simulated_job.live_through_range(10, 100) == 130
    told = capsys.readouterr()
    assert told.err.endswith("15 100\n")
    assert "5 seeds, " in told.out


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("prompt_tokens", lambda usage: usage["prompt_tokens"] + 1),
        ("total_tokens", lambda usage: usage["total_tokens"] - 1),
    ],
)
def test_totals_that_are_not_those_of_the_lines_are_found_out(name, broken, monkeypatch, capsys):
    verify = simulated_job.verify

    def verify_wrong(world, summary):
        usage = summary["usage"] | {name: broken(summary["usage"])}
        verify(world, summary | {"usage": usage})

    monkeypatch.setattr(simulated_job, "verify", verify_wrong)
    with pytest.raises(AssertionError):
        simulated_job.check(1)
