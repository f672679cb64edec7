"""A marked key in the environment, and everything happens that can happen to files and input: no byte contains it.

Each case is a fault that is really made, in processes of their own, at a job that is half done; its number is that of the
list of faults. The server repeats the keys wherever it answers. What is looked at is each byte of each file in the job's
folder, and all that was printed: on a terminal, with a bar, and on streams that lead elsewhere.
"""

import gzip
import json
import os
import pty
import resource
import shutil
import signal
import threading
from contextlib import suppress

import pytest
from acceptance.conftest import LONGEST_S, elsewhere
from echoes import COMPLETION, error, http, keys_of

REQUESTS = ["one", "bad", "two", "bad again", "three", "bad once more", "four", "five"]
BEGUN = 4
"""So many of them are done when a fault is made: two results and two failures."""
ESCAPES = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07\u202egnp\x9b31m"


def lines_of(*texts):
    bodies = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in texts]
    return [
        json.dumps({"custom_id": f"q{at}", "body": body}).encode() + b"\n" for at, body in enumerate(bodies)
    ]


def echo(received):
    """A completion or a refusal, full of keys; to a request that says hang, nothing."""
    asked = json.loads(received.body)["messages"][0]["content"]
    if asked == "hang":
        return None
    if str(asked).startswith("bad"):
        return error(received, 400)
    said = ESCAPES + received.head
    choices = [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]
    body = {**COMPLETION, "id": said, "model": f"m {keys_of(received)[0]}", "choices": choices}
    return http(200, body, *[f"x-echo-{at}: {key}" for at, key in enumerate(keys_of(received))])


@pytest.fixture(scope="module")
def server(raw_server):
    with elsewhere(raw_server(echo)) as running:
        yield running


class Job:
    """A job in a folder of its own, and all that the commands at it have said."""

    def __init__(self, command, server, until):
        self.command, self.server, self.until = command, server, until
        self.folder = command.folder / "job"
        self.folder.mkdir()
        self.requests, self.output = self.folder / "requests.jsonl", self.folder / "results.jsonl"
        self.checkpoint = self.folder / "results.checkpoint.json"
        self.errors = self.folder / "results.errors.jsonl"
        self.requests.write_bytes(b"".join(lines_of(*REQUESTS)))
        self.said = []

    def run_words(self, *more, input_path=None):
        words = ["run", input_path or self.requests, "-o", self.output, "--base-url", self.server.base_url]
        return [*words, "--portkey-provider", "openai", "--concurrency", 2, *more]

    def do(self, *words, code, says="", stdin=b"", patch=""):
        """A command whose two streams lead elsewhere."""
        return self.ended(self.command.start(*words, stdin=stdin, patch=patch), code=code, says=says)

    def show(self, *words, code, says="", patch=""):
        """A command whose streams are a terminal."""
        ours, its = pty.openpty()
        process = self.command.start(*words, terminal=its, patch=patch)
        os.close(its)
        last = threading.Timer(LONGEST_S, process.send_signal, [signal.SIGKILL])
        last.start()
        shown = b""
        try:
            # A terminal whose other end is closed is an error to read from, and that is its end.
            with suppress(OSError):
                while piece := os.read(ours, 65536):
                    shown += piece
        finally:
            last.cancel()
            os.close(ours)
        self.said.append(shown)
        assert process.wait() == code, shown
        assert says.encode() in shown
        return shown

    def go_on(self, *more, code=1, says="", patch="", input_path=None):
        """A run with a bar on a terminal."""
        words = self.run_words(*more, "--progress", "bar", input_path=input_path)
        return self.show(*words, code=code, says=says, patch=patch)

    def start(self, *more, patch=""):
        return self.command.start(*self.run_words(*more, "--progress", "log"), patch=patch)

    def ended(self, process, *, code, says=""):
        said = process.communicate()
        self.said += said
        assert process.wait() == code, said
        assert says in "".join(said)
        return "".join(said)

    def hears(self, process, words):
        """Wait until the process has said so."""
        self.until(lambda: words in process.err_path.read_bytes(), process)

    def indexes(self):
        found = [json.loads(line) for path in (self.output, self.errors) for line in path.open("rb")]
        return sorted(line["batchkit"]["index"] for line in found)


