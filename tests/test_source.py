"""Lines from files, pipes and compressed files: the same, however they arrive."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
from functools import partial
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import anyio
import pytest
from hypothesis import given, strategies as st

from batchkit.errors import RunStopped, UsageError
from batchkit.records import Line
from batchkit.source import InputIdentity, LineSplitter, Source

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BOM = b"\xef\xbb\xbf"
MESSY = BOM + b'{"a":0}\r\n\n  \t\r\n{"b":"\xe2\x80\xa8\xc2\x85\x0b\x0c"}\n\r\n\xff\xfe bad\n{"last":1}'
MESSY_LINES = [
    Line(0, 0, b'{"a":0}'),
    Line(3, 18, b'{"b":"\xe2\x80\xa8\xc2\x85\x0b\x0c"}'),
    Line(5, 36, b"\xff\xfe bad"),
    Line(6, 43, b'{"last":1}'),
]

parts = st.sampled_from(
    [b"\n", b"\r\n", b" ", BOM, b"a", b'{"x":1}', b"\xe2\x80\xa8", b"\xff", b"long " * 5, b"\x0b\x0c\x85"]
)
inputs = st.lists(parts, max_size=30).map(b"".join)


def whole(data, **more):
    splitter = LineSplitter(**more)
    return splitter.feed(data) + splitter.feed(b"")


async def batched(source, index=0, offset=0, least=1):
    return [line async for batch in source.batches(index, offset, least=least) for line in batch]


@given(inputs, st.lists(st.integers(0, 200)))
def test_pieces_of_any_size_give_the_same_lines(data, cuts):
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    splitter, lines = LineSplitter(max_line_bytes=12), []
    for start, end in pairwise(edges):
        lines += splitter.feed(data[start:end])
    assert lines + splitter.feed(b"") == whole(data, max_line_bytes=12)


@given(inputs, st.lists(st.integers(0, 200)))
def test_whether_a_line_is_blank_can_be_told_without_keeping_it(data, cuts):
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    pieces = [piece for piece in pieces if piece] + [b""]

    def blank(splitter):
        return [raw if raw is None else not raw for piece in pieces for raw in splitter.cut(piece)[0]]

    only = LineSplitter(max_line_bytes=12, only_blankness=True)
    assert blank(only) == blank(LineSplitter(max_line_bytes=12))


@given(inputs)
def test_indexes_count_newlines_and_offsets_point_at_the_line(data):
    expected, offset = [], 0
    for index, raw in enumerate(data.split(b"\n")):
        kept = (raw.removeprefix(BOM) if index == 0 else raw).strip()
        if kept:
            expected.append(Line(index, offset, kept))
        offset += len(raw) + 1
    assert whole(data) == expected


@given(inputs)
def test_reading_on_from_any_line_gives_the_lines_from_there(data):
    lines = whole(data)
    for number, line in enumerate(lines):
        assert whole(data[line.offset :], index=line.index, offset=line.offset) == lines[number:]


@given(inputs)
def test_the_position_between_pieces_is_a_place_to_read_on_from(data):
    splitter = LineSplitter()
    seen = splitter.feed(data)
    index, offset = splitter.position
    assert seen + whole(data[offset:], index=index, offset=offset) == whole(data)


def test_a_line_over_the_cap_is_told_but_not_kept():
    data = b"a" * 10 + b"\n" + b"b" * 11 + b"\n" + b"c" * 10
    assert whole(data, max_line_bytes=10) == [
        Line(0, 0, b"a" * 10),
        Line(1, 11, None),
        Line(2, 23, b"c" * 10),
    ]


def test_a_line_over_the_cap_takes_no_memory():
    splitter, piece = LineSplitter(max_line_bytes=1 << 20), b"x" * (1 << 16)
    tracemalloc.start()
    for _ in range(2000):
        assert splitter.feed(piece) == []
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()
    assert splitter.feed(b"\n{}\n") == [Line(0, 0, None), Line(1, 2000 * len(piece) + 1, b"{}")]


def test_a_line_of_which_only_blankness_is_kept_takes_no_memory():
    splitter, piece = LineSplitter(only_blankness=True), b"x" * (1 << 16)
    tracemalloc.start()
    for _ in range(1000):
        assert splitter.cut(piece) == ([], [])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    raws, sizes = splitter.cut(b"\n \n")
    assert ([bool(raw) for raw in raws], sizes) == ([True, False], [1000 * len(piece) + 1, 2])


def written(folder, data, name="in.jsonl"):
    path = folder / name
    path.write_bytes(data)
    return Source(str(path))


CODECS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip in members": lambda data: b"".join(
        gzip.compress(data[at : at + 7]) for at in range(0, len(data), 7)
    ),
    "zstd": zstd.compress,
    "zstd in frames": lambda data: b"".join(
        zstd.compress(data[at : at + 7]) for at in range(0, len(data), 7)
    ),
}


@pytest.mark.parametrize("codec", CODECS)
async def test_a_file_is_read_as_it_is_recognised_by_its_first_bytes(tmp_path, codec):
    source = written(tmp_path, CODECS[codec](MESSY))
    assert list(source.lines()) == MESSY_LINES
    assert await batched(source) == MESSY_LINES
    assert await source.count() == 4


@pytest.mark.parametrize("data", [MESSY, MESSY + b"\n", b"", b"\n\n", b"a\n" * 200_000])
async def test_checksums_are_those_of_the_lines_and_0_of_blank_ones(tmp_path, data):
    source = written(tmp_path, data)
    expected = [0] * (data.count(b"\n") + (not data.endswith(b"\n") and data != b""))
    offsets = {}
    for line in source.lines():
        expected[line.index] = crc32(line.raw)
        offsets[line.index] = line.offset
    found = []
    async for index, offset, checksums in source.checksums():
        assert index == len(found)
        assert offsets.get(index, offset) == offset
        found += checksums
    assert found == expected
    assert await source.count() == len(offsets)


async def test_the_checksum_of_a_line_over_the_cap_is_0(tmp_path, monkeypatch):
    monkeypatch.setattr("batchkit.source.LineSplitter", partial(LineSplitter, max_line_bytes=10))
    source = written(tmp_path, b"a" * 11 + b"\nb\n")
    assert [list(checksums) for _, _, checksums in [each async for each in source.checksums()]] == [
        [0, crc32(b"b")],
        [],
    ]


@pytest.mark.parametrize("codec", CODECS)
async def test_reading_on_gives_the_same_lines_from_there(tmp_path, codec):
    data = b"".join(b'{"n":%d}\n' % n + b"\n" * (n % 3) for n in range(50_000))
    source = written(tmp_path, (CODECS[codec] if "in" not in codec.split() else CODECS["plain"])(data))
    lines = await batched(source)
    assert len(lines) == await source.count() == 50_000
    for number in (0, 1, 2, 777, 49_999):
        assert await batched(source, lines[number].index, lines[number].offset) == lines[number:]


@pytest.mark.parametrize("data", [b"", b"\n\n \n", BOM, BOM + b"\n"])
async def test_an_empty_input_has_no_lines(tmp_path, data):
    source = written(tmp_path, data)
    assert await batched(source) == list(source.lines()) == []
    assert await source.count() == 0


async def test_as_many_lines_come_at_a_time_as_are_asked_for(tmp_path):
    source = written(tmp_path, b"".join(b'{"a":%d,"b":"%b"}\n' % (n, b"x" * 1000) for n in range(3000)))
    sizes = [len(batch) async for batch in source.batches(least=700)]
    assert sum(sizes) == 3000
    assert all(700 <= size < 1000 for size in sizes[:-1])
    assert await batched(source, least=700) == await batched(source) == list(source.lines())


async def test_fewer_lines_come_at_a_time_where_they_are_long(tmp_path):
    source = written(tmp_path, b"".join(b"%d%b\n" % (n % 10, b"x" * 300_000) for n in range(30)))
    batches = [batch async for batch in source.batches(least=1000)]
    assert sum(map(len, batches)) == 30
    assert max(sum(len(line.raw) for line in batch) for batch in batches) < 3_000_000


@pytest.mark.parametrize("codec", [bytes, gzip.compress, zstd.compress])
async def test_a_compressed_file_gives_as_many_lines_at_a_time(tmp_path, codec):
    """A piece of what is compressed holds far fewer of them than one of a plain file."""
    text = [os.urandom(300).hex().encode() for _ in range(5000)]
    source = written(tmp_path, codec(b"\n".join(text)))
    sizes = [len(batch) async for batch in source.batches(least=2000)]
    assert sum(sizes) == 5000
    assert min(sizes[:-1]) >= 2000


@pytest.mark.parametrize("least", [1, 100_000])
@pytest.mark.parametrize("codec", [gzip.compress, zstd.compress])
async def test_a_cut_compressed_file_stops_the_run_after_what_could_be_read(tmp_path, codec, least):
    data = os.urandom(600_000).hex().encode().replace(b"00", b"\n")
    source = written(tmp_path, codec(data)[:-100_000])
    read = []

    async def read_all():
        async for batch in source.batches(least=least):
            read.extend(batch)

    with pytest.raises(RunStopped, match=r"cannot read the input .* beyond line") as stopped:
        await read_all()
    assert stopped.value.code == "input_unreadable"
    assert read == whole(data)[: len(read)]
    assert read


def zstd_with_checksum(data):
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


@pytest.mark.parametrize("codec", [gzip.compress, zstd_with_checksum])
async def test_a_broken_compressed_file_stops_the_run(tmp_path, codec):
    good = bytearray(codec(os.urandom(100_000).hex().encode() + b"\n"))
    for place in range(20, len(good), len(good) // 50):
        broken = bytearray(good)
        broken[place : place + 8] = b"\xff\x00\xff\x00\xff\x00\xff\x00"
        source = written(tmp_path, bytes(broken))
        with pytest.raises(RunStopped):
            await batched(source)
        with pytest.raises(UsageError, match="Nothing was sent"):
            list(source.lines())


def test_a_missing_file_and_a_folder_are_wrong_usage(tmp_path):
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=reason):
            Source(str(path)).identify()
    with pytest.raises(UsageError, match="No such file"):
        list(Source(str(tmp_path / "none")).lines())


def test_an_input_that_a_lost_folder_leads_to_cannot_be_read(tmp_path, monkeypatch):
    written(tmp_path, b"{}\n")
    (tmp_path / "lost").mkdir()
    monkeypatch.chdir(tmp_path / "lost")
    (tmp_path / "lost").rmdir()
    with pytest.raises(UsageError, match="cannot read the input"):
        Source("../in.jsonl").identify()


def test_an_input_is_told_by_path_size_and_time(tmp_path, monkeypatch):
    source = written(tmp_path, b"{}\n")
    status = Path(source.path).stat()
    assert source.identify() == InputIdentity(source.path, 3, status.st_mtime_ns)
    monkeypatch.chdir(tmp_path)
    assert Source("in.jsonl").identify() == source.identify()
    with Path(os.devnull).open() as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        assert Source("-").identify() == InputIdentity("-")
    os.mkfifo(tmp_path / "pipe")
    assert Source(str(tmp_path / "pipe")).identify() == InputIdentity(str(tmp_path / "pipe"))


READER = """
import asyncio, sys
from batchkit.source import Source
async def main():
    async for batch in Source("-").batches(*map(int, sys.argv[1:])):
        for line in batch:
            print(line.index, line.offset, len(line.raw), flush=True)
