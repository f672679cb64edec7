"""The job's files on a real disk, with real processes beside us."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import batchkit
from batchkit.errors import JobDamaged, JobLocked, OutputUnwritable, UsageError
from batchkit.formats.checkpoint import encode_checkpoint
from batchkit.formats.results import OutputLine, encode
from batchkit.outputs import JobPaths, lock_holder, read_output
from batchkit.records import Failure, FailureKind, Outcome, Reply
from batchkit.state import JobState
from batchkit.store import Store

REPLY = Reply(200, "r", b'{"choices":[{"message":{"content":"hi"}}]}')
FAILED = Failure(FailureKind.TIMEOUT, "timeout", "it took too long")


def line(index, answer=REPLY):
    return OutputLine(Outcome(index, f"r{index}", answer, "t", 1, 0.5, 1000.0 + index), "job")


def text(index, answer=REPLY):
    return encode(line(index, answer))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "results.jsonl"


@pytest.fixture
def store(output):
    opened = Store.open(output)
    yield opened
    opened.close()


def recovered(output, *starts):
    """What a run finds that starts now, and what it was told."""
    store = Store.open(output)
    try:
        return [each.outcome.index for each in store.recover(*starts)], store.notices
    finally:
        store.close()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("results.jsonl", "results.errors.jsonl"),
        ("out.ndjson", "out.errors.jsonl"),
        ("out.json", "out.errors.jsonl"),
        ("out", "out.errors.jsonl"),
        ("v1.2", "v1.2.errors.jsonl"),
        ("out.txt", "out.txt.errors.jsonl"),
    ],
)
def test_the_files_stand_beside_the_output(output, errors):
    assert JobPaths(Path("d") / output).errors == Path("d") / errors


def test_the_files_are_named_as_promised(output):
    paths = JobPaths(output)
    names = [path.name for path in (paths.checkpoint, paths.summary, paths.report)]
    assert names == ["results.checkpoint.json", "results.summary.json", "results.report.html"]


# --- appending -----------------------------------------------------------------------------------------------------


def test_results_and_failures_go_to_their_files_one_line_each(store, output):
    store.append(line(0))
    store.append(line(1, FAILED))
    assert store.dirty
    store.sync()
    assert not store.dirty
    assert output.read_bytes() == text(0)
    assert store.paths.errors.read_bytes() == text(1, FAILED)
    assert store.sizes == (len(text(0)), len(text(1, FAILED)))


def test_no_one_else_may_read_any_of_the_files(store, output):
    store.append(line(0))
    store.replace(store.paths.summary, b"{}")
    with output.open("ab") as stream:
        stream.write(b"torn")
    store.close()
    torn = Store.open(output)
    list(torn.recover())
    paths = [*output.parent.iterdir()]
    assert any(".torn-" in path.name for path in paths)
    assert any(path.name.endswith(".lock") for path in paths)
    assert {mode(path) for path in paths} == {0o600}
    torn.close()


def test_missing_folders_are_made(tmp_path):
    Store.open(tmp_path / "a" / "b" / "results.jsonl").close()
    assert (tmp_path / "a" / "b" / "results.jsonl").exists()


# --- recovery ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [REPLY, FAILED])
def test_a_line_torn_at_any_byte_is_moved_aside_and_what_stands_before_it_kept(tmp_path, answer):
    for end in range(1, len(text(1, answer)) - 1):
        output = tmp_path / str(end) / "results.jsonl"
        output.parent.mkdir()
        paths = JobPaths(output)
        log = paths.results if answer is REPLY else paths.errors
        log.write_bytes(text(0, answer) + text(1, answer)[:end])
        found, notices = recovered(output)
        assert found == [0]
        assert log.read_bytes() == text(0, answer)
        [aside] = log.parent.glob("*.torn-*")
        assert aside.read_bytes() == text(1, answer)[:end] + b"\n"
        assert f"{end:,} bytes" in notices[0]
        assert aside.name in notices[0]


@pytest.mark.parametrize("before", [b"", text(0)])
def test_a_line_that_lacks_only_its_newline_is_completed_and_counts(output, before):
    """Its request must not be asked, and written, a second time."""
    output.write_bytes(before + text(1)[:-1])
    found, notices = recovered(output)
    assert found == ([0, 1] if before else [1])
    assert output.read_bytes() == before + text(1)
    assert len(notices) == 1
    assert recovered(output) == (found, [])


def test_such_a_line_counts_also_behind_a_checkpoint(output):
    output.write_bytes(text(0) + text(1)[:-1])
    assert recovered(output, len(text(0)))[0] == [1]


def test_a_torn_line_longer_than_a_piece_is_found_whole(output):
    torn = b"x" * (3 << 20)
    output.write_bytes(text(0) + torn)
    assert recovered(output)[0] == [0]
    assert output.read_bytes() == text(0)


def test_a_file_of_one_torn_line_becomes_empty(output):
    output.write_bytes(b'{"id":')
    assert recovered(output)[0] == []
    assert output.read_bytes() == b""


def test_recovery_begins_where_it_is_told(output):
    output.write_bytes(text(0) + text(1) + text(2))
    assert recovered(output, len(text(0)), 0)[0] == [1, 2]


@pytest.mark.parametrize("broken", [b"garbage\n", b"\n", text(1)[:-9] + b"\n"])
def test_a_broken_line_in_the_middle_is_damage_at_its_offset_and_nothing_is_touched(output, broken):
    data = text(0) * 30 + broken + text(2) + b"torn"
    output.write_bytes(data)
    with pytest.raises(JobDamaged, match=f"{output} is damaged in the line at byte {30 * len(text(0)):,}"):
        recovered(output)
    assert output.read_bytes() == data
    assert not list(output.parent.glob("*.torn-*"))


def test_a_bit_flipped_anywhere_is_damage_or_a_line_asked_again(output):
    data = text(0) + text(1) + text(2)
    for place in range(len(text(0)), len(text(0)) + len(text(1)), 7):
        flipped = bytearray(data)
        flipped[place] ^= 0x04
        output.write_bytes(bytes(flipped))
        with pytest.raises(JobDamaged):
            recovered(output)


def test_reading_leaves_out_what_is_being_written(output):
    assert list(read_output(output)) == []
    output.write_bytes(text(0) + text(1)[:50])
    assert [each.outcome.index for each in read_output(output)] == [0]
    assert output.stat().st_size == len(text(0)) + 50


# --- moving aside --------------------------------------------------------------------------------------------------


def fill(output):
    store = Store.open(output)
    store.append(line(0))
    store.append(line(1, FAILED))
    store.replace(store.paths.checkpoint, b"{}")
    store.close()


def test_overwrite_moves_the_old_files_aside(output):
    fill(output)
    JobPaths(output).beside(".errors.1.jsonl").write_bytes(text(2, FAILED))
    store = Store.open(output, overwrite=True)
    assert store.sizes == (0, 0)
    assert store.read_checkpoint() is None
    assert store.paths.superseded() == []
    store.close()
    old = {path.name.partition(".old-")[0]: path.read_bytes() for path in output.parent.glob("*.old-*")}
    assert old == {
        "results.jsonl": text(0),
        "results.errors.jsonl": text(1, FAILED),
        "results.errors.1.jsonl": text(2, FAILED),
        "results.checkpoint.json": b"{}",
    }


def test_overwrite_keeps_the_old_files_however_often_it_is_asked_for(output):
    for index in range(5):
        store = Store.open(output, overwrite=True)
        store.append(line(index))
        if index == 0:
            store.append(line(9, FAILED))
        store.close()
    kept = {path.name: path.read_bytes() for path in output.parent.glob("results.jsonl.old-*")}
    assert sorted(kept.values()) == [text(index) for index in range(4)]
    # What belongs together has the same ending.
    [failed] = (path for path in output.parent.glob("results.errors.jsonl.old-*") if path.stat().st_size)
    assert kept[failed.name.replace(".errors", "")] == text(0)


def test_what_has_the_name_of_a_summary_before_there_is_a_job_is_moved_and_not_written_over(output):
    paths = JobPaths(output)
    paths.report.write_bytes(b"mine")
    paths.checkpoint.write_bytes(b"mine too")
    for content in (b"the job's", b"the job's, later"):
        store = Store.open(output)
        assert len(store.notices) == (2 if content == b"the job's" else 0)
        store.append(line(len(content)))
        store.replace(paths.report, content)
        store.close()
    [mine] = output.parent.glob("results.report.html.old-*")
    assert mine.read_bytes() == b"mine"
    assert [path.read_bytes() for path in output.parent.glob("*.checkpoint.json.old-*")] == [b"mine too"]
    assert paths.report.read_bytes() == b"the job's, later"


def test_the_report_of_a_job_that_has_no_line_yet_stays(output):
    paths = JobPaths(output)
    Store.open(output).close()
    paths.checkpoint.write_bytes(encode_checkpoint(JobState(job_id="job").standing()))
    paths.report.write_bytes(b"the job's")
    Store.open(output).close()
    assert paths.report.read_bytes() == b"the job's"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_would_share_the_files_of_another_is_refused(overwrite, output):
    fill(output)
    for name in ("results.json", "results.ndjson", "results"):
        with pytest.raises(UsageError, match=r"results\.jsonl is the output of another job"):
            Store.open(output.with_name(name), overwrite=overwrite)
        with pytest.raises(UsageError, match="another job"):
            batchkit.status(output.with_name(name))
        assert not output.with_name(name).exists()
    for mine in (b"a file of one's own", text(0)[:5] + b"\0" + text(0)[6:]):
        # Neither what stands there, nor damage, nor that all of its requests failed, makes the other's files one's own.
        output.with_name("results.json").write_bytes(b"a file of one's own")
        output.write_bytes(mine if mine.startswith(b"{") else output.read_bytes())
        with pytest.raises(UsageError, match="another job"):
            Store.open(output.with_name("results.json"), overwrite=overwrite)
    # Nor that an empty file stands there.
    output.with_name("results.json").write_bytes(b"")
    with pytest.raises(UsageError, match="another job"):
        Store.open(output.with_name("results.json"), overwrite=overwrite)
    output.with_name("results.json").unlink()
    output.write_bytes(b"")
    with pytest.raises(UsageError, match="another job"):
        Store.open(output.with_name("results.json"), overwrite=overwrite)
    # Jobs that were begun by an earlier version go on.
    for name in ("both.jsonl", "both.json"):
        output.with_name(name).write_bytes(text(0))
    Store.open(output.with_name("both.json")).close()
    # What is no job's, as an input, is no reason.
    output.with_name("more.jsonl").write_bytes(b'{"messages":[]}\n')
    Store.open(output.with_name("more"), overwrite=overwrite).close()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "ending", [".errors.jsonl", ".errors.1.jsonl", ".summary.json", ".report.html", ".spending.json"]
)
def test_what_has_the_name_of_a_file_beside_the_output_may_be_the_output_of_another_job(
    ending, overwrite, output
):
    beside = JobPaths(output).beside(ending)
    if ending == ".errors.1.jsonl":
        JobPaths(output).errors.write_bytes(text(1, FAILED))
    beside.write_bytes(text(0))
    with pytest.raises(UsageError, match="is the output of another job, and has the name of a file beside"):
        Store.open(output, overwrite=overwrite)
    assert beside.read_bytes() == text(0)


def test_a_pipe_that_has_the_name_of_a_file_beside_the_output_is_not_waited_for(output):
    os.mkfifo(JobPaths(output).summary)
    Store.open(output).close()


def test_who_was_asked_again_is_told_once_of_each_though_some_failed_twice(output):
    paths = JobPaths(output)
    paths.errors.with_name("results.errors.1.jsonl").write_bytes(text(1, FAILED))
    second = b"".join(text(index, FAILED) for index in (3, 1, 2, 5, *range(7, 30)))
    paths.errors.with_name("results.errors.2.jsonl").write_bytes(second)
    store = Store.open(output)
    assert sorted(index for start, end in store.asked_again().intervals() for index in range(start, end)) == [
        1,
        2,
        3,
        5,
        *range(7, 30),
    ]
    store.close()


def test_superseded_failures_move_to_the_next_number_and_take_the_checkpoint_with_them(output):
    fill(output)
    store = Store.open(output)
    assert store.supersede_errors() == output.with_name("results.errors.1.jsonl")
    assert store.read_checkpoint() is None
    assert store.supersede_errors() is None
    store.append(line(2, FAILED))
    assert store.supersede_errors() == output.with_name("results.errors.2.jsonl")
    assert store.paths.superseded() == [output.with_name(f"results.errors.{n}.jsonl") for n in (1, 2)]
    assert [path.read_bytes() for path in store.paths.superseded()] == [text(1, FAILED), text(2, FAILED)]
    assert store.sizes == (len(text(0)), 0)
    store.close()


def test_superseded_failures_are_mended_first(output):
    errors = JobPaths(output).errors
    for ending, kept in (
        (text(1, FAILED)[:-1], text(0, FAILED) + text(1, FAILED)),
        (b"torn", text(0, FAILED)),
    ):
        errors.write_bytes(text(0, FAILED) + ending)
        store = Store.open(output)
        moved = store.supersede_errors()
        assert moved is not None
        assert moved.read_bytes() == kept
        assert len(store.notices) == 1
        store.close()


def test_a_file_is_replaced_in_one_step(store):
    path = store.paths.summary
    store.replace(path, b"old")
    with path.open("rb") as reader:
        store.replace(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert not list(path.parent.glob("*.tmp"))


def test_a_replacement_that_fails_leaves_the_old_file(store):
    path = store.paths.summary
    store.replace(path, b"old")
    path.with_name(path.name + ".tmp").mkdir()
    with pytest.raises(OutputUnwritable, match="summary"):
        store.replace(path, b"new")
    assert path.read_bytes() == b"old"


# --- the lock ------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from batchkit.store import Store
store = Store.open(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
store.close()
"""