@pytest.fixture(scope="module")
def half_done(begin, server):
    """The files of a job that has come half way."""
    job = begin(server)
    job.go_on("--limit", BEGUN)
    return job


@pytest.fixture
def job(half_done, keyed, server, until):
    made = Job(keyed, server, until)
    for path in half_done.folder.iterdir():
        shutil.copy2(path, made.folder)
    made.said += half_done.said
    return made


@pytest.fixture
def keyed(forked, canary):
    forked.environ |= canary.variables
    return forked


@pytest.fixture(scope="module")
def begin(forked_in, canary_variables, tmp_path_factory):
    def start(server):
        command = forked_in(tmp_path_factory.mktemp("half done"))
        command.environ |= canary_variables
        return Job(command, server, None)

    return start


# --- the faults ----------------------------------------------------------------------------------------------------


def fault_01_kill_9_and_going_on(job):
    job.requests.write_bytes(b"".join(lines_of(*REQUESTS[:BEGUN], "hang", "five")))
    before = len(job.server.received)
    run = job.start("--allow-growth", "--force")
    job.until(lambda: any(b"hang" in each.body for each in job.server.received[before:]), run)
    run.send_signal(signal.SIGKILL)
    job.ended(run, code=-signal.SIGKILL)
    job.show("status", job.output, code=0)
    job.requests.write_bytes(b"".join(lines_of(*REQUESTS)))
    job.go_on("--allow-growth")


def fault_02_torn_tail(job):
    with job.output.open("ab") as stream:
        stream.write(job.output.read_bytes()[:900])
    job.show("status", job.output, code=0)
    job.go_on(says="900 bytes")
    assert b"[key]" in next(job.folder.glob("*.torn-*")).read_bytes()


def fault_04_flipped_bit(job):
    flip(job)
    job.go_on(code=4, says="batchkit repair")
    job.show("status", job.output, code=4)
    job.do("report", job.output, code=4, says="byte")
    job.show("repair", job.output, code=0, says="moved")
    assert b"[key]" in next(job.folder.glob("*.damaged-*")).read_bytes()
    job.go_on()


def fault_04_flipped_bit_and_overwrite(job):
    flip(job)
    job.go_on("--retry-failed", code=4)
    job.go_on("--overwrite")


def flip(job):
    data = bytearray(job.output.read_bytes())
    data[300] ^= 16
    job.output.write_bytes(data)
    job.checkpoint.unlink()


def fault_05_cut_short(job):
    job.errors.write_bytes(b"".join(job.errors.read_bytes().splitlines(keepends=True)[:1]))
    job.go_on(code=4, says="--rescan")
    job.do("status", job.output, "--json", code=0)
    job.go_on("--rescan")


def fault_06_checkpoint_missing(job):
    job.checkpoint.unlink()
    job.go_on(says="no checkpoint")


def fault_06_checkpoint_broken(job):
    job.checkpoint.write_bytes(job.checkpoint.read_bytes()[:-30])
    job.go_on("--retry-failed", says="the checkpoint cannot be used")


def fault_07_checkpoint_ahead(job):
    with job.output.open("r+b") as stream:
        stream.truncate(job.output.stat().st_size - 1)
    job.go_on(code=4, says="shorter than its checkpoint says")


NO_ROOM = """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize({path!r}) + 100, resource.RLIM_INFINITY))
"""


def fault_08_no_room_and_room_again(job):
    run = job.start(patch=NO_ROOM.format(path=str(job.output)))
    job.hears(run, b"no room")
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    job.ended(run, code=1, says="room again")


def fault_09_no_room_and_sigterm(job):
    run = job.start(patch=NO_ROOM.format(path=str(job.output)))
    job.hears(run, b"no room")
    run.send_signal(signal.SIGTERM)
    job.ended(run, code=4, says="which are lost")
    job.go_on()


def fault_10_short_writes(job):
    patch = "import os\nfrom batchkit.store import Disk\ndef write(self, descriptor, data):\n"
    job.go_on("--retry-failed", patch=f"{patch}    return os.write(descriptor, data[:7])\nDisk.write = write")


def fault_11_failing_fsync(job):
    patch = "import errno, os\nfrom batchkit.store import Disk\ndef sync(self, descriptor):\n"
    job.go_on(code=4, patch=f"{patch}    raise OSError(errno.EIO, str(os.environ))\nDisk.sync = sync")
    job.go_on()