asyncio.run(main())
"""


def read_stdin(*args, **how):
    return subprocess.run(
        [sys.executable, "-c", READER, *args], capture_output=True, timeout=30, check=False, **how
    )


EXPECTED = [f"{line.index} {line.offset} {len(line.raw or b'')}" for line in MESSY_LINES]


@pytest.mark.parametrize("codec", CODECS)
def test_stdin_is_read_from_a_pipe(codec):
    assert read_stdin(input=CODECS[codec](MESSY)).stdout.decode().splitlines() == EXPECTED


def test_stdin_is_read_from_a_file(tmp_path):
    source = written(tmp_path, MESSY)
    with Path(source.path).open("rb") as stream:
        assert read_stdin(stdin=stream).stdout.decode().splitlines() == EXPECTED


def test_going_on_from_stdin_leaves_out_what_was_done():
    assert read_stdin("5", "36", input=MESSY).stdout.decode().splitlines() == EXPECTED[2:]


def test_nothing_on_stdin_is_an_empty_input():
    done = read_stdin(stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, b"")


def test_without_a_stdin_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for read in (Source("-").identify, lambda: list(Source("-").lines())):
        with pytest.raises(UsageError, match="no standard input"):
            read()


class _Stdin:
    def __init__(self, descriptor):
        self.descriptor = descriptor

    def fileno(self):
        return self.descriptor


@pytest.fixture
def stdin_pipe(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", _Stdin(reader))
    yield writer
    os.close(reader)
    os.close(writer)


async def test_a_line_of_a_pipe_is_there_before_the_next_is_written(stdin_pipe):
    batches = Source("-").batches()
    with anyio.fail_after(5):
        for number in range(3):
            os.write(stdin_pipe, b"{}\n")
            assert await anext(batches) == [Line(number, 3 * number, b"{}")]
    await batches.aclose()


async def test_a_run_that_stops_does_not_wait_for_whoever_writes_to_the_pipe(stdin_pipe):
    with anyio.fail_after(5), anyio.move_on_after(0.05) as scope:
        await batched(Source("-"))
    assert scope.cancelled_caught
