"""The output files, read without their JSON: every line, and the place of every damage."""

from __future__ import annotations

import os
from errno import EIO
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from batchkit import outputs
from batchkit.errors import JobDamaged, UsageError
from batchkit.formats.checkpoint import encode_checkpoint
from batchkit.formats.results import OutputLine, encode
from batchkit.outputs import JobPaths, check_output, read_output, scan_output, together
from batchkit.records import Failure, FailureKind, Outcome, Reply, RunHeader
from batchkit.state import JobState

HEADER = RunHeader(1000.0, "http://x/v1", {}, "in.jsonl", 7)
TRAP = b',"batchkit":{"index":7,"input_crc32":"00000000","run":{}}'


def line(index, *, size=0, trap=b"", run=None):
    body = b'{"choices":[{"message":{"content":"%b"}}]%b}' % (b"x" * size, trap)
    reply = Reply(200, "r", body)
    return encode(
        OutputLine(Outcome(index, f"r{index}", reply, "t", 1, 0.5, 1.0, {}, index * 7919 % 2**32), "job", run)
    )


@pytest.fixture(params=[2, 700, 1 << 17])
def output(request, tmp_path, monkeypatch):
    """A path; what is read at a time is less than a line, a line or two, and many."""
    monkeypatch.setattr(outputs, "_SCANNED_BYTES", request.param)
    return tmp_path / "results.jsonl"


def scanned(path, *span):
    """All that a scan tells, with how many bytes it read."""
    indexes, input_crc32s, headed, size = [], [], [], 0
    for lines in scan_output(path, *span):
        indexes += lines.indexes
        input_crc32s += lines.input_crc32s
        headed += lines.headed
        assert lines.size > 0
        size += lines.size
    return indexes, input_crc32s, headed, size


LINES = [
    line(9, run=HEADER),
    line(10, size=2000),
    line(3, trap=TRAP),
    line(100_000_000),
    line(0, trap=TRAP * 20, run=HEADER),
]


def test_a_scan_tells_what_reading_tells(output):
    output.write_bytes(b"".join(LINES))
    read = list(read_output(output))
    assert scanned(output) == (
        [each.outcome.index for each in read],
        [each.outcome.input_crc32 for each in read],
        [each for each in read if each.run is not None],
        output.stat().st_size,
    )
    check_output(output)


def test_a_scan_ends_with_the_last_whole_line_before_the_byte_it_is_told(output):
    whole = b"".join(LINES)
    output.write_bytes(whole)
    near = {sum(map(len, LINES[:at])) + by for at in range(len(LINES) + 1) for by in (-1, 0, 1)}
    for end in near.union(range(0, len(whole), 101)) - {-1}:
        count = whole[:end].count(b"\n")
        assert scanned(output, 0, end)[::3] == (
            [9, 10, 3, 100_000_000, 0][:count],
            sum(map(len, LINES[:count])),
        )


def test_a_line_that_is_still_being_written_is_left_out(output):
    for part in (b"", LINES[1][:1], LINES[1][:-1]):
        output.write_bytes(LINES[0] + part)
        assert scanned(output)[::3] == ([9], len(LINES[0]))
        check_output(output)


def test_a_scan_begins_at_the_line_it_is_told(output):
    output.write_bytes(b"".join(LINES))
    assert scanned(output, len(LINES[0]))[0] == [10, 3, 100_000_000, 0]


def test_lines_that_are_added_while_a_scan_reads_are_left_out(output):
    output.write_bytes(b"".join(LINES))
    scan = scan_output(output)
    indexes = next(scan).indexes
    with output.open("ab") as stream:
        stream.write(line(5))
    assert indexes + [index for lines in scan for index in lines.indexes] == [9, 10, 3, 100_000_000, 0]


def test_no_file_has_no_lines(output):
    assert scanned(output) == ([], [], [], 0)
    check_output(output)