def fault_12_folder_removed(job):
    patch = "import shutil\nfrom batchkit.store import Store\nappend = Store.append\ndef removing(self, *lines):\n"
    patch += f"    append(self, *lines)\n    shutil.rmtree({str(job.folder)!r}, ignore_errors=True)\nStore.append = removing"
    job.go_on(code=4, says="was removed", patch=patch)


def fault_13_outputs_that_cannot_be(job):
    os.mkfifo(job.folder / "fifo.jsonl")
    for output, says in ((job.folder / "fifo.jsonl", "not a regular file"), (job.requests, "same file")):
        job.go_on("-o", output, code=2, says=says)


def fault_14_a_second_process(job):
    job.requests.write_bytes(b"".join(lines_of(*REQUESTS[:BEGUN], "hang")))
    before = len(job.server.received)
    run = job.start("--timeout", 600)
    job.until(lambda: len(job.server.received) > before, run)
    job.go_on(code=4, says=f"process {run.pid}")
    job.go_on("--overwrite", code=4, says=f"process {run.pid}")
    job.do("report", job.output, "--json", code=4)
    job.do("status", job.output, code=0, says="running")
    run.send_signal(signal.SIGTERM)
    job.hears(run, b"stopping")
    run.send_signal(signal.SIGTERM)
    job.ended(run, code=128 + signal.SIGTERM)


def fault_15_edited_input(job):
    job.requests.write_bytes(b"".join(lines_of("eno", *REQUESTS[1:])))
    job.go_on(code=4, says="line 1 ")


def fault_16_grown_input(job):
    job.requests.write_bytes(b"".join(lines_of(*REQUESTS, "more")))
    job.go_on(code=4, says="--allow-growth")
    job.go_on("--allow-growth", "--retry-failed")


def fault_17_other_model_endpoint_or_defaults(job):
    for words in (["--model", "other"], ["--set", "top_p=0.5"], ["--base-url", "http://127.0.0.1:1/v1"]):
        job.go_on(*words, code=4, says="--force")
    job.go_on("--model", "other", "--force")


NO_REQUESTS = [
    b'{"messages": [',
    b'["messages"]',
    b"17",
    b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e400}',
    b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"url": "//evil", "body": {"messages": [{"role": "user", "content": "x"}]}}',
    b'{"url": "../admin", "body": {"messages": [{"role": "user", "content": "x"}]}}',
    b'{"body": {"messages": [{"role": "user", "content": "x"}]}, "portkey": {"trace_id": "a\\r\\nx-injected: 1"}}',
    b'{"body": {"messages": [{"role": "user", "content": "x"}]}, "portkey": {"metadata": {"note": "'
    + b"x" * 200_000
    + b'"}}}',
]
REQUESTS_THAT_TRY = [
    b'{"messages": [{"role": "user", "content": "x"}], "api_base": "http://127.0.0.1:1/v1", "api_key": "stolen"}',
    b'{"messages": [{"role": "user", "content": "x"}], "headers": {"Authorization": "Bearer stolen"}}',
    b'{"body": {"messages": [{"role": "user", "content": "x"}]}, "portkey": {"metadata": {"a": "\\r\\nb: 1"}}}',
]


def fault_18_to_26_bad_lines(job):
    lines = [line + b"\r\n\r\n" for line in [*NO_REQUESTS, *REQUESTS_THAT_TRY]]
    path = job.folder / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(lines) + b" \n" + b"".join(lines_of("one", "one")))
    before = len(job.server.received)
    job.show("validate", path, code=1)
    job.do("validate", path, "--json", code=1)
    job.go_on("--overwrite", input_path=path)
    assert len(job.server.received) - before == len(REQUESTS_THAT_TRY) + 2
    assert len(job.errors.read_bytes().splitlines()) == len(NO_REQUESTS)


def fault_20_a_line_over_the_cap(job):
    path = job.folder / "long.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (65 << 20) + b"\n" + lines_of("one")[0], 1))
    job.go_on("--overwrite", input_path=path)


