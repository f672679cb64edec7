"""A job's state, from its files: with a checkpoint or without, the same."""

from __future__ import annotations

import signal
import subprocess
from array import array
from random import Random
from threading import Event
from zlib import crc32

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from batchkit.accounts import build_summary
from batchkit.audit import Audit
from batchkit.errors import JobDamaged, JobMismatch
from batchkit.formats.checkpoint import Checkpoint, encode_checkpoint
from batchkit.formats.results import OutputLine, encode
from batchkit.outputs import JobPaths, scan_output
from batchkit.records import Failure, FailureKind, Line, Outcome, Reply, RunHeader, Usage
from batchkit.rules.pricing import PriceList
from batchkit.rules.tally import Tally
from batchkit.rules.tally_state import state_of
from batchkit.source import InputIdentity
from batchkit.state import JobState, load_for_run, read_state, reopen_failures
from batchkit.store import Store

INPUT = InputIdentity("/in.jsonl", 1000, 5)
REPLY = Reply(
    200,
    "r",
    b'{"model":"m","choices":[{"message":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}',
    "m",
    Usage(3, 2, 5),
    "stop",
)
FAILED = Failure(FailureKind.TIMEOUT, "timeout", "too slow")


def raw(index):
    return b'{"line":%d}' % index


def line(index, answer=REPLY, *, at=None, job="job", run=None):
    finished_at = 1000.0 + index if at is None else at
    outcome = Outcome(
        index,
        f"r{index}",
        answer,
        "t",
        1 + index % 2,
        0.5,
        finished_at,
        {"timeout": 1} if index % 2 else {},
        crc32(raw(index)),
    )
    return OutputLine(outcome, job, run)


def header(at, **more):
    return RunHeader(at, "http://x/v1", {"model": "m"}, INPUT.path, INPUT.size, **more)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "results.jsonl"


def load_from(store, identity, *, rescan=False, retry_failed=False, **more):
    state = load_for_run(store, identity, rescan=rescan, **more)
    return (reopen_failures(store, identity) if retry_failed else None) or state


class Job:
    """Runs that append, as the program does: a header in each run's first line of each file."""

    def __init__(self, output):
        self.output = output
        self.clock = 1000.0
        self.begin()

    def begin(self, *, retry_failed=False):
        self.store = Store.open(self.output)
        self.state = load_from(self.store, INPUT, retry_failed=retry_failed)
        self.clock += 10
        self.run = header(self.clock)
        self.state.tally.begin_run(self.run)
        self.state.run = self.run
        self.headed = set()

    def finish(self, index, answer=REPLY):
        self.clock += 1
        written = line(index, answer, at=self.clock, run=None if answer.status in self.headed else self.run)
        self.headed.add(answer.status)
        self.store.append(written)
        assert self.state.done.add(index)
        self.state.tally.add(written.outcome)

    def save(self, **more):
        state = self.state
        results, errors = self.store.sizes
        fields = {
            "job_id": "job",
            "results_bytes": results,
            "errors_bytes": errors,
            "superseded": state.superseded,
            "done": tuple(state.done.intervals()),
            "tally": state_of(state.tally),
            "run": self.run,
            "input_index": 0,
            "input_offset": 0,
            "input_size": INPUT.size,
            "input_mtime_ns": INPUT.mtime_ns,
            "total": 20,
            "limit": None,
            "status": "running",
            "stop_reason": None,
            **more,
        }
        self.store.replace(self.store.paths.checkpoint, encode_checkpoint(Checkpoint(**fields)))

    def end(self):
        self.store.close()


def load(output, *, identity=INPUT, rescan=False, retry_failed=False, **more):
    store = Store.open(output)
    try:
        return load_from(store, identity, rescan=rescan, retry_failed=retry_failed, **more), store.notices
    finally:
        store.close()


def figures(state):
    return state.job_id, state_of(state.tally), list(state.done.intervals()), state.run


