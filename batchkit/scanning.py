"""Scans a large output from both its ends: here from the beginning, in a process of its own from the end.

A job that goes on without its checkpoint can send nothing before the scan is through. The two meet wherever each has got
to. Neither waits for the other, and the other process need not start, or live: what it has not sent is read here. So it
also ends at damage, without a word.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from array import array
from collections.abc import Generator, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import orjson

from batchkit.child import start
from batchkit.formats.results import OutputLine, decode, encode
from batchkit.outputs import ScannedLines, scan_output

__all__ = ["main", "scan_from_both_ends"]

_PIECE_BYTES: Final = 4 << 20
_WORTH_HELP_BYTES: Final = 64 << 20
"""A smaller file is scanned before another process has started."""
_TAKEN_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 8
"""What stands before each piece that is sent: how long it is."""


def scan_from_both_ends(path: Path) -> Generator[ScannedLines]:
    """All whole lines of one output file, some thousands at a time and in no order, each checked but none read as JSON.

    A file that does not exist has no lines. Raises JobDamaged at the first broken line. Closed early, it ends the other process.
    """
    size = path.stat().st_size if path.exists() else 0
    ahead, behind = 0, -(-size // _PIECE_BYTES)
    with _OtherEnd(path, size) as other:
        while ahead < behind:
            parts = []
            for lines in _scan_piece(path, size, ahead):
                parts.append(lines)
                # Asked often, because it waits while what it sends is not taken.
                while behind - 1 > ahead and (found := other.next()) is not None:
                    behind -= 1
                    yield found
            yield _joined(parts)
            ahead += 1


class _OtherEnd:
    """What another process finds, from the last piece of the file on."""

    def __init__(self, path: Path, size: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = select.poll()
        self._taken = bytearray()
        if size >= _WORTH_HELP_BYTES and (os.cpu_count() or 1) > 1:
            try:
                self._process = _start(path, size)
            except OSError:
                return
            assert self._process.stdout is not None
            self._pipe = self._process.stdout.fileno()
            self._ready.register(self._pipe, select.POLLIN)

    def next(self) -> ScannedLines | None:
        """The lines of the next piece; None if they are not there, or never will be."""
        while self._process is not None:
            length = int.from_bytes(self._taken[:_LENGTH_BYTES], "little")
            if _LENGTH_BYTES + length <= len(self._taken):
                return self._cut_off(length)
            # A process that was stopped amid what it sends would be waited for by whoever reads on.
            if not self._ready.poll(0):
                return None
            piece = os.read(self._pipe, _TAKEN_BYTES)
            self._taken += piece
            if not piece:
                self._end()
        return None

    def _cut_off(self, length: int) -> ScannedLines | None:
        data = bytes(self._taken[_LENGTH_BYTES : _LENGTH_BYTES + length])
        del self._taken[: _LENGTH_BYTES + length]
        try:
            return _decoded(data)
        except (EOFError, ValueError, KeyError, TypeError):
            self._end()
            return None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _start(path: Path, size: int) -> subprocess.Popen[bytes]:
    return start("batchkit.scanning", str(path), str(size), stdin=subprocess.DEVNULL)


def main() -> None:
    """What the process does: a path and its size as arguments, the file's pieces from the last on to stdout."""
    path, size = Path(sys.argv[1]), int(sys.argv[2])
    for number in reversed(range(-(-size // _PIECE_BYTES))):
        _send(_joined(_scan_piece(path, size, number)), sys.stdout.buffer)


def _send(lines: ScannedLines, stream: IO[bytes]) -> None:
    head = {"lines": len(lines.indexes), "headed": len(lines.headed), "size": lines.size}
    parts = [orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE), *map(encode, lines.headed)]
    parts += [array("Q", lines.indexes).tobytes(), lines.input_crc32s.tobytes()]
    stream.write(sum(map(len, parts)).to_bytes(_LENGTH_BYTES, "little"))
    stream.writelines(parts)
    stream.flush()


def _decoded(data: bytes) -> ScannedLines:
    """What `_send` sent, without its length. Raises EOFError, ValueError, KeyError or TypeError for anything else."""
    stream = BytesIO(data)
    head = orjson.loads(stream.readline())
    headed = [decode(stream.readline()[:-1]) for _ in range(head["headed"])]
    indexes, input_crc32s = array("Q"), array("I")
    indexes.frombytes(stream.read(head["lines"] * indexes.itemsize))
    input_crc32s.frombytes(stream.read())
    if not len(indexes) == len(input_crc32s) == head["lines"]:
        raise EOFError("it ends too early")
    return ScannedLines(indexes, input_crc32s, headed, head["size"])


def _scan_piece(path: Path, size: int, number: int) -> Iterator[ScannedLines]:
    """The lines that begin in a piece of the file; `size` is that of the file."""
    with path.open("rb") as stream:
        start, end = (_line_from(stream, min(at * _PIECE_BYTES, size)) for at in (number, number + 1))
    return scan_output(path, start, end)


def _line_from(stream: IO[bytes], at: int) -> int:
    """Where the first line begins that does so at byte `at` or behind it."""
    if not at:
        return 0
    stream.seek(at - 1)
    return at - 1 + len(stream.readline())


def _joined(parts: Iterable[ScannedLines]) -> ScannedLines:
    indexes, input_crc32s = array("Q"), array("I")
    headed: list[OutputLine] = []
    size = 0
    for part in parts:
        indexes.extend(part.indexes)
        input_crc32s.extend(part.input_crc32s)
        headed += part.headed
        size += part.size
    return ScannedLines(indexes, input_crc32s, headed, size)


if __name__ == "__main__":
    main()