def fault_22_stdin(job):
    words = [*job.run_words("--overwrite", "--limit", 3, input_path="-"), "--progress", "log"]
    job.do(*words, code=1, stdin=b"".join(lines_of(*REQUESTS)))
    words = [*job.run_words(input_path="-"), "--json"]
    job.do(*words, code=4, says="line 3 ", stdin=b"".join(lines_of("one", "bad", "edited")))
    job.do(*words, code=1, stdin=b"".join(lines_of(*REQUESTS)))


def fault_23_empty_input(job):
    path = job.folder / "empty.jsonl"
    path.touch()
    job.go_on("--overwrite", input_path=path, code=0)


def fault_40_64_descriptors(job):
    patch = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    job.go_on("--concurrency", 1000, says="may open only 64 files", patch=patch)


def fault_42_stdout_closed_and_full(job):
    job.do(*job.run_words("--progress", "log"), code=1, patch="import os; os.close(1)")
    job.do(*job.run_words("--retry-failed"), code=1, patch="import os; os.dup2(os.open('/dev/full', 1), 1)")


def fault_44_the_writer_dies(job):
    patch = "import os\nfrom batchkit.store import Store\ndef append(self, *lines):\n"
    job.go_on(
        code=1, says="[key]", patch=f"{patch}    raise RuntimeError(dict(os.environ))\nStore.append = append"
    )
    job.go_on()


def fault_45_the_bar_and_the_report_crash(job):
    patch = "import os\nfrom batchkit.formats import report\nfrom batchkit.observers.progress import ProgressBar\n"
    patch += "def broken(*_):\n    raise RuntimeError(dict(os.environ))\n"
    job.go_on(patch=f"{patch}ProgressBar.handle = report.render_html = broken")


def fault_47_escapes(job):
    job.requests.write_bytes(b"".join(lines_of(*REQUESTS, f"bad {ESCAPES}")))
    for shown in (
        job.go_on("--allow-growth"),
        job.show("status", job.output, code=0),
        job.show("report", job.output, code=0),
    ):
        assert b"\x1b]0;" not in shown
        assert b"\x07" not in shown


def retry_failed_and_overwrite(job):
    job.go_on("--retry-failed", says="moved to")
    job.go_on("--overwrite")
    assert {path.name for path in job.folder.glob("*.old-*")}


FAULTS = {
    name: value
    for name, value in globals().items()
    if name.startswith(("fault_", "retry_")) and callable(value)
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_46_no_fault_of_files_or_input_gets_a_key_out(fault, job, canary):
    FAULTS[fault](job)
    assert job.said
    canary.assert_unseen(job.folder, *job.said)


def test_the_server_was_sent_all_keys_and_said_them(half_done, canary):
    first = half_done.server.received[:BEGUN]
    assert len(first) == BEGUN
    for received in first:
        assert set(keys_of(received)) == set(canary.variables.values())
        assert all(key.encode() in echo(received) for key in canary.variables.values())
    for path in (half_done.output, half_done.errors):
        assert path.read_bytes().count(b"[key]") >= 3 * 2


# --- that the search can find a key --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["results.jsonl", "results.checkpoint.json", "results.jsonl.torn-1", "deep/a.html"]
)
def test_a_key_is_found_in_whatever_file_it_stands(place, job, canary):
    path = job.folder / place
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as stream:
        stream.write(b"\x00" + canary.openai[:12].encode())
    with pytest.raises(AssertionError):
        canary.assert_unseen(job.folder)


def test_answers_that_are_written_as_they_came_are_found(job, canary):
    as_it_came = "from batchkit.endpoint.judging import Judge\nJudge._redacted = lambda self, said: said\n"
    job.go_on(patch=as_it_came)
    canary.assert_unseen(job.folder / "none", *job.said)
    with pytest.raises(AssertionError):
        canary.assert_unseen(job.folder)


def test_what_is_printed_as_it_is_is_found(job, canary):
    unhidden = "from batchkit.cli import redaction\nredaction._keys = lambda environ: []\n"
    patch = f"{unhidden}import os\nfrom batchkit.store import Store\ndef append(self, *lines):\n"
    job.go_on(code=1, patch=f"{patch}    raise RuntimeError(dict(os.environ))\nStore.append = append")
    canary.assert_unseen(job.folder)
    with pytest.raises(AssertionError):
        canary.assert_unseen(job.folder, job.said[-1])
