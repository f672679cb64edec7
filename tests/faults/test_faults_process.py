"""Process: each fault is made, and each test's name is what then holds. The numbers are those of the list of faults."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

import batchkit
from batchkit.endpoint import open_endpoint
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted
from batchkit.events import AttemptFailed
from batchkit.formats.completions import read_answer
from batchkit.formats.headers import endpoint_address
from batchkit.job import JobRun
from batchkit.outputs import read_output
from batchkit.records import Reply, Request, Trace
from batchkit.state import read_state
from batchkit.testing import FaultyDisk, ManualClock, ScriptedEndpoint, failure, reply


def indexes(job):
    return sorted(each.outcome.index for each in read_output(job.output))


# --- limits of the machine -----------------------------------------------------------------------------------------


def test_fault_40_64_file_descriptors_with_concurrency_1000_give_a_lower_bound_and_a_warning(
    command, simulate, files, write_requests
):
    simulator = simulate(speed=100)
    words = ["run", write_requests(300), "-o", files.results_path, "--base-url", simulator.base_url, "--json"]
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    run = command.fork(*words, "--concurrency", 1000, "--progress", "log", patch=few)
    out, err = run.communicate()
    assert run.returncode == 0, err
    files.assert_summary_is_a_fold(json.loads(out), 300)
    assert "may open only 64 files" in err
    assert "ulimit -n" in err
    assert 8 <= simulator.stats.max_in_flight < 64
    # None was lost to a socket that could not be opened.
    assert simulator.stats.received == 300


async def test_fault_41_a_slow_disk_holds_the_run_back_with_no_more_than_what_was_in_flight(make_job):
    """Each write takes as long as ten answers."""
    job, clock = make_job(200), ManualClock()
    endpoint = ScriptedEndpoint(clock=clock, latency_s=0.0001)
    most_waiting = written = 0

    def slow(what, _number):
        nonlocal most_waiting, written
        if what == "write" and endpoint.attempts:  # the checkpoint comes before them
            time.sleep(0.001)
            most_waiting = max(most_waiting, len(endpoint.attempts) - endpoint.in_flight - written)
            written += 1

    await job.run(FaultyDisk(slow), clock=clock, endpoint=endpoint, concurrency=16)
    assert indexes(job) == list(range(200))
    assert 1 <= most_waiting <= 16


SLOW_WRITES = """
import time
from batchkit import store

class Slow(store.Disk):
    def write(self, descriptor, data):
        time.sleep(0.002)
        return super().write(descriptor, data)

store.Disk = Slow
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has its own unit elsewhere")
def test_fault_41_a_slow_disk_is_backpressure_and_not_memory(
    broken, simulate, files, write_requests, tmp_path
):
    """The endpoint answers at once, the disk takes 2 ms a line; five times the lines take the same memory."""
    simulator = simulate(output_tokens=500)
    peaks = {}
    for count in (300, 1500):
        results = tmp_path / f"{count}.jsonl"
        words = ["run", write_requests(count), "-o", results, "--base-url", simulator.base_url]
        run = broken(*words, "--concurrency", 32, "--progress", "off", patch=SLOW_WRITES)
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 0
        assert type(files)(results).count() == count
        peaks[count] = usage.ru_maxrss
    assert peaks[1500] < peaks[300] + 6 * 1024, peaks


async def test_a_stalled_event_loop_loses_no_answer_that_has_long_arrived(simulate):
    simulator = simulate()
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"?"}]}'
    address = endpoint_address(simulator.base_url, version="0", timeout=1)
    loop, stalled = asyncio.get_running_loop(), False

    def stall():
        nonlocal stalled
        stalled = simulator.stats.answered == 1
        if stalled:
            time.sleep(2.1)  # the deadline and the second after which its timer counts as late
        else:
            loop.call_soon(stall)

    async with open_endpoint(address, timeout=1.0) as endpoint:
        loop.call_soon(stall)
        answer = await endpoint.attempt(Request(0, "r", body), Trace("0" * 31 + "1", "0" * 15 + "1"))
    assert stalled
    assert isinstance(answer, Reply)


# --- signals -------------------------------------------------------------------------------------------------------


