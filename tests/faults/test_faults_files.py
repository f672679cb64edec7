"""Files and resume: each fault is made, and each test's name is what then holds. The numbers are those of the list of faults.

Where a fault is about when things happen, the whole run is in this process, on a disk that fails at its k-th step and a
clock nobody waits for; where it is about the machine, it is the real command with a real kill, disk, limit or process.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
from contextlib import suppress
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from itertools import count
from random import Random

import pytest

import batchkit
from batchkit.engine.stop import Stop
from batchkit.engine.writer import SYNC_INTERVAL_S
from batchkit.errors import (
    BatchkitError,
    EndpointRefused,
    Interrupted,
    JobDamaged,
    OutputUnwritable,
    TooManyFailures,
    UsageError,
)
from batchkit.events import AttemptFailed
from batchkit.formats.completions import read_answer
from batchkit.formats.results import OutputLine, encode, is_whole
from batchkit.job import JobRun
from batchkit.outputs import read_output
from batchkit.records import Outcome
from batchkit.source import Source
from batchkit.state import load_for_run
from batchkit.store import Store
from batchkit.testing import Crash, FaultyDisk, ManualClock, ScriptedEndpoint, failure, reply

REQUESTS = 7
CONCURRENCY = 3
EPOCH = 1_763_820_000.0


def indexes(job):
    return sorted(each.outcome.index for path in outputs(job) for each in read_output(path))


def outputs(job):
    return job.output, job.output.with_name("results.errors.jsonl")


def assert_done(job, summary, requests=REQUESTS):
    """Each index stands once, and the totals are those of the lines."""
    assert indexes(job) == list(range(requests))
    counted = summary["requests"]
    assert (counted["total"], counted["succeeded"], counted["failed"], counted["pending"]) == (
        requests,
        requests,
        0,
        0,
    )
    lines = [each.outcome for each in read_output(job.output)]
    assert summary["attempts"]["total"] == sum(outcome.attempts for outcome in lines)
    assert summary["usage"]["total_tokens"] == sum(
        json.loads(outcome.answer.body)["usage"]["total_tokens"] for outcome in lines
    )


# --- killed --------------------------------------------------------------------------------------------------------


def test_fault_01_kill_9_at_any_moment_and_going_on_re_sends_only_what_was_in_flight(
    command, held, files, kill
):
    run, endpoint, words = held
    kill(run)
    written = {each["batchkit"]["trace_id"] for each in files.results}
    assert len(written) == 7
    endpoint.release()
    files.assert_summary_is_a_fold(command(*words).json, 40)
    assert len(endpoint.received) == 20 + 40 - 7
    assert not written & {headers["x-client-request-id"][:32] for headers, _ in endpoint.received[20:]}


@pytest.mark.parametrize(
    ("ends", "on_their_way"),
    [
        (["killed"], 3),
        (["killed", "killed"], 6),
        (["killed", "refused"], 3),
        (["some"], 0),
        (["some", "killed"], 3),
        (["some", "killed", "killed", "refused", "refused"], 6),
        (["killed", "some", "killed"], 6),
        (["refused", "killed", "rescanned"], 3),
        (["killed", "some", "killed", "rescanned", "some"], 6),
    ],
)
async def test_fault_01_answers_on_their_way_at_a_kill_are_counted_though_the_run_had_written_nothing(
    ends, on_their_way, make_job
):
    job = make_job(12)

    def killed(what, _number):
        if what == "write" and endpoint.attempts:
            raise Crash

    for number, end in enumerate([*ends, "done"]):
        clock = ManualClock(1_763_820_000.0 + 1000 * number)
        refusal = failure("key_refused", status=401)
        endpoint = ScriptedEndpoint(
            otherwise=lambda _, end=end, refusal=refusal: refusal if end == "refused" else reply(),
            clock=clock,
            latency_s=0.1,
        )
        disk = FaultyDisk(killed if end == "killed" else lambda *_: None)
        run = job.run(
            disk,
            clock=clock,
            endpoint=endpoint,
            rescan=end == "rescanned",
            limit={"some": 1 + number, "rescanned": 1 + number}.get(end),
        )
        if end == "killed":
            assert await dies(run)
        elif end == "refused":
            with pytest.raises(EndpointRefused):
                await run
        else:
            summary = await run
    assert_done(job, summary, 12)
    assert summary["attempts"]["in_flight_at_kills"] == on_their_way
    assert batchkit.report(job.output)["attempts"]["in_flight_at_kills"] == on_their_way


class KilledAtItsFirstLine(FaultyDisk):
    """Kills a run that has sent something; where it is `full`, it has no room for a checkpoint either."""

    def __init__(self, endpoint, *, full):
        super().__init__()
        self.endpoint, self.full = endpoint, full

    def write(self, descriptor, data):
        if self.endpoint.attempts:
            self.dead = True
            raise Crash
        if self.full and data.startswith(b'{"version"'):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        return super().write(descriptor, data)


@pytest.mark.parametrize(
    ("beside", "kills", "on_their_way"),
    # Without a checkpoint the clean end of the first run, of 8 in flight, is not known of.
    [("checkpoint", 1, 4), ("nothing", 1, 12), ("a full disk", 1, 8), ("much", 1, 12), ("much", 2, 16)],
)
async def test_fault_01_the_bound_of_what_was_on_its_way_is_that_of_the_runs_that_were_killed(
    beside, kills, on_their_way, make_job, monkeypatch
):
    """Also where the checkpoint was deleted, or finds no room, or what stands in the files is not added up yet."""
    job = make_job(30)
    await job.run(limit=5, concurrency=8)
    if beside == "much":
        monkeypatch.setitem(JobRun.__init__.__kwdefaults__, "at_once_bytes", 0)
    if beside in ("much", "nothing"):
        job.output.with_name("results.checkpoint.json").unlink()
    for kill in range(kills):
        clock = ManualClock(EPOCH + 1000 * (kill + 1))
        endpoint = ScriptedEndpoint(clock=clock, latency_s=0.1)
        disk = KilledAtItsFirstLine(endpoint, full=beside == "a full disk")
        assert await dies(job.run(disk, clock=clock, endpoint=endpoint, concurrency=4))
    summary = await job.run(clock=ManualClock(EPOCH + 9000))
    assert summary["attempts"]["in_flight_at_kills"] == on_their_way


async def test_fault_01_a_job_of_which_nothing_stands_but_what_was_set_aside_may_have_been_killed(make_job):
    job, stop, clock = make_job(3), Stop(), ManualClock()
    empty = b'{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":16}}'
    endpoint = ScriptedEndpoint(otherwise=lambda _: read_answer(200, {}, empty, 0.0), clock=clock)

    class Listener:
        interval_s = 10.0

        def handle(self, event):
            if isinstance(event, AttemptFailed):
                stop.request(Interrupted(signal.SIGINT, "stopped"))

        def close(self):
            """Nothing was opened."""

    with pytest.raises(Interrupted):
        await job.run(clock=clock, endpoint=endpoint, observers=(Listener(),), stop=stop)
    assert indexes(job) == []
    job.output.with_name("results.checkpoint.json").unlink()
    summary = await job.run(clock=ManualClock(EPOCH + 1000))
    assert summary["attempts"]["in_flight_at_kills"] == 3


@pytest.mark.parametrize("why", ["a signal", "a failure too many"])
async def test_fault_01_whoever_leaves_at_once_while_a_run_drains_leaves_answers_on_their_way(why, make_job):
    job, stop, clock = make_job(6), Stop(), ManualClock()
    endpoint = ScriptedEndpoint(clock=clock, latency_s=30.0)

    async def leave():
        await clock.sleep(40.0)
        stop.request(
            Interrupted(2, "stopped") if why == "a signal" else TooManyFailures("3", code="max_failures")
        )
        await clock.sleep(5.0)
        stop.abandon(Interrupted(2, "stopped"))

    leaving = asyncio.create_task(leave())
    with pytest.raises(BatchkitError) as left:
        await job.run(clock=clock, endpoint=endpoint, stop=stop)
    await leaving
    assert left.value.summary["stop_reason"] == "left_at_once"
    assert endpoint.in_flight == 0
    summary = await job.run(clock=ManualClock(EPOCH + 1000))
    assert summary["attempts"]["in_flight_at_kills"] == 3


async def test_ids_stay_those_of_the_job_though_nothing_was_written_and_the_input_was_touched(
    make_job,
):
    job = make_job(3)
    refusing = ScriptedEndpoint(otherwise=lambda _: failure("key_refused", status=401))
    with pytest.raises(EndpointRefused):
        await job.run(endpoint=refusing, job_id=None)
    os.utime(job.input)
    endpoint = ScriptedEndpoint()
    await job.run(endpoint=endpoint, job_id=None, clock=ManualClock(EPOCH + 1000))
    (refused, first) = refusing.attempts[0], endpoint.attempts[0]
    assert refused[0].index == first[0].index
    assert refused[1].trace_id == first[1].trace_id


async def test_fault_04_a_flipped_bit_in_failures_that_were_asked_again_is_found_as_well(make_job):
    job = make_job(4)
    await job.run(
        endpoint=ScriptedEndpoint(otherwise=lambda _: failure("invalid_request", status=400)), limit=2
    )
    await job.run(retry_failed=True, limit=3, clock=ManualClock(EPOCH + 1000))
    aside = job.output.with_name("results.errors.1.jsonl")
    damaged = bytearray(aside.read_bytes())
    damaged[300] ^= 1
    aside.write_bytes(damaged)
    with pytest.raises(JobDamaged, match=r"errors\.1\.jsonl is damaged"):
        await job.run(clock=ManualClock(EPOCH + 2000))


DIES_IN_A_WRITE = """
import os, signal
from batchkit import store

