"""A scan from both ends finds every line once, whatever becomes of the process that helps."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess

import pytest

from batchkit import scanning
from batchkit.errors import JobDamaged
from batchkit.formats.results import OutputLine, encode
from batchkit.outputs import read_output
from batchkit.records import Outcome, Reply, RunHeader
from batchkit.scanning import scan_from_both_ends

HEADER = RunHeader(1000.0, "http://x/v1", {}, "in.jsonl", 7)


def line(index):
    size = (1, 300, 40)[index % 3]
    reply = Reply(200, "r", b'{"choices":[{"message":{"content":"%b"}}]}' % (b"x" * size))
    outcome = Outcome(index, f"r{index}", reply, "t", 1, 0.5, 1.0, {}, index * 7919 % 2**32)
    return encode(OutputLine(outcome, "job", HEADER if index % 100 == 0 else None))


LINES = [line(index) for index in range(300)]


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


@pytest.fixture(params=[100, 700, 5000, 1 << 20])
def piece_bytes(request, monkeypatch):
    """Pieces shorter than a line, of a line or two, of many, and of all."""
    monkeypatch.setattr(scanning, "_PIECE_BYTES", request.param)
    return request.param


def found(scan):
    """Everything that a scan tells, sorted; and its size."""
    lines, headed, size = [], [], 0
    for part in scan:
        lines += zip(part.indexes, part.input_crc32s, strict=True)
        headed += part.headed
        size += part.size
    return sorted(lines), sorted(headed, key=lambda each: each.outcome.index), size


def read(path):
    lines = list(read_output(path))
    return (
        [(each.outcome.index, each.outcome.input_crc32) for each in lines],
        [each for each in lines if each.run is not None],
        path.read_bytes().rfind(b"\n") + 1,
    )


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Makes the process beside a scan send the last `pieces` of its file and then `more`; the processes that were started."""
    monkeypatch.setattr(scanning, "_WORTH_HELP_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    started = []

    def begin(pieces, more=b""):
        def start(path, size):
            sent = tmp_path / "sent"
            with sent.open("wb") as stream:
                count = -(-size // scanning._PIECE_BYTES)
                for number in reversed(range(max(0, count - pieces), count)):
                    scanning._send(scanning._joined(scanning._scan_piece(path, size, number)), stream)
                stream.write(more)
            process = subprocess.Popen(["cat", sent], stdout=subprocess.PIPE)
            process.wait()  # what it sends is less than a pipe takes
            started.append(process)
            return process

        monkeypatch.setattr(scanning, "_start", start)
        return started

    return begin


def test_a_small_output_is_scanned_here(output, piece_bytes, monkeypatch):
    monkeypatch.setattr(scanning, "_start", None)
    assert found(scan_from_both_ends(output)) == read(output)


def test_one_core_scans_alone(output, beside, monkeypatch):
    started = beside(pieces=1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert found(scan_from_both_ends(output)) == read(output)
    assert not started


def test_where_no_process_can_be_started_it_is_scanned_here(output, beside, monkeypatch):
    beside(pieces=1)

    def refuse(path, size):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(scanning, "_start", refuse)
    assert found(scan_from_both_ends(output)) == read(output)


def test_no_file_has_no_lines(tmp_path):
    assert found(scan_from_both_ends(tmp_path / "none")) == ([], [], 0)


@pytest.mark.parametrize("part", [LINES[7][:1], LINES[7][:-1]])
def test_a_line_that_is_still_being_written_is_left_out(output, piece_bytes, beside, part):
    whole = output.read_bytes()
    output.write_bytes(whole + part)
    for pieces in (0, 1, 1000):
        beside(pieces)
        assert found(scan_from_both_ends(output)) == read(output)


@pytest.mark.parametrize("pieces", [0, 1, 3, 1000])
@pytest.mark.parametrize(
    "more",
    [
        b"",
        b"\n",
        b"said by another at its start\n",
        *[
            len(said).to_bytes(8, "little") + said
            for said in (b"", b"[]\n", b"{}\n", b'{"lines":0', b'{"lines":9,"headed":0,"size":1}\n1234')
        ],
    ],
)
def test_what_the_other_process_did_not_send_is_read_here(output, piece_bytes, beside, pieces, more):
    (started := beside(pieces, more)).clear()
    assert found(scan_from_both_ends(output)) == read(output)
    assert [(process.returncode, process.stdout.closed) for process in started] == [(0, True)]


def test_what_the_other_process_sent_is_not_read_here(output, beside, monkeypatch):
    monkeypatch.setattr(scanning, "_PIECE_BYTES", 5000)
    beside(pieces=4)
    here, scan_piece = [], scanning._scan_piece

    def scan(path, size, number):
        here.append(number)
        return scan_piece(path, size, number)

    other = scanning._OtherEnd(output, output.stat().st_size)
    monkeypatch.setattr(scanning, "_OtherEnd", lambda *_: other)
    monkeypatch.setattr(scanning, "_scan_piece", scan)
    assert found(scan_from_both_ends(output)) == read(output)
    assert here == list(range(-(-output.stat().st_size // 5000) - 4))


def sent_by(path, number):
    """The bytes in which a process sends that piece of the file."""
    stream = io.BytesIO()
    scanning._send(scanning._joined(scanning._scan_piece(path, path.stat().st_size, number)), stream)
    return stream.getvalue()


@pytest.mark.parametrize("cut", [0, 3, 8, 20, -1])
def test_a_process_that_stops_amid_what_it_sends_is_not_waited_for(output, beside, monkeypatch, cut):
    beside(pieces=0)
    monkeypatch.setattr(scanning, "_PIECE_BYTES", 5000)
    stopped = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with stopped.stdin:
        last = (output.stat().st_size - 1) // 5000
        stopped.stdin.write(sent_by(output, last) + sent_by(output, last - 1)[:cut])
        stopped.stdin.flush()
        select.select([stopped.stdout], [], [])
        monkeypatch.setattr(scanning, "_start", lambda *_: stopped)
        assert found(scan_from_both_ends(output)) == read(output)
    assert stopped.returncode == -signal.SIGKILL


def test_a_scan_that_is_closed_early_ends_the_other_process(output, beside, monkeypatch):
    beside(pieces=0)
    silent = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    monkeypatch.setattr(scanning, "_start", lambda *_: silent)
    with silent.stdin:
        scan = scan_from_both_ends(output)
        next(scan)
        scan.close()
    assert silent.returncode == -signal.SIGKILL


def test_the_first_damage_is_named_whoever_meets_it(output, piece_bytes, beside):
    data = bytearray(output.read_bytes())
    first = sum(map(len, LINES[:120]))
    data[first + 30] ^= 1
    data[sum(map(len, LINES[:150])) + 30] ^= 1
    output.write_bytes(data)
    started = beside(pieces=1) if piece_bytes < 10_000 else beside(pieces=0)
    with pytest.raises(JobDamaged, match=f"{output} is damaged in the line at byte {first:,}: its checksum"):
        list(scan_from_both_ends(output))
    assert started[0].stdout.closed


# --- the process ---------------------------------------------------------------------------------------------------


def received(process):
    """What a process sends until it ends."""
    parts = []
    with process:
        while length := process.stdout.read(scanning._LENGTH_BYTES):
            parts.append(scanning._decoded(process.stdout.read(int.from_bytes(length, "little"))))
    return parts


@pytest.fixture
def large(tmp_path):
    """An output of several pieces, and how many."""
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join(LINES) * (3 * scanning._PIECE_BYTES // len(b"".join(LINES))))
    return path, 3


def test_it_sends_all_pieces_from_the_last_on(large):
    path, pieces = large
    parts = received(scanning._start(path, path.stat().st_size))
    assert len(parts) == pieces
    assert [index for part in reversed(parts) for index in part.indexes] == [
        each.outcome.index for each in read_output(path)
    ]
    assert sum(part.size for part in parts) == path.stat().st_size


def test_it_ends_at_damage_so_that_whoever_started_it_finds_the_same(large):
    path, _ = large
    with path.open("r+b") as stream:
        stream.seek(scanning._PIECE_BYTES * 3 // 2)
        stream.write(b"?")
    assert len(received(process := scanning._start(path, path.stat().st_size))) == 1
    assert process.returncode != 0


def test_it_ends_when_nobody_is_left_to_listen(large):
    path, _ = large
    process = scanning._start(path, path.stat().st_size)
    process.stdout.close()
    assert process.wait(60) != 0