def told(run, word):
    said = ""
    while word not in said:
        said = run.stderr.readline()
        assert said, "it was never said"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fault_42_a_signal_once_drains_and_all_drained_results_are_on_the_disk(
    number, code, command, held, files
):
    run, endpoint, words = held
    run.send_signal(number)
    told(run, "stopping")
    endpoint.release()
    summary = json.loads(run.communicate()[0])
    assert run.returncode == code
    assert (summary["status"], summary["requests"]["pending"]) == ("interrupted", 20)
    assert len(endpoint.received) == len(files.results) == 20
    files.assert_summary_is_a_fold(command(*words).json, 40)
    assert len(endpoint.received) == 40


@pytest.mark.parametrize("stopped", [False, True])
async def test_fault_42_a_signal_while_a_large_output_is_scanned_is_not_kept_waiting(
    stopped, make_job, monkeypatch
):
    job, stop = make_job(3), Stop()
    await job.run(limit=2)
    job.output.with_name("results.checkpoint.json").unlink()
    monkeypatch.setitem(JobRun.__init__.__kwdefaults__, "at_once_bytes", 0)
    monkeypatch.setattr("batchkit.state._TOLD_BYTES", 1)
    if stopped:
        stop.request(Interrupted(signal.SIGINT, "stopped"))
    with pytest.raises(Interrupted) if stopped else nullcontext():
        await job.run(stop=stop)
    assert any("no checkpoint to go by" in str(event) for event in job.told) != stopped
    assert indexes(job) == ([0, 1] if stopped else [0, 1, 2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_42_a_signal_twice_leaves_at_once_and_still_whole(number, command, held, files):
    run, endpoint, words = held
    run.send_signal(number)
    told(run, "stopping")
    run.send_signal(number)
    summary = json.loads(run.communicate()[0])
    assert run.returncode == 128 + number
    assert summary == files.summary
    assert summary["requests"]["succeeded"] == len(files.results) == 7
    endpoint.release()
    files.assert_summary_is_a_fold(command(*words).json, 40)


EMPTY = b'{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":90,"total_tokens":97}}'
"""An answer that was worked for, and says nothing: its request is asked again."""


class Stopping:
    """Answers with `EMPTY` the second request, and has the run end in the middle of that."""

    def __init__(self, clock, stop, when):
        self.sending = lambda: None
        self.attempts = []
        self._clock, self._stop, self._when = clock, stop, when

    async def attempt(self, request, trace):
        await self._clock.sleep(0.1)
        self.attempts.append((request, trace))
        if request.index != 1:
            return reply()
        asked = sum(before.index == 1 for before, _ in self.attempts)
        if asked == 2 and self._when == "in the second attempt":
            self._stop.abandon(Interrupted(signal.SIGINT, "stopped"))
            await self._clock.sleep(3600)
        if asked == 2 and self._when == "with the second answer":
            self._stop.request(Interrupted(signal.SIGINT, "stopped"))
        return read_answer(200, {}, EMPTY, 0.0)

    def handle(self, event):
        if isinstance(event, AttemptFailed) and self._when == "while it waits":
            self._stop.request(Interrupted(signal.SIGINT, "stopped"))

    interval_s = 10.0

    def tick(self, gauges):
        """Nothing is drawn."""

    def close(self):
        """Nothing was opened."""


@pytest.mark.parametrize(
    ("when", "empty"), [("while it waits", 1), ("with the second answer", 2), ("in the second attempt", 1)]
)
async def test_fault_42_what_a_request_has_cost_that_a_signal_leaves_open_stays_in_the_totals(
    when, empty, make_job
):
    job, clock, stop = make_job(3), ManualClock(), Stop()
    endpoint = Stopping(clock, stop, when)
    with pytest.raises(Interrupted) as ended:
        await job.run(clock=clock, endpoint=endpoint, observers=(endpoint,), stop=stop)
    set_aside = job.output.with_name("results.errors.1.jsonl")
    assert [each.outcome.index for each in read_output(set_aside)] == [1]
    for summary in (ended.value.summary, batchkit.report(job.output)):
        assert summary["requests"]["pending"] in (1, None)
        assert summary["usage"]["total_tokens"] == 2 * 15 + empty * 97
        assert summary["outcomes"]["retries"]["attempts"] == empty
        assert summary["attempts"]["total"] == len(endpoint.attempts)
    summary = await job.run(clock=ManualClock(clock.time() + 1))
    assert indexes(job) == [0, 1, 2]
    assert summary["usage"]["total_tokens"] == 3 * 15 + empty * 97
    assert summary["cost"]["total"] == pytest.approx(
        (3 * (10 * 0.15 + 5 * 0.6) + empty * (7 * 0.15 + 90 * 0.6)) / 1e6
    )
    assert summary["attempts"]["in_flight_at_kills"] == (3 if when == "in the second attempt" else 0)
    assert read_state(job.output, from_files_alone=True).tally == read_state(job.output).tally


async def test_fault_42_requests_that_a_signal_leaves_open_and_that_cost_nothing_have_no_line(make_job):
    job, stop = make_job(3), Stop()
    busy = ScriptedEndpoint(otherwise=lambda _: failure("rate_limited", status=429))

    class Impatient(Stopping):
        def handle(self, event):
            if isinstance(event, AttemptFailed):
                stop.request(Interrupted(signal.SIGINT, "stopped"))

    with pytest.raises(Interrupted):
        await job.run(endpoint=busy, observers=(Impatient(None, stop, ""),), stop=stop)
    assert not job.output.with_name("results.errors.1.jsonl").exists()


def in_shell(command, *words):
    return subprocess.run(
        ["/bin/sh", "-c", *words],
        capture_output=True,
        timeout=60,
        check=False,
        cwd=command.folder,
        env=command.environ,
    )


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&-", "1>/dev/full", "2>/dev/full", "1>&- 2>&- 0<&-"])
def test_fault_42_a_closed_stdout_or_stderr_is_quiet_and_costs_no_answer(
    closed, command, provider, files, write_requests
):
    words = [
        "-m",
        "batchkit",
        "run",
        write_requests(20),
        "-o",
        files.results_path,
        "--base-url",
        provider.base_url,
    ]
    done = in_shell(command, f'exec "$0" "$@" {closed}', sys.executable, *map(str, words))
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stderr
    files.assert_summary_is_a_fold(files.summary, 20)


def test_files_that_are_too_many_to_be_open_are_said_to_be_that(command, write_requests, tmp_path):
    argv = f"ulimit -n 16; exec {sys.executable} -m batchkit run {write_requests(3)} -o {tmp_path / 'out.jsonl'} --simulate"
    done = in_shell(command, argv)
    # Which file is one too many is not the same in all versions of Python.
    assert done.returncode in (2, 3)
    assert b"Too many open files" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", ["run - -o {} --simulate", "validate -", "estimate -"])
def test_fault_42_a_closed_stdin_is_not_an_empty_input(words, command, tmp_path):
    argv = f"exec {sys.executable} -m batchkit {words.format(tmp_path / 'out.jsonl')} 0<&-"
    done = in_shell(command, argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"there is no standard input to read; name a file" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


# --- clocks --------------------------------------------------------------------------------------------------------


class Jumping(ManualClock):
    """Ten seconds after it was made, one of its clocks jumps."""

    def __init__(self, *, wall=0.0, steady=0.0):
        super().__init__()
        self._wall, self._steady = wall, steady

    def now(self):
        return super().now() + (self._steady if self._now >= 10 else 0.0)

    def time(self):
        return super().time() + (self._wall if self._now >= 10 else 0.0)


class Dated:
    """Remembers when each attempt began, on a clock that does not jump."""

    def __init__(self, clock):
        self._clock = clock
        self._endpoint = ScriptedEndpoint(clock=clock, latency_s=2.0)
        self.at = []

    async def attempt(self, request, trace):
        self.at.append(self._clock._now)
        return await self._endpoint.attempt(request, trace)


JUMPS = [{"wall": -7200.0}, {"wall": 7200.0}, {"steady": 3600.0}]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_fault_43_clock_set_back_or_machine_asleep_for_an_hour_and_no_storm_after_it(jump, make_job):
    job, clock = make_job(60), Jumping(**jump)
    endpoint = Dated(clock)
    summary = await job.run(clock=clock, endpoint=endpoint, concurrency=16, rpm=60)
    assert indexes(job) == list(range(60))
    assert 30 < endpoint.at[-1] < 75
    # One a second, and what may come at once is not more after the jump than before it.
    assert max(sum(start <= at < start + 5 for at in endpoint.at) for start in endpoint.at) <= 6
    assert summary["time"]["active_s"] >= 0
    assert summary["latency_s"]["max"] >= 0
    assert all(rate is None or rate >= 0 for rate in summary["throughput"].values())
    # Read from the files it is the same.
    again = await job.run(clock=ManualClock(clock.time() + 60))
    assert again["requests"] == summary["requests"]
    assert again["usage"] == summary["usage"]
    assert again["time"]["active_s"] == summary["time"]["active_s"]


# --- parts that die ------------------------------------------------------------------------------------------------


async def test_fault_44_the_writer_dies_and_the_run_stops_with_the_cause(make_job):
    job, clock = make_job(200), ManualClock()
    endpoint = ScriptedEndpoint(clock=clock, latency_s=0.1)
    written = begun = 0

    def dies(what, _number):
        nonlocal written, begun
        if what == "write":
            written += 1
            if written == 9:
                begun = len(endpoint.attempts)
                raise ZeroDivisionError("nobody thought of it")

    with pytest.raises(BaseException) as caught:
        await job.run(FaultyDisk(dies), clock=clock, endpoint=endpoint, concurrency=8)
    assert "nobody thought of it" in _all_messages(caught.value)
    assert len(endpoint.attempts) == begun < 200
    summary = await job.run()
    assert indexes(job) == list(range(200))
    assert summary["requests"]["succeeded"] == 200
    assert job.billed <= 200 + 8


def _all_messages(error):
    if isinstance(error, BaseExceptionGroup):
        return " ".join(map(_all_messages, error.exceptions))
    return f"{error!r} {error.__cause__!r}"


class Broken:
    """An observer that fails at what it is told to fail at."""

    interval_s = 0.05

    def __init__(self, at):
        self._at = at

    def handle(self, event):
        if self._at == "handle":
            raise ZeroDivisionError

    def tick(self, gauges):
        if self._at == "tick":
            raise ZeroDivisionError

    def close(self):
        if self._at == "close":
            raise ZeroDivisionError


@pytest.mark.parametrize("at", ["handle", "tick", "close"])
async def test_fault_45_the_progress_bar_crashes_and_the_results_are_kept(at, make_job):
    job = make_job(20)
    summary = await job.run(observers=(Broken(at),))
    assert indexes(job) == list(range(20))
    assert summary["status"] == "completed"
    assert json.loads(job.output.with_name("results.summary.json").read_bytes()) == summary


def test_fault_45_the_report_crashes_and_the_results_are_kept(command, provider, files, write_requests):
    words = ["run", write_requests(20), "-o", files.results_path, "--base-url", provider.base_url, "--json"]
    patch = "from batchkit.formats import report; report.render_html = lambda summary: 1 / 0"
    run = command.fork(*words, "--progress", "log", patch=patch)
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert "ZeroDivisionError" in err
    files.assert_summary_is_a_fold(json.loads(out), 20)
    assert not files.report_path.exists()
    command("report", files.results_path)
    assert files.report_path.exists()


# --- what models say -----------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\x9b31m\r\x00<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("refused", [True, False])
def test_fault_47_script_esc_and_bidi_in_what_a_model_says_are_harmless_in_terminal_and_report(
    refused, command, record, files, tmp_path
):
    def respond(number):
        if refused and number % 2:
            return 400, {}, {"error": {"message": EVIL, "code": EVIL, "type": EVIL}}
        message = {"role": "assistant", "content": EVIL}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return 200, {"x-request-id": "r"}, {"id": EVIL, "model": EVIL, "choices": choices, "usage": usage}

    endpoint = record(respond=respond)
    path = tmp_path / "requests.jsonl"
    body = {"model": EVIL, "messages": [{"role": "user", "content": EVIL}]}
    path.write_text("".join(json.dumps({"custom_id": f"{EVIL}{n}", "body": body}) + "\n" for n in range(6)))
    words = ["run", path, "-o", files.results_path, "--base-url", endpoint.base_url, "--progress", "log"]
    ran = command(*words, code=1 if refused else 0)
    status, report = command("status", files.results_path), command("report", files.results_path)
    for text in (ran.out, ran.err, status.out, report.out):
        assert not [each for each in text if each != "\n" and not each.isprintable()]
        assert "\u202e" not in text
    page = files.report_path.read_text(encoding="utf-8")
    assert "alert(1)" in page  # it is told, as text
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not {"\x1b", "\u202e", "\u2066", "\x07", "\x00"} & set(page)
    # In the lines it stands as it came.
    assert {each["response"]["body"]["model"] for each in files.results} == {EVIL}
    assert all(each["response"]["body"]["choices"][0]["message"]["content"] == EVIL for each in files.results)