class Dying(store.Disk):
    lines = 0

    def write(self, descriptor, data):
        if data.startswith(b'{"id":"batch_req_'):
            whole = sum(map(len, data.splitlines(keepends=True)[: 5 - Dying.lines]))
            Dying.lines += data.count(b"\\n")
            if Dying.lines > 5:
                os.write(descriptor, data[: whole + 100])
                os.kill(os.getpid(), signal.SIGKILL)
        return super().write(descriptor, data)

store.Disk = Dying
"""


def test_fault_02_kill_inside_a_write_and_the_torn_tail_is_moved_aside_and_its_request_re_sent(
    command, record, files, write_requests
):
    endpoint = record()
    words = ["run", write_requests(20), "-o", files.results_path, "--base-url", endpoint.base_url, "--json"]
    words += ["--concurrency", 4]
    died = command.fork(*words, patch=DIES_IN_A_WRITE)
    died.communicate()
    assert died.returncode == -signal.SIGKILL
    *whole, torn = files.results_path.read_bytes().split(b"\n")
    assert (len(whole), len(torn)) == (5, 100)
    sent = len(endpoint.received)
    gone_on = command(*words)
    (aside,) = files.results_path.parent.glob("results.jsonl.torn-*")
    assert aside.read_bytes().rstrip(b"\n") == torn
    assert "100 bytes" in gone_on.err
    assert aside.name in gone_on.err
    assert files.results_path.read_bytes().split(b"\n")[:5] == whole
    files.assert_summary_is_a_fold(gone_on.json, 20)
    assert len(endpoint.received) - sent == 15


async def test_fault_03_power_loss_takes_at_most_one_sync_interval_of_answers(make_job):
    """The disk forgets what was not synced. How much of that, and when the power goes, differs from try to try."""
    lost_ever = 0
    for seed in range(60):
        random = Random(seed)
        job, clock = make_job(12), ManualClock()
        dies_at = random.randrange(2, 40)

        def fault(_what, number, dies_at=dies_at):
            if number == dies_at:
                raise Crash

        disk = FaultyDisk(fault)
        endpoint = ScriptedEndpoint(clock=clock, latency_s=random.uniform(0.01, 0.3))
        if not await dies(job.run(disk, clock=clock, endpoint=endpoint)):
            continue
        died_at = clock.time()
        written = {each.outcome.index: each.outcome.finished_at for each in read_output(job.output)}
        disk.lose_power(job.output.parent, random)
        kept = set(indexes(job))
        lost = {index: at for index, at in written.items() if index not in kept}
        assert all(died_at - at <= SYNC_INTERVAL_S + 1e-6 for at in lost.values())
        lost_ever += len(lost)
        assert_done(job, await job.run(), 12)
        assert job.billed <= 12 + len(lost) + CONCURRENCY + 1
    assert lost_ever > 20


async def dies(run):
    """Whether the run was killed; anything else that ends it is raised."""
    try:
        await run
    except Crash:
        return True
    except BaseExceptionGroup as group:
        if group.split(Crash)[1] is not None:
            raise
        return True
    return False


# --- every step of the disk ----------------------------------------------------------------------------------------


class KthStep:
    """The fault `kind` at the k-th of the steps it can hit; `hit` tells whether there were so many."""

    def __init__(self, kind, k):
        self.kind, self.k = kind, k
        self.met = -1
        self.hit = False
        self.after: list[str] = []

    def __call__(self, what, _number):
        if self.hit:
            self.after.append(what)
            if self.kind == "ENOSPC after a part" and len(self.after) == 1:
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            return None
        if what not in HITS[self.kind]:
            return None
        self.met += 1
        self.hit = self.met == self.k
        return self.fail(what) if self.hit else None

    def fail(self, what):
        if self.kind in ("ENOSPC after a part", "a short write"):
            return 40
        if self.kind == "Crash":
            if what == "write":
                return -41
            raise Crash
        number = {"ENOSPC": ENOSPC, "EDQUOT": EDQUOT}.get(self.kind, EIO)
        raise OSError(number, os.strerror(number))


EVERY_STEP = {"open", "write", "sync", "truncate", "rename", "remove", "sync_folder"}
HITS = {
    "ENOSPC": {"open", "write", "rename"},
    "ENOSPC after a part": {"write"},
    "EDQUOT": {"write"},
    "EIO": EVERY_STEP,
    "a short write": {"write"},
    "a failing fsync": {"sync"},
    "a failing rename": {"rename"},
    "Crash": EVERY_STEP,
}


@pytest.mark.parametrize("kind", HITS)
async def test_fault_08_to_11_whichever_step_of_the_disk_fails_nothing_is_lost_and_nothing_stands_twice(
    kind, make_job
):
    """For the first step, the second, …, until a run comes through untouched."""
    for k in count():
        job, fault = make_job(REQUESTS), KthStep(kind, k)
        began_torn = k % 2 == 1
        if began_torn:  # so that the steps of mending are among those that fail
            line = encode(OutputLine(Outcome(0, "request-0", reply(), "t", 1, 0.1, EPOCH), "job"))
            job.output.write_bytes(line[:-20])
        with suppress(OutputUnwritable, UsageError):  # which say it; JobDamaged would not do
            await dies(job.run(FaultyDisk(fault)))
        # Reading fails where a line is broken, but for the last.
        assert len(indexes(job)) <= REQUESTS
        assert_done(job, await job.run())
        assert job.billed <= REQUESTS + CONCURRENCY + 1, "more was asked again than was in flight"
        if not fault.hit and not began_torn:
            break
    assert k > {"sync": 5, "rename": 2}.get(min(HITS[kind]), 5)


async def test_fault_08_a_first_line_that_finds_no_room_keeps_the_header_of_its_run(make_job):
    job, writes = make_job(REQUESTS), count()

    def fault(what, _number):
        if what == "write" and next(writes) < 2:
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    assert_done(job, await job.run(FaultyDisk(fault)))
    headers = [line.run is not None for line in read_output(job.output)]
    assert headers == [True] + [False] * (len(headers) - 1)


async def test_fault_10_a_short_write_is_finished(make_job):
    job = make_job(REQUESTS)
    disk = FaultyDisk(lambda what, number: 1 + number % 50 if what == "write" else None)
    assert_done(job, await job.run(disk))
    assert not list(job.output.parent.glob("*.torn-*"))


def test_fault_10_a_short_write_that_cannot_be_finished_is_rolled_back(tmp_path):
    full = False

    def fault(what, _number):
        if what == "write" and full:
            # A part of the line, and then no more.
            disk.fault = no_room
            return 30
        return None

    def no_room(what, _number):
        if what == "write":
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    disk = FaultyDisk(fault)
    store = Store.open(tmp_path / "results.jsonl", disk=disk)
    answered = [OutputLine(Outcome(n, f"{n}", reply(), "t", 1, 0.1, EPOCH), "job") for n in range(3)]
    store.append(answered[0])
    whole = store.paths.results.read_bytes()
    full = True
    with pytest.raises(OutputUnwritable, match="no room"):
        store.append(answered[1])
    assert store.paths.results.read_bytes() == whole
    disk.fault = lambda _what, _number: None
    store.append(answered[2])
    store.close()
    assert [each.outcome.index for each in read_output(store.paths.results)] == [0, 2]


@pytest.mark.parametrize("what", ["write", "sync"])
async def test_fault_11_eio_or_a_failing_fsync_stops_at_once_and_never_syncs_again(what, make_job):
    job, clock = make_job(40), ManualClock()
    steps: list[str] = []
    begun = 0

    def fault(step, _number):
        nonlocal begun
        broken = "broken" in steps
        steps.append(step)
        if broken or step != what or steps.count(step) < 3:
            return
        steps.append("broken")
        begun = len(endpoint.attempts)
        raise OSError(EIO, os.strerror(EIO))

    endpoint = ScriptedEndpoint(clock=clock, latency_s=0.3)
    with pytest.raises(OutputUnwritable, match="Input/output error"):
        await job.run(FaultyDisk(fault), clock=clock, endpoint=endpoint)
    after = steps[steps.index("broken") + 1 :]
    assert "sync" not in after
    assert "write" not in after
    assert len(endpoint.attempts) == begun < 40
    assert_done(job, await job.run(), 40)


# --- damaged, cut and forgotten ------------------------------------------------------------------------------------


@pytest.fixture
def half_done(command, provider, files, write_requests):
    """A job of 40 requests of which 20 are done; gives the words of the command that goes on."""
    words = ["run", write_requests(40), "-o", files.results_path, "--base-url", provider.base_url]
    command(*words, "--limit", 20)
    return [*words, "--json"]


def content(files):
    """Name and bytes of all there is."""
    return {path.name: path.read_bytes() for path in files.results_path.parent.iterdir()}


def test_fault_04_a_flipped_bit_in_mid_file_is_refused_with_its_offset_and_a_repair_is_offered(
    command, provider, files, half_done
):
    lines = files.results_path.read_bytes().splitlines(keepends=True)
    offset = sum(map(len, lines[:9]))
    damaged = bytearray(b"".join(lines))
    damaged[offset + 200] ^= 0x10
    files.results_path.write_bytes(damaged)
    files.checkpoint_path.unlink()
    before, received = content(files), provider.stats.received
    refused = command(*half_done, code=4)
    assert f"byte {offset:,}" in refused.err
    assert "batchkit repair" in refused.err
    assert provider.stats.received == received
    assert content(files) == before


def test_fault_04_a_flipped_bit_at_every_position_of_a_line_is_found():
    """By its checksum's bytes, without a reading of JSON or numbers: each bit of each byte, the seal's own included."""
    line = encode(OutputLine(Outcome(3, "r3", reply("Ünïcode"), "t", 2, 0.1, EPOCH), "job"))[:-1]
    assert is_whole(line)
    for place in range(len(line)):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[place] ^= 1 << bit
            assert not is_whole(bytes(flipped)), (place, bit)


async def test_fault_04_a_flipped_bit_at_every_position_of_a_file_is_refused_with_the_offset_of_its_line(
    make_job,
):
    job = make_job(3)
    await job.run()
    job.output.with_name("results.checkpoint.json").unlink()
    data = job.output.read_bytes()
    starts = [0, *(at + 1 for at, byte in enumerate(data) if byte == 10)]
    # Without the last newline the last line would be a torn one, which is no damage.
    for place in range(len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        job.output.write_bytes(flipped)
        offset = max(start for start in starts if start <= place)
        with pytest.raises(JobDamaged, match=f"byte {offset:,}:"):
            await job.run()
        assert job.output.read_bytes() == flipped


def cut_at(data, cut):
    """The whole lines of a file that was cut there, and what stands behind them."""
    # A line that lacks only its newline is whole.
    kept = data[:cut] if data[cut : cut + 1] == b"\n" else data[: data.rfind(b"\n", 0, cut) + 1]
    return kept, data[len(kept) : cut]


def put_aside(job):
    return [path.read_bytes() for path in job.output.parent.glob("*.torn-*")]


async def test_fault_02_a_results_file_cut_at_every_byte_is_recovered_right(make_job):
    """Whole lines before the cut are kept and the torn tail is moved aside; that alone is what a run begins with."""
    job = make_job(2)
    await job.run()
    identity, data = Source(str(job.input)).identify(), job.output.read_bytes()
    for cut in range(len(data)):
        for path in job.output.parent.iterdir():
            path.unlink()
        job.output.write_bytes(data[:cut])
        store = Store.open(job.output)
        state = load_for_run(store, identity)
        store.close()
        kept, tail = cut_at(data, cut)
        lines = kept.splitlines()
        assert job.output.read_bytes() == b"".join(line + b"\n" for line in lines)
        assert put_aside(job) == ([tail + b"\n"] if tail else [])
        assert [*state.done.intervals()] == ([(0, len(lines))] if lines else [])
        assert state.tally.succeeded == len(lines)


async def test_fault_02_a_job_whose_results_were_cut_asks_again_for_what_is_no_whole_line(make_job):
    """At places all over the file, and at all around the ends of its lines."""
    job = make_job(2)
    await job.run()
    checkpoint = job.output.with_name("results.checkpoint.json")
    data = job.output.read_bytes()
    ends = [at for at, byte in enumerate(data) if byte == 10]
    cuts = {*range(0, len(data), 29), *(end + by for end in ends for by in (-2, -1, 0, 1, 2))}
    for cut in sorted(cuts):
        for path in job.output.parent.iterdir():
            path.unlink()
        job.output.write_bytes(data[:cut])
        before = job.billed
        summary = await job.run()
        kept, tail = cut_at(data, cut)
        assert job.output.read_bytes().startswith(kept)
        assert job.billed - before == 2 - len(kept.splitlines())
        assert_done(job, summary, 2)
        assert put_aside(job) == ([tail + b"\n"] if tail else [])
        assert checkpoint.exists()


def test_fault_05_output_cut_short_by_hand_is_refused_and_a_rescan_is_offered(
    command, provider, files, half_done
):
    lines = files.results_path.read_bytes().splitlines(keepends=True)
    files.results_path.write_bytes(b"".join(lines[:15]))
    before, received = content(files), provider.stats.received
    assert "--rescan" in command(*half_done, code=4).err
    assert content(files) == before
    assert provider.stats.received == received
    files.assert_summary_is_a_fold(command(*half_done, "--rescan").json, 40)
    assert provider.stats.received == received + 25


@pytest.mark.parametrize("state", ["missing", "broken", "cut", "of another version"])
def test_fault_06_a_checkpoint_that_is_missing_or_broken_is_rebuilt_by_a_scan_with_a_warning(
    state, command, provider, files, half_done
):
    data, path = files.checkpoint_path.read_bytes(), files.checkpoint_path
    match state:
        case "missing":
            path.unlink()
        case "broken":
            path.write_bytes(data.replace(b'"version"', b'"Version"'))
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case _:
            path.write_bytes(data.replace(b'"version":3', b'"version":9'))
    received = provider.stats.received
    gone_on = command(*half_done)
    files.assert_summary_is_a_fold(gone_on.json, 40)
    assert provider.stats.received == received + 20
    assert "checkpoint" in gone_on.err
    assert path.exists()


def test_fault_07_a_checkpoint_ahead_of_the_output_is_refused(command, provider, files, half_done):
    with files.results_path.open("r+b") as stream:
        stream.truncate(files.results_path.stat().st_size - 1)
    before, received = content(files), provider.stats.received
    assert "shorter than its checkpoint says" in command(*half_done, code=4).err
    assert content(files) == before
    assert provider.stats.received == received


# --- full and gone -------------------------------------------------------------------------------------------------


def lines_in(stream, word):
    """What is said on a stream up to the first line with `word` in it."""
    said = []
    while not said or word not in said[-1]:
        said.append(stream.readline())
        assert said[-1], said
    return said


ROOM = 30_000
NO_ROOM = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({ROOM}, resource.RLIM_INFINITY))"


def make_room(run):
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def full(command, record, files, write_requests):
    """A run of 200 requests, 8 at a time, whose results have met the end of the room there is: process, endpoint, words."""
    endpoint = record()
    words = ["run", write_requests(200), "-o", files.results_path, "--base-url", endpoint.base_url]
    words += ["--concurrency", 8, "--progress", "log", "--json"]
    run = command.fork(*words, patch=NO_ROOM)
    lines_in(run.stderr, "no room")
    return run, endpoint, words


def test_fault_08_efbig_holds_finished_lines_in_memory_admits_nothing_new_and_goes_on_when_there_is_room(
    full, files, until
):
    run, endpoint, _ = full
    assert 10 < files.count() < 200
    assert files.results_path.stat().st_size <= ROOM
    assert run.poll() is None
    assert len(endpoint.received) <= files.count() + 8
    make_room(run)
    said = lines_in(run.stderr, "room again")
    assert said
    summary = json.loads(run.communicate()[0])
    assert run.returncode == 0
    files.assert_summary_is_a_fold(summary, 200)
    assert len(endpoint.received) == 200


def test_fault_08_a_full_disk_holds_finished_lines_in_memory_and_the_run_goes_on_when_there_is_room(
    command, record, files, write_requests, small_disk
):
    disk = small_disk(1 << 20)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 15 * 4096))
    endpoint = record()
    words = ["run", write_requests(200), "-o", disk / "results.jsonl", "--base-url", endpoint.base_url]
    run = command.fork(*words, "--concurrency", 8, "--progress", "log", "--json")
    lines_in(run.stderr, "no room")
    held = type(files)(disk / "results.jsonl")
    assert 10 < held.count() < 200
    assert len(endpoint.received) <= held.count() + 8
    ballast.unlink()
    lines_in(run.stderr, "room again")
    summary = json.loads(run.communicate()[0])
    assert run.returncode == 0
    held.assert_summary_is_a_fold(summary, 200)
    assert len(endpoint.received) == 200


async def test_fault_08_a_run_that_is_killed_while_it_holds_answers_asks_for_them_again(make_job):
    """There is room for a checkpoint but for no more lines, as under a limit of file size: it must not pass over them."""
    job, clock = make_job(40), ManualClock()

    def fault(what, _number):
        if clock.now() > 30:
            raise Crash
        if what == "write" and clock.now() > 2 and disk.writes_line:
            raise OSError(EFBIG, os.strerror(EFBIG))

    class Narrow(FaultyDisk):
        writes_line = False

        def write(self, descriptor, data):
            self.writes_line = data.startswith(b'{"id":"batch_req_')
            return super().write(descriptor, data)

    disk = Narrow(fault)
    assert await dies(job.run(disk, clock=clock, endpoint=ScriptedEndpoint(clock=clock, latency_s=0.3)))
    stood = indexes(job)
    assert 10 < len(stood) < 40
    assert_done(job, await job.run(), 40)
    assert job.billed <= 40 + CONCURRENCY


def test_fault_09_disk_full_then_sigterm_says_which_indexes_are_not_on_disk(command, full, files):
    run, endpoint, words = full
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate()
    assert run.returncode == 4
    lost = sorted(set(range(len(endpoint.received))) - set(files.indexes))
    assert lost
    named = said.rpartition("(index ")[2].partition(")")[0]
    assert sorted(map(int, named.split(", "))) == lost
    files.assert_summary_is_a_fold(command(*words).json, 200)
    assert len(endpoint.received) == 200 + len(lost)


EIO_AT_FSYNC = """
import errno, os
from batchkit import store