@pytest.fixture
def holder(output):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_job_that_another_process_works_on_is_refused_with_its_pid(output, holder):
    for overwrite in (False, True):
        with pytest.raises(JobLocked, match=rf"process {holder.pid}\) is working on results"):
            Store.open(output, overwrite=overwrite)
    assert lock_holder(JobPaths(output)) == holder.pid
    assert not list(output.parent.glob("*.old-*"))


def test_a_killed_holder_holds_nothing(output, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert JobPaths(output).lock.exists()
    assert lock_holder(JobPaths(output)) is None
    Store.open(output).close()


def test_a_closed_store_leaves_no_lock(output):
    store = Store.open(output)
    with pytest.raises(JobLocked, match=f"process {os.getpid()}"):
        Store.open(output)
    store.close()
    assert not store.paths.lock.exists()
    assert lock_holder(store.paths) is None
    Store.open(output).close()


# --- outputs that cannot be ----------------------------------------------------------------------------------------


def test_an_output_that_is_no_file_is_wrong_usage(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/full"), Path("/dev/null")):
        with pytest.raises(UsageError, match="not a regular file"):
            Store.open(path)
    assert not Path("/dev/full.lock").exists()


def test_a_folder_that_is_a_file_is_wrong_usage(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write beside"):
        Store.open(tmp_path / "file" / "results.jsonl")


def test_an_errors_path_that_is_a_folder_is_wrong_usage_and_leaves_no_lock(output):
    JobPaths(output).errors.mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        Store.open(output)
    assert not JobPaths(output).lock.exists()


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import line
from batchkit.errors import OutputUnwritable
from batchkit.store import Store
store = Store.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
written = 0
try:
    while True:
        store.append(line(written))
        written += 1
except OutputUnwritable as error:
    print(written, store.sizes[0], error)
"""


def test_a_full_disk_is_told_and_the_file_still_ends_with_a_whole_line(output):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(output), str(Path(__file__).parent)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    count, size, message = done.stdout.decode().split(maxsplit=2)
    assert "File too large" in message
    assert output.stat().st_size == int(size) > 4000
    assert [each.outcome.index for each in read_output(output)] == list(range(int(count)))
    assert recovered(output)[1] == []