@pytest.mark.parametrize("look", [check_output, lambda path: list(scan_output(path))])
def test_damage_is_named_by_the_byte_where_its_line_begins(output, look):
    for at in range(len(LINES)):
        before = sum(map(len, LINES[:at]))
        for place in (0, len(LINES[at]) // 2, len(LINES[at]) - 13):
            data = bytearray(b"".join(LINES))
            data[before + place] ^= 1
            output.write_bytes(data)
            with pytest.raises(
                JobDamaged, match=f"in the line at byte {before:,}: its checksum does not match"
            ):
                look(output)


def heard(custom_id="a", body=None, run=None):
    failed = Failure(FailureKind.TIMEOUT, "timeout", "too slow", body=body)
    return OutputLine(Outcome(0, custom_id, failed, "t", 1, 0.5, 1.0), "job", run)


@given(st.lists(st.booleans(), max_size=300))
def test_lines_that_are_read_together_are_all_in_their_order_and_a_header_is_the_first(headed):
    lines = [heard(str(at), run=HEADER if each else None) for at, each in enumerate(headed)]
    parts = list(together(lines))
    assert [line for part in parts for line in part] == lines
    assert all(0 < len(part) <= 64 for part in parts)
    assert all(line.run is None for part in parts for line in part[1:])
    assert len(parts) <= len(lines) // 64 + sum(headed) + 1


@pytest.mark.parametrize("long", [heard(body=b"x" * (600 << 10)), heard("x" * (600 << 10))])
def test_long_lines_are_handed_on_before_more_are_read(long):
    read = []
    parts = together(read.append(at) or long for at in range(5))
    for count in (2, 4):
        assert len(next(parts)) == 2
        assert len(read) == count
    assert [len(part) for part in parts] == [1]


class BrokenBehind:
    """A file of which the disk gives one line."""

    def __init__(self, stream):
        self._stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def seek(self, offset):
        return self._stream.seek(offset)

    def __iter__(self):
        yield self._stream.readline()
        raise OSError(EIO, os.strerror(EIO))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        bytes(100),
        line(0)[:3],
        line(0)[:9] + bytes(20),
        line(0)[:-30],
        b"\x00" + line(0)[1:],
        b"x" * 3_000_000 + b"\n" + line(0),
    ],
    ids=["empty", "blank", "zeros", "torn early", "torn and zeros", "torn", "one bit", "behind damage"],
)
def test_an_output_is_ours_in_whatever_state(content, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    JobPaths(path).refuse_foreign()


@pytest.mark.parametrize(
    "content",
    [
        b'{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "batch_req_"}]}}\n' * 3,
        b'{"id": "batch_req_67a1", "custom_id": "a", "response": {"status_code": 200}, "error": null}\n',
        b'{"id":"batch_req_67923fb2e27881908df094a5093ae17d","custom_id":"a","response":null,"error":null}\n',
        b"%PDF-1.7",
        b"a,b\n" * 100_000,
        bytes(40_000) + b"CD001",
    ],
    ids=["input", "OpenAI's", "OpenAI's, compact", "PDF", "CSV", "ISO"],
)
def test_a_file_that_batchkit_never_wrote_is_not_taken_for_an_output(content, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no output of batchkit") as refused:
        JobPaths(path).refuse_foreign()
    # It may be anything, a file of keys too.
    assert content[-5:].decode() not in str(refused.value)
    for name in ("other.errors.jsonl", "other.errors.1.jsonl"):
        beside = path.rename(tmp_path / name)
        with pytest.raises(
            UsageError, match=f"{name} is no file beside the output .*other.jsonl of batchkit"
        ):
            JobPaths(tmp_path / "other.jsonl").refuse_foreign()
        path = beside


@pytest.mark.parametrize("name", ["", "/", ".", "..", "new/", "-", "a\0b", "a" * 201])
def test_what_is_no_name_for_a_file_is_wrong_usage(name):
    with pytest.raises(UsageError, match=r"cannot be the name of an output; name a file, as results\.jsonl"):
        JobPaths.of(name)


def test_an_output_that_cannot_be_looked_at_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"cannot look at .*: File name too long"):
        JobPaths.of(tmp_path / ("a" * 300) / "results.jsonl")


def test_what_is_not_ours_beside_a_job_is_damage_that_can_be_repaired(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(line(0))
    for name in ("results.errors.jsonl", "results.errors.1.jsonl"):
        (tmp_path / name).write_bytes(b"not a line\n")
    JobPaths(tmp_path / "results.jsonl").refuse_foreign()
    # So too where all requests of the job have failed.
    (tmp_path / "results.jsonl").write_bytes(b"")
    (tmp_path / "results.checkpoint.json").write_bytes(encode_checkpoint(JobState().standing()))
    JobPaths(tmp_path / "results.jsonl").refuse_foreign()


def test_an_output_that_cannot_be_read_is_said_to_be_one(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line(0) * 2)
    reading = Path.open

    def broken(self, *words, **flags):
        raise OSError(EIO, os.strerror(EIO))

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(UsageError, match=r"cannot read .*results\.jsonl: Input/output error"):
        JobPaths(path).refuse_foreign()
    for read in (read_output, scan_output, lambda path: iter([check_output(path)])):
        with pytest.raises(JobDamaged, match=r"results\.jsonl cannot be read: Input/output error"):
            next(read(path))

    def broken_behind_one(self, *words, **flags):
        stream = reading(self, *words, **flags)
        monkeypatch.setattr(Path, "open", reading)
        return BrokenBehind(stream)

    monkeypatch.setattr(Path, "open", broken_behind_one)
    lines = read_output(path)
    assert next(lines).outcome.index == 0
    with pytest.raises(JobDamaged, match="cannot be read"):
        next(lines)


def test_failures_of_a_job_are_no_output_of_their_own(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line(0))
    (tmp_path / "link.jsonl").symlink_to("a.errors.jsonl")
    for name in ("a.errors.jsonl", "a.errors.12.jsonl", "link.jsonl"):
        with pytest.raises(UsageError, match=r"the output .*a\.jsonl; name that"):
            JobPaths(tmp_path / name).refuse_foreign()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.errors.jsonl").symlink_to("elsewhere/e.jsonl")
    with pytest.raises(UsageError, match="name that"):
        JobPaths(tmp_path / "a.errors.jsonl").refuse_foreign()
    for job in ("c.ndjson", "d.json", "e.txt", "f"):
        (tmp_path / job).write_bytes(line(0))
        with pytest.raises(UsageError, match="name that"):
            JobPaths(JobPaths(tmp_path / job).errors).refuse_foreign()
    # A neighbour that is no job, as a job's own input, is no reason.
    (tmp_path / "g.jsonl").write_bytes(b'{"messages": []}\n')
    (tmp_path / "h.jsonl").mkdir()
    for name in ("g.errors.jsonl", "h.errors.jsonl"):
        JobPaths(tmp_path / name).refuse_foreign()
    for name in ("b.errors.jsonl", "a.errors.x.jsonl", ".errors.jsonl"):
        JobPaths(tmp_path / name).refuse_foreign()