class Broken(store.Disk):
    syncs = 0

    def sync(self, descriptor):
        Broken.syncs += 1
        print("fsync", Broken.syncs, flush=True)
        if Broken.syncs > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(descriptor)

store.Disk = Broken
"""


def test_fault_11_a_failing_fsync_ends_the_command_with_4_and_its_cause(
    command, simulate, files, write_requests
):
    simulator = simulate(speed=10)
    words = ["run", write_requests(300), "-o", files.results_path, "--base-url", simulator.base_url]
    words += ["--concurrency", 8]
    died = command.fork(*words, patch=EIO_AT_FSYNC)
    out, err = died.communicate()
    assert died.returncode == 4
    assert "Input/output error" in err
    assert "Traceback" not in err
    assert out.count("fsync") == 2
    assert simulator.stats.received < 300
    files.assert_summary_is_a_fold(command(*words, "--concurrency", 100, "--json").json, 300)


def test_fault_12_output_folder_removed_and_the_run_warns_and_stops(
    command, record, write_requests, tmp_path, until
):
    endpoint, output = record(most=7), tmp_path / "out" / "results.jsonl"
    words = ["run", write_requests(400), "-o", output, "--base-url", endpoint.base_url, "--concurrency", 13]
    run = command.fork(*words, "--json")
    until(lambda: len(endpoint.received) == 20, run)
    shutil.rmtree(output.parent)
    endpoint.release()
    _, said = run.communicate()
    assert run.returncode == 4
    # Whichever of the two is looked at first while the folder goes.
    assert re.search(rf"{re.escape(str(output.parent))}/results(\.errors)?\.jsonl was removed", said)
    assert "Traceback" not in said


# --- outputs that cannot be ----------------------------------------------------------------------------------------


def test_fault_13_an_output_that_is_a_fifo_dev_full_read_only_or_the_input_is_refused_before_the_first_request(
    command, record, write_requests, tmp_path, read_only
):
    endpoint, requests = record(), write_requests(3)
    os.mkfifo(tmp_path / "fifo.jsonl")
    before = requests.read_bytes()
    for output, said in (
        (tmp_path / "fifo.jsonl", "not a regular file"),
        ("/dev/full", "not a regular file"),
        (read_only / "results.jsonl", "cannot write"),
        (requests, "same file"),
    ):
        refused = command("run", requests, "-o", output, "--base-url", endpoint.base_url, code=2)
        assert said in refused.err
        assert "Traceback" not in refused.err
    assert endpoint.received == []
    assert requests.read_bytes() == before


def test_fault_14_a_second_process_on_the_job_is_refused_with_the_holders_pid(command, held, files):
    run, endpoint, words = held
    before = content(files)
    assert f"process {run.pid}" in command(*words, code=4).err
    assert f"process {run.pid}" in command(*words, "--overwrite", code=4).err
    assert content(files) == before
    endpoint.release()
    files.assert_summary_is_a_fold(json.loads(run.communicate()[0]), 40)


def test_fault_14_two_jobs_on_one_output_are_refused_while_the_first_runs_and_after(
    command, held, files, write_requests
):
    run, endpoint, words = held
    other = [words[0], write_requests(50, "other.jsonl"), *words[2:]]
    assert f"process {run.pid}" in command(*other, code=4).err
    endpoint.release()
    summary = json.loads(run.communicate()[0])
    files.assert_summary_is_a_fold(summary, 40)
    after, received = files.results_path.read_bytes(), len(endpoint.received)
    command(*other, code=4)
    command(*words, "--job-id", "another", code=4)
    assert files.results_path.read_bytes() == after
    assert len(endpoint.received) == received


# --- another input, other words ------------------------------------------------------------------------------------


def test_fault_15_an_edited_input_is_refused_with_the_first_line_that_differs(
    command, provider, files, half_done
):
    requests, received = half_done[1], provider.stats.received
    edited = requests.read_bytes().replace(b"What is 7?", b"What is 8?").replace(b"What is 9?", b"What is 8?")
    requests.write_bytes(edited)
    os.utime(requests, ns=(0, 0))
    before = content(files)
    assert "line 8 " in command(*half_done, code=4).err
    assert content(files) == before
    assert provider.stats.received == received


def test_fault_16_an_input_longer_than_before_goes_on_only_with_allow_growth(
    command, provider, files, half_done, line
):
    command(*half_done)
    with half_done[1].open("ab") as stream:
        stream.write(line(40) + line(41))
    received = provider.stats.received
    assert "--allow-growth" in command(*half_done, code=4).err
    assert provider.stats.received == received
    files.assert_summary_is_a_fold(command(*half_done, "--allow-growth").json, 42)
    assert provider.stats.received == received + 2


def test_fault_17_resumed_with_another_model_endpoint_or_default_is_refused_naming_the_difference_unless_forced(
    command, provider, simulate, files, half_done
):
    received, elsewhere = provider.stats.received, simulate()
    at = half_done.index("--base-url") + 1
    moved = [*half_done[:at], elsewhere.base_url, *half_done[at + 1 :]]
    for words, named in (
        ([*half_done, "--model", "gpt-4o"], "gpt-4o"),
        ([*half_done, "--set", "temperature=0.5"], "0.5"),
        (moved, elsewhere.base_url),
    ):
        refused = command(*words, code=4)
        assert named in refused.err
        assert "--force" in refused.err
    assert (provider.stats.received, elsewhere.stats.received) == (received, 0)
    files.assert_summary_is_a_fold(command(*moved, "--model", "gpt-4o", "--force").json, 40)
    assert elsewhere.stats.received == 20


def test_fault_17_a_job_in_which_nothing_was_written_may_go_on_with_another_endpoint_and_another_name(
    command, simulate, files, write_requests
):
    refusing, other = simulate(refuse_key=True), simulate()
    words = ["run", write_requests(5), "-o", files.results_path, "--json"]
    command(*words, "--base-url", refusing.base_url, "--model", "gpt-4", "--job-id", "first", code=3)
    summary = command(*words, "--base-url", other.base_url, "--job-id", "second").json
    files.assert_summary_is_a_fold(summary, 5)
    assert summary["job_id"] == "second"
