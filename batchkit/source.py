r"""The input: files, stdin, gzip and zstd to lines with their index and byte offset.

The input is read in pieces in a worker thread and never held whole: memory is one piece plus the longest line, however
long the input. Lines end at the byte `\n` and nowhere else; blank lines are skipped but keep their number, so an index
never moves. A piece's lines travel together as one list: handing over single lines would cost more than reading them.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from anyio import to_thread, wait_readable

from batchkit.errors import RunStopped, UsageError
from batchkit.formats.requests import MAX_LINE_BYTES
from batchkit.records import Line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["InputIdentity", "LineSplitter", "Source"]

_PIECE = 256 * 1024
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class InputIdentity:
    """What tells an input from another without reading it. `size` and `mtime_ns` are None for stdin and pipes."""

    path: str
    size: int | None = None
    mtime_ns: int | None = None


class LineSplitter:
    """Pieces of bytes in, lines out. `index` and `offset` are those of the first line to come."""

    def __init__(self, index: int = 0, offset: int = 0, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._index = index
        self._offset = offset
        self._max = max_line_bytes
        self._rest: list[bytes] = []
        self._rest_size = 0

    def feed(self, piece: bytes) -> list[Line]:
        """The lines that `piece` completes."""
        *complete, rest = piece.split(b"\n")
        lines = []
        for part in complete:
            line = self._line(part)
            if line is not None:
                lines.append(line)
        if rest:
            self._keep(rest)
        return lines

    def finish(self) -> list[Line]:
        """The last line, where the input ends without a newline."""
        if not self._rest_size:
            return []
        line = self._line(b"")
        return [] if line is None else [line]

    @property
    def position(self) -> tuple[int, int]:
        """Index and byte offset of the line that comes next."""
        return self._index, self._offset

    def _keep(self, rest: bytes) -> None:
        self._rest_size += len(rest)
        if self._rest_size <= self._max:
            self._rest.append(rest)
        else:
            # Too long to be a request: its bytes are counted, not kept.
            self._rest.clear()

    def _line(self, last: bytes) -> Line | None:
        size = self._rest_size + len(last)
        raw: bytes | None
        if size > self._max:
            raw = None
        else:
            raw = b"".join((*self._rest, last)) if self._rest else last
            if self._index == 0 and raw.startswith(_BOM):
                raw = raw[len(_BOM) :]
            raw = raw.strip()
        index, offset = self._index, self._offset
        self._index += 1
        self._offset += size + 1
        self._rest.clear()
        self._rest_size = 0
        return None if raw == b"" else Line(index, offset, raw)


class Source:
    """One input: a path, or `-` for stdin.

    Raises UsageError where the input cannot be opened and RunStopped where it cannot be read on. `in_thread` does what
    blocks beside the event loop.
    """

    def __init__(
        self, path: str, *, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] = to_thread.run_sync
    ) -> None:
        self.path = path
        self._in_thread = in_thread

    @property
    def is_stdin(self) -> bool:
        return self.path == "-"

    def identify(self) -> InputIdentity:
        """Path, size and time of change, as they are now."""
        if self.is_stdin:
            return InputIdentity("-")
        try:
            status = os.stat(self.path)  # noqa: PTH116 - one call, no object
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"cannot read the input {self.path[:200]!r}: {why}") from error
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"the input {self.path} is a folder; name the JSONL file in it")
        if not stat.S_ISREG(status.st_mode):
            return InputIdentity(self.path)
        return InputIdentity(os.path.abspath(self.path), status.st_size, status.st_mtime_ns)  # noqa: PTH100 - a string

    async def batches(self, index: int = 0, offset: int = 0) -> AsyncIterator[list[Line]]:
        """The lines from the one at `index`, which begins at byte `offset`, a piece's worth at a time.

        A compressed input or a pipe is read from its beginning all the same, and lines before `index` are left out.
        """
        stdin = _stdin() if self.is_stdin else None
        if stdin is not None and not _can_stall(stdin):
            stdin = None
        lines = self._lines(index, offset)
        with closing(lines):
            while True:
                if stdin is not None:
                    # Whoever writes there may take for ever, and no thread can be called back from a read.
                    await wait_readable(stdin)
                batch = await self._in_thread(partial(next, lines, None))
                if batch is None:
                    return
                if batch:
                    yield batch

    def lines(self) -> Iterator[Line]:
        """All lines, read in this thread."""
        for batch in self._lines(0, 0):
            yield from batch

    async def count(self) -> int:
        """How many requests the whole input holds: its lines that are not blank. Reads all of it."""
        pieces = self._lines(0, 0)
        total = 0
        with closing(pieces):
            while (batch := await self._in_thread(partial(next, pieces, None))) is not None:
                total += len(batch)
        return total

    def _lines(self, index: int, offset: int) -> Generator[list[Line]]:
        """Lists of lines, one for each piece read; empty lists where a line is longer than a piece."""
        with ExitStack() as files:
            stream, seekable = self._open(files)
            if seekable and offset:
                stream.seek(offset)
                splitter = LineSplitter(index, offset)
            else:
                splitter = LineSplitter()
            while True:
                try:
                    # Of a pipe whatever is there: its writer may be waiting for our answers.
                    piece = stream.read(_PIECE) if seekable else stream.read1(_PIECE)
                except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
                    raise RunStopped(
                        f"cannot read the input {self.path} beyond line {splitter.position[0] + 1}: {error}. "
                        "What was answered is safe; mend the input and start again.",
                        code="input_unreadable",
                    ) from error
                lines = splitter.feed(piece) if piece else splitter.finish()
                yield lines if seekable or not index else [line for line in lines if line.index >= index]
                if not piece:
                    return

    def _open(self, files: ExitStack) -> tuple[io.BufferedReader, bool]:
        """The decompressed stream, and whether it can be sought; `files` closes all that was opened."""
        try:
            file = io.FileIO(_stdin() if self.is_stdin else self.path, closefd=not self.is_stdin)
            raw: io.BufferedReader = io.BufferedReader(file, _PIECE)
            files.enter_context(raw)
        except OSError as error:
            raise UsageError(f"cannot read the input {self.path}: {error.strerror}") from error
        first = raw.peek(4)[:4]
        if first.startswith(_GZIP):
            return cast("io.BufferedReader", files.enter_context(gzip.GzipFile(fileobj=raw))), False
        if first == _ZSTD:
            return cast("io.BufferedReader", files.enter_context(zstd.ZstdFile(raw))), False
        return raw, raw.seekable() and not self.is_stdin


def _stdin() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError):
        raise UsageError("there is no standard input to read; name a file") from None


def _can_stall(descriptor: int) -> bool:
    """Whether reading may wait for someone; only such descriptors can be waited for (epoll refuses files)."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