steps = st.lists(
    st.sampled_from(["reply", "reply", "failure", "save", "restart", "retry failed"]), max_size=25
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_a_state_rebuilt_from_the_lines_is_the_one_with_a_checkpoint_and_the_one_in_memory(
    tmp_path_factory, taken
):
    output = tmp_path_factory.mktemp("job") / "results.jsonl"
    job, index, wrote = Job(output), 0, False
    for step in taken:
        if step == "save":
            job.save()
        elif step in ("restart", "retry failed"):
            job.end()
            job.begin(retry_failed=step == "retry failed")
        else:
            job.finish(index, REPLY if step == "reply" else FAILED)
            index, wrote = index + 1, True
    job.end()
    live = job.state
    with_checkpoint, notices = load(output)
    status = read_state(output)
    JobPaths(output).checkpoint.unlink(missing_ok=True)
    without, _ = load(output)
    assert all("there is no checkpoint" in notice for notice in notices)
    assert live.tally == without.tally == with_checkpoint.tally == status.tally == read_state(output).tally
    for state in (without, with_checkpoint, status):
        assert list(state.done.intervals()) == list(live.done.intervals())
        if wrote:
            assert state.job_id == "job"


@given(st.lists(st.tuples(st.floats(1000, 1100), st.none() | st.integers(1000, 1100), st.booleans()), max_size=150),
       st.booleans())  # fmt: skip
def test_lines_are_added_up_as_if_one_after_the_other(told, superseded):
    lines = [
        line(index, FAILED if failed else REPLY, at=at, run=None if start is None else header(float(start)))
        for index, (at, start, failed) in enumerate(told)
    ]
    singly = Tally()
    for each in lines:
        if each.run is not None:
            singly.begin_run(each.run)
        (singly.add_superseded if superseded else singly.add)(each.outcome)
    state = JobState()
    state.fold(iter(lines), superseded=superseded)
    assert state.tally == singly
    assert len(state.done) == (0 if superseded else len(lines))


def three_lines(output):
    job = Job(output)
    job.finish(0)
    job.finish(1, FAILED)
    job.save()
    job.finish(2)
    job.end()
    return job


def test_a_checkpoint_lets_the_fold_begin_further_on_and_a_large_output_is_checked_beside_the_run(output):
    three_lines(output)
    data = output.read_bytes()
    output.write_bytes(b"?" + data[1:])  # what a checkpoint stands for is not read before the run
    state, _ = load(output, at_once_bytes=0)
    assert (state.tally.succeeded, state.tally.failed, state.total) == (2, 1, 20)
    assert state.audit is not None
    with pytest.raises(JobDamaged, match="at byte 0"):
        state.audit.read()
    with pytest.raises(JobDamaged):
        load(output, rescan=True)


def test_a_small_output_is_checked_before_the_run_also_with_a_checkpoint(output):
    three_lines(output)
    output.write_bytes(b"?" + output.read_bytes()[1:])
    with pytest.raises(JobDamaged, match="at byte 0"):
        load(output)


def test_a_large_output_without_a_checkpoint_is_scanned_first_and_added_up_beside_the_run(output):
    at_once = three_lines(output).state
    JobPaths(output).checkpoint.unlink()
    state, _ = load(output, at_once_bytes=0)
    assert list(state.done.intervals()) == list(at_once.done.intervals())
    assert (state.job_id, state.run) == ("job", at_once.run)
    assert state.unadded == state.ended == (2, 1)
    assert state.tally.succeeded == 0
    assert state.audit is not None
    earlier = state.audit.read()
    assert earlier is not None
    state.tally.merge(earlier)
    assert state.tally == at_once.tally


async def test_an_audit_in_a_process_of_its_own_finds_what_one_here_finds(output):
    three_lines(output)
    sizes = output.stat().st_size, JobPaths(output).errors.stat().st_size
    audit = Audit(output, *sizes, add_up=True)
    assert await audit.run() == audit.read()
    assert await Audit(output, *sizes, add_up=False).run() is None
    output.write_bytes(b"?" + output.read_bytes()[1:])
    with pytest.raises(JobDamaged, match="at byte 0"):
        await audit.run()


async def test_where_no_process_can_be_started_an_audit_is_made_here(output, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    three_lines(output)
    audit = Audit(output, output.stat().st_size, JobPaths(output).errors.stat().st_size, add_up=True)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert await audit.run() == audit.read()


async def test_an_audit_that_is_made_here_ends_when_nobody_waits_for_it_any_more(output, monkeypatch):
    """A process that was told to leave would stay for as long as its threads."""
    began, ended = Event(), Event()

    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def read_for_ever(*_):
        try:
            while True:
                began.set()
                yield line(0)
        finally:
            ended.set()

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("batchkit.audit.read_output", read_for_ever)
    async with anyio.create_task_group() as group:
        group.start_soon(Audit(output, 1, 1, add_up=True).run)
        await anyio.to_thread.run_sync(began.wait)
        group.cancel_scope.cancel()
    assert ended.wait(10)


@pytest.mark.parametrize("piece_bytes", [1, 3000, 1 << 20])
def test_a_scan_of_lines_as_requests_end_marks_and_remembers_each(output, monkeypatch, piece_bytes):
    monkeypatch.setattr("batchkit.scanning._PIECE_BYTES", piece_bytes)
    indexes = list(range(200))
    Random(1).shuffle(indexes)
    results, failures = indexes[:150], indexes[160:]
    output.write_bytes(b"".join(encode(line(index)) for index in results))
    JobPaths(output).errors.write_bytes(b"".join(encode(line(index, FAILED)) for index in failures))
    state, _ = load(output, at_once_bytes=0)
    assert state.unadded == (150, 40)
    assert [index for index in range(200) if index not in state.done] == sorted(indexes[150:160])
    for index in results + failures:
        assert state.is_unchanged(Line(index, 0, raw(index)))
        with pytest.raises(JobMismatch):
            state.is_unchanged(Line(index, 0, b"edited"))


def test_lines_that_changed_are_found_among_many_and_lines_that_are_not_done_may_be_anything(output):
    output.write_bytes(b"".join(encode(line(index)) for index in (0, 1, 2, 5)))
    state, _ = load(output, at_once_bytes=0)
    answered = array("I", [crc32(raw(index)) for index in range(6)])
    state.refuse_changed(0, answered)
    open_edited = array("I", [*answered[:3], 7, 7, answered[5], *range(1, 1000)])
    for index in range(7):
        state.refuse_changed(index, open_edited[index:])
    for index in (0, 1, 2, 5):
        edited = array("I", answered)
        edited[index] = 0
        for start in range(7):
            if start > index:
                state.refuse_changed(start, edited[start:])
                continue
            with pytest.raises(JobMismatch, match=f"line {index + 1} of the input is not the one"):
                state.refuse_changed(start, edited[start:])


def test_a_scan_tells_how_far_it_is(output, monkeypatch):
    monkeypatch.setattr("batchkit.state._TOLD_BYTES", 1)
    monkeypatch.setattr("batchkit.scanning._PIECE_BYTES", 1)
    three_lines(output)
    told = []
    load(output, rescan=True, at_once_bytes=0, tell=told.append)
    assert len(told) == 3
    assert "there is no checkpoint to go by: 0.0 of 0.0 GB of results.jsonl read" in told


def test_a_scan_that_finds_a_request_twice_ends_the_process_beside_it(output, monkeypatch):
    monkeypatch.setattr("batchkit.scanning._WORTH_HELP_BYTES", 0)
    monkeypatch.setattr("batchkit.scanning._PIECE_BYTES", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    silent = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    monkeypatch.setattr("batchkit.scanning._start", lambda *_: silent)
    output.write_bytes(encode(line(0)) * 2)
    with silent.stdin, pytest.raises(JobDamaged, match="two lines for request 0") as doubled:
        load(output, at_once_bytes=0)
    # Also while someone holds the error, and with it the frames it came through.
    assert doubled.traceback
    assert silent.returncode == -signal.SIGKILL


def test_a_scan_names_the_line_that_is_damaged(output):
    three_lines(output)
    data = bytearray(output.read_bytes())
    second = data.index(b"\n") + 1
    data[second + 40] ^= 1
    output.write_bytes(data)
    with pytest.raises(JobDamaged, match=f"at byte {second}:"):
        list(scan_output(output))


@pytest.mark.parametrize("data", [b"", b"{}", b"garbage", b'{"version":1,"crc32":"00000000"}\n'])
def test_a_broken_checkpoint_is_told_and_rebuilt(output, data):
    expected = three_lines(output).state
    JobPaths(output).checkpoint.write_bytes(data)
    state, notices = load(output)
    assert state.tally == expected.tally
    assert len(notices) == 1
    assert "checkpoint cannot be used" in notices[0]
    assert read_state(output).tally == expected.tally


def test_a_whole_checkpoint_with_impossible_contents_is_told_and_rebuilt(output):
    job = Job(output)
    job.finish(0)
    for nonsense in ({"done": ((5, 2),)}, {"tally": {}}, {"done": ((0, 2), (1, 3))}):
        job.save(**nonsense)
        job.end()
        state, notices = load(output)
        assert state.tally.succeeded == 1
        assert "checkpoint cannot be used" in notices[0]


@pytest.mark.parametrize("log", ["results", "errors"])
def test_a_checkpoint_ahead_of_the_output_is_refused_unless_rescanned(output, log):
    three_lines(output)
    path = getattr(JobPaths(output), log)
    path.write_bytes(b"")
    with pytest.raises(JobDamaged, match=rf"{path} is shorter than its checkpoint says.*--rescan"):
        load(output)
    state, _ = load(output, rescan=True)
    assert (state.tally.succeeded, state.tally.failed) == ((0, 1) if log == "results" else (2, 0))


def test_the_status_of_a_cut_output_is_what_its_lines_say(output):
    job = Job(output)
    for index in range(3):
        job.finish(index)
    job.save(total=3, status="completed")
    job.end()
    assert (read_state(output).status, read_state(output).tally.succeeded) == ("completed", 3)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    state = read_state(output)
    assert (state.status, state.tally.succeeded, list(state.done.intervals())) == ("interrupted", 2, [(0, 2)])


def test_a_checkpoint_of_another_input_is_left_aside_so_that_lines_are_compared(output):
    three_lines(output)
    assert load(output)[0].checksums is None
    for other in (InputIdentity(INPUT.path, 1001, 5), InputIdentity(INPUT.path, 1000, 6), InputIdentity("-")):
        assert load(output, identity=other)[0].checksums is not None


def test_an_edited_line_is_refused_with_its_number(output):
    three_lines(output)
    state, _ = load(output, identity=InputIdentity("-"))
    assert state.is_unchanged(Line(2, 0, raw(2)))
    assert not state.is_unchanged(Line(3, 0, b"anything"))
    for edited in (b"edited", None):
        with pytest.raises(JobMismatch, match=r"^line 3 of the input is not the one that was answered"):
            state.is_unchanged(Line(2, 0, edited))


def test_a_line_over_the_cap_that_failed_is_unchanged_when_it_is_still_too_long(output):
    too_long = Outcome(0, "line-0", Failure(FailureKind.BAD_LINE, "c", "m"), "t", 0, 0.0, 1.0)
    JobPaths(output).errors.write_bytes(encode(OutputLine(too_long, "job")))
    state, _ = load(output)
    assert state.is_unchanged(Line(0, 0, None))


@pytest.mark.parametrize("second", [REPLY, FAILED])
def test_an_index_that_stands_twice_is_refused(output, second):
    paths = JobPaths(output)
    paths.results.write_bytes(encode(line(0)) + encode(line(4)))
    log = paths.results if second is REPLY else paths.errors
    with log.open("ab") as stream:
        stream.write(encode(line(4, second)))
    with pytest.raises(JobDamaged, match="two lines for request 4"):
        load(output)
    with pytest.raises(JobDamaged, match="two lines for request 4"):
        load(output, at_once_bytes=0)
    with pytest.raises(JobDamaged, match="two lines for request 4"):
        read_state(output)


@pytest.mark.parametrize("answer", [REPLY, FAILED])
def test_two_jobs_in_one_output_are_refused(output, answer):
    paths = JobPaths(output)
    paths.results.write_bytes(encode(line(0, job="one")))
    with (paths.results if answer is REPLY else paths.errors).open("ab") as stream:
        stream.write(encode(line(1, answer, job="two")))
    with pytest.raises(JobDamaged, match="mixes the jobs 'one' and 'two'"):
        load(output)


def test_superseded_failures_are_in_the_totals_but_are_no_requests(output):
    job = Job(output)
    job.finish(0)
    job.finish(1, FAILED)
    job.save()
    job.end()
    state, notices = load(output, retry_failed=True)
    assert (state.tally.succeeded, state.tally.failed, state.tally.attempts) == (1, 0, 3)
    assert state.tally.by_reason == {"timeout": 1}
    assert 1 not in state.done
    assert state.superseded == 1
    assert "results.errors.1.jsonl" in notices[0]
    assert load(output)[0].tally == state.tally


def test_a_checkpoint_from_before_the_failures_moved_is_left_aside(output):
    job = Job(output)
    job.finish(0, FAILED)
    job.save()
    kept = job.store.paths.checkpoint.read_bytes()
    job.end()
    load(output, retry_failed=True)
    JobPaths(output).checkpoint.write_bytes(kept)
    JobPaths(output).errors.write_bytes(encode(line(5, FAILED)))
    state = read_state(output)
    assert list(state.done.intervals()) == [(5, 6)]


def test_the_latest_run_is_the_one_a_job_goes_on_from(output):
    paths = JobPaths(output)
    paths.results.write_bytes(encode(line(0, run=header(900.0))) + encode(line(1, run=header(950.0))))
    paths.errors.write_bytes(encode(line(2, FAILED, run=header(920.0))))
    assert load(output)[0].run == header(950.0)


# --- status --------------------------------------------------------------------------------------------------------


def test_a_job_that_is_worked_on_is_running_also_after_a_summary_said_otherwise(output):
    job = Job(output)
    job.finish(0)
    job.save(status="stopped", stop_reason="insufficient_quota")
    assert (read_state(output).status, read_state(output).stop_reason) == ("running", None)
    assert read_state(output, held=True).status == "stopped"
    job.end()
    assert (read_state(output).status, read_state(output).stop_reason) == ("stopped", "insufficient_quota")


@pytest.mark.parametrize(
    ("total", "limit", "status"),
    [(1, None, "completed"), (2, None, "interrupted"), (9, 1, "completed"), (None, None, "interrupted")],
)
def test_a_killed_run_is_interrupted_unless_nothing_was_left(output, total, limit, status):
    job = Job(output)
    job.finish(0)
    job.save(total=total, limit=limit)
    job.end()
    assert read_state(output).status == status


@pytest.mark.parametrize("older", ["version", "tally"])
def test_a_checkpoint_of_an_older_format_still_says_how_the_job_stood(older, output, monkeypatch):
    job = Job(output)
    for index in range(3):
        job.finish(index)
    if older == "version":
        monkeypatch.setattr("batchkit.formats.checkpoint._VERSION", 0)
    job.save(limit=3, status="completed", **({"tally": {"succeeded": 3}} if older == "tally" else {}))
    monkeypatch.undo()
    job.end()
    state = read_state(output)
    assert (state.status, state.stop_reason, state.to_do, state.tally.succeeded) == ("completed", None, 3, 3)
    assert list(state.done.intervals()) == [(0, 3)]
    loaded, notices = load(output)
    assert "checkpoint cannot be used" in notices[0]
    assert not loaded.killed
    # What was cut off since is no longer the job's, whoever wrote the checkpoint.
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    assert (read_state(output).status, read_state(output).tally.succeeded) == ("interrupted", 2)


def test_without_a_checkpoint_the_input_is_counted_if_it_is_still_there(output, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\n\n{}\n{}\n")
    run = RunHeader(900.0, "http://x/v1", {}, str(path), path.stat().st_size)
    output.write_bytes(encode(line(0, run=run)))
    assert read_state(output).total == 3
    path.write_bytes(b"{}\n")
    assert read_state(output).total is None
    path.unlink()
    assert read_state(output).total is None


def test_a_job_without_files_is_empty(output):
    state = read_state(output)
    assert (state.job_id, state.run, state.to_do, len(state.done)) == (None, None, None, 0)


def test_the_figures_of_the_files_alone_are_those_of_the_checkpoint(output):
    expected = three_lines(output).state
    alone = read_state(output, from_files_alone=True)
    assert alone.tally == expected.tally
    assert alone.total == 20


def test_to_do_is_bounded_by_the_limit():
    assert JobState(total=10, limit=3).to_do == 3
    assert JobState(total=2, limit=3).to_do == 2
    assert JobState(total=2).to_do == 2
    assert JobState(limit=3).to_do is None


def test_the_summary_is_a_reading_of_the_state(output):
    job = three_lines(output)
    summary = build_summary(read_state(output), PriceList(at=job.clock, base_url=""))
    assert summary["requests"] == {"total": 20, "succeeded": 2, "failed": 1, "pending": 17} | {
        name: summary["requests"][name] for name in ("truncated", "from_cache")
    }
    assert summary["usage"]["total_tokens"] == 10
    assert summary["attempts"]["by_reason"] == {"timeout": 1}
    assert summary["errors"] == {"timeout": {"count": 1, "example": "r1"}}
    assert summary["job_id"] == "job"
