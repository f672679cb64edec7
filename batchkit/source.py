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
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from typing import Any, cast
from zlib import crc32

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
"""Bytes that are read at once."""
_MOST_BYTES = 2 * 1024 * 1024
"""Of lines that are read together."""
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
    """Pieces of bytes in, lines out. `index` and `offset` are those of the first line to come.

    `only_blankness` keeps of a line that lies in several pieces just enough to tell whether it is blank.
    """

    def __init__(
        self,
        index: int = 0,
        offset: int = 0,
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        only_blankness: bool = False,
    ) -> None:
        self._index = index
        self._offset = offset
        self._max = max_line_bytes
        self._only_blankness = only_blankness
        self._rest: list[bytes] = []
        self._rest_size = 0

    def feed(self, piece: bytes) -> list[Line]:
        """The lines that `piece` completes; an empty one is the end of the input, which completes the last."""
        index, offset = self.position
        raws, sizes = self.cut(piece)
        lines = map(Line, count(index), accumulate(sizes, initial=offset), raws)
        return [line for line in lines if line.raw != b""]

    def cut(self, piece: bytes) -> tuple[list[bytes | None], list[int]]:
        """As `feed`, but of each line only its `raw`, empty for a blank one; and how many bytes it took."""
        if not piece and self._rest_size:
            piece = b"\n"
        # With their newlines: unlike split, this looks for them with memchr.
        complete = io.BytesIO(piece).readlines()
        rest = complete.pop() if complete and not complete[-1].endswith(b"\n") else b""
        sizes = list(map(len, complete))
        longest = self._max + 1
        raws = [part.strip() if len(part) <= longest else None for part in complete]
        if complete:
            raws[0] = self._first(complete[0])
            sizes[0] += self._rest_size
            self._rest.clear()
            self._rest_size = 0
            self._index += len(complete)
            self._offset += sum(sizes)
        if rest:
            self._keep(rest)
        return raws, sizes

    @property
    def position(self) -> tuple[int, int]:
        """Index and byte offset of the line that comes next."""
        return self._index, self._offset

    def _keep(self, rest: bytes) -> None:
        self._rest_size += len(rest)
        if self._rest_size <= self._max:
            self._rest.append(_blankness(rest) if self._only_blankness else rest)
        else:
            # Too long to be a request: its bytes are counted, not kept.
            self._rest.clear()

    def _first(self, last: bytes) -> bytes | None:
        """The line that `last` completes with its newline, which alone may have begun earlier, or with the input."""
        if self._rest_size + len(last) - 1 > self._max:
            return None
        raw = b"".join((*self._rest, last))
        return (raw.removeprefix(_BOM) if self._index == 0 else raw).strip()


class _BreaksOffError(RunStopped):
    """The input cannot be read on: a compressed file that was cut, or a disk that fails."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. What was answered is safe; mend the input and start again.", code="input_unreadable"
        )
        self.what = what


def _blankness(part: bytes) -> bytes:
    """A few bytes that begin as a part of a line, maybe with a byte order mark, and are as blank."""
    begins = len(_BOM)
    return part[:begins] + part[begins:].strip()[:1]


class Source:
    """One input: a path, or `-` for stdin.

    Raises UsageError where the input cannot be opened, and RunStopped where it cannot be read on (`lines`: UsageError). `in_thread` does what
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
        """Path, size and time of change, as they are now. Raises UsageError where it cannot be read."""
        if self.is_stdin:
            _stdin()
            return InputIdentity("-")
        try:
            status = os.stat(self.path)  # noqa: PTH116 - one call, no object
            if stat.S_ISREG(status.st_mode):
                # Before anything is made beside an output that has nothing to answer.
                os.close(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
            whole_path = os.path.abspath(self.path)  # noqa: PTH100 - a string
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"cannot read the input {self.path[:200]!r}: {why}") from error
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"the input {self.path} is a folder; name the JSONL file in it")
        if not stat.S_ISREG(status.st_mode):
            return InputIdentity(self.path)
        return InputIdentity(whole_path, status.st_size, status.st_mtime_ns)

    async def batches(self, index: int = 0, offset: int = 0, *, least: int = 1) -> AsyncGenerator[list[Line]]:
        """The lines from the one at `index`, which begins at byte `offset`, some at a time.

        A compressed input or a pipe is read from its beginning all the same, and lines before `index` are left out. They come as
        they are read, a piece at a time; where `least` is more than 1, so many together, or fewer if those are many bytes.
        """
        with ExitStack() as files:
            stalling = self._stalling(files)
            lines = self._lines(index, offset, stalling)
            if least > 1:
                lines = _gathered(lines, least)
            files.enter_context(closing(lines))
            while True:
                if stalling is not None:
                    try:
                        # Whoever writes there may take for ever, and no thread can be called back from a read.
                        await wait_readable(stalling)
                    finally:
                        # uvloop has it not wait any more: a decompressor, and who reads after us, would take "not yet" for the end.
                        os.set_blocking(stalling, True)
                batch = await self._in_thread(partial(next, lines, None))
                if batch is None:
                    return
                if batch:
                    yield batch

    def lines(self) -> Iterator[Line]:
        """All lines, read in this thread, for who sends none of them. Raises UsageError where they cannot be read on."""
        try:
            for batch in self._lines(0, 0):
                yield from batch
        except _BreaksOffError as error:
            raise UsageError(f"{error.what}. Nothing was sent; give the whole input.") from error

    async def checksums(self) -> AsyncGenerator[tuple[int, int, array[int]]]:
        """The CRC-32 of every line's `raw`, 0 for lines that are blank or over the cap: a piece's worth at a time.

        In front of them stand the index and the byte offset of their first line.
        """
        async with aclosing(self._cuts()) as cuts:
            async for index, offset, raws in cuts:
                yield index, offset, array("I", [0 if raw is None else crc32(raw) for raw in raws])

    async def count(self) -> int:
        """How many requests the whole input holds: its lines that are not blank. Reads all of it."""
        total = 0
        async with aclosing(self._cuts(only_blankness=True)) as cuts:
            async for _, _, raws in cuts:
                total += len(raws) - raws.count(b"")
        return total

    async def _cuts(
        self, *, only_blankness: bool = False
    ) -> AsyncGenerator[tuple[int, int, list[bytes | None]]]:
        """What `LineSplitter.cut` finds in each piece, behind the index and the offset of its first line."""

        def cut() -> Generator[tuple[int, int, list[bytes | None]]]:
            with closing(self._pieces(0, 0, only_blankness=only_blankness)) as pieces:
                for splitter, piece in pieces:
                    index, offset = splitter.position
                    yield index, offset, splitter.cut(piece)[0]

        with closing(cut()) as cuts:
            while (found := await self._in_thread(partial(next, cuts, None))) is not None:
                yield found

    def _stalling(self, files: ExitStack) -> int | None:
        """A descriptor of the input, closed by `files`, where reading it may wait for somebody, which no file does."""
        if self.is_stdin:
            return stdin if _can_stall(stdin := _stdin()) else None
        try:
            if not stat.S_ISFIFO(os.stat(self.path).st_mode):  # noqa: PTH116 - one call, no object
                return None
            # To open it waits for a writer otherwise.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot read the input {self.path}: {error.strerror}") from error
        files.callback(os.close, descriptor)
        return descriptor

    def _lines(self, index: int, offset: int, descriptor: int | None = None) -> Generator[list[Line]]:
        """Lists of lines, one for each piece read; empty lists where a line is longer than a piece."""
        with closing(self._pieces(index, offset, descriptor)) as pieces:
            for splitter, piece in pieces:
                lines = splitter.feed(piece)
                if lines and lines[0].index < index:
                    lines = [line for line in lines if line.index >= index]
                yield lines

    def _pieces(
        self, index: int, offset: int, descriptor: int | None = None, *, only_blankness: bool = False
    ) -> Generator[tuple[LineSplitter, bytes]]:
        """The pieces of the input, the last one empty, each with what is to cut it.

        They begin at the line told where the input can be sought, else at the first. It is read from the `descriptor` if there is one.
        """
        with ExitStack() as files:
            stream, seekable = self._open(files, descriptor)
            if seekable and offset:
                stream.seek(offset)
                splitter = LineSplitter(index, offset)
            else:
                splitter = LineSplitter(only_blankness=only_blankness)
            while True:
                try:
                    # Of a pipe whatever is there: its writer may be waiting for our answers.
                    piece = stream.read(_PIECE) if seekable else stream.read1(_PIECE)
                except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
                    raise _BreaksOffError(
                        f"cannot read the input {self.path} beyond line {splitter.position[0] + 1}: {error}"
                    ) from error
                yield splitter, piece
                if not piece:
                    return

    def _open(self, files: ExitStack, descriptor: int | None) -> tuple[io.BufferedReader, bool]:
        """The decompressed stream, and whether it can be sought; `files` closes all that was opened."""
        try:
            if descriptor is None and self.is_stdin:
                descriptor = _stdin()
            file = io.FileIO(self.path if descriptor is None else descriptor, closefd=descriptor is None)
            raw: io.BufferedReader = io.BufferedReader(file, _PIECE)
            files.enter_context(raw)
        except OSError as error:
            raise UsageError(f"cannot read the input {self.path}: {error.strerror}") from error
        first = raw.peek(4)[:4]
        packed = cast("io.BufferedReader", _AsItComes(raw))
        if first.startswith(_GZIP):
            return cast("io.BufferedReader", files.enter_context(gzip.GzipFile(fileobj=packed))), False
        if first == _ZSTD:
            return cast("io.BufferedReader", files.enter_context(zstd.ZstdFile(packed))), False
        return raw, raw.seekable() and not self.is_stdin


_FEW_BYTES = 64
"""The parts of a compressed input's own head and end are shorter, and are wanted whole."""


class _AsItComes:
    """A stream as a decompressor is to see it: of many bytes what is there, as a writer may wait for our answers; a few are all there."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size) if size < _FEW_BYTES else self._stream.read1(size)


def _gathered(batches: Generator[list[Line]], least: int) -> Generator[list[Line]]:
    """The same lines, so many of them at a time at least, but for those that are long."""
    lines: list[Line] = []
    with closing(batches):
        try:
            for batch in batches:
                lines += batch
                if lines and (len(lines) >= least or _bytes_of(lines) >= _MOST_BYTES):
                    yield lines
                    lines = []
        except RunStopped:
            yield lines  # what could be read
            raise
        yield lines


def _bytes_of(lines: Sequence[Line]) -> int:
    last = lines[-1]
    return last.offset - lines[0].offset + len(last.raw or b"")


def _stdin() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError):
        raise UsageError("there is no standard input to read; name a file") from None


def _can_stall(descriptor: int) -> bool:
    """Whether reading may wait for someone; only such descriptors can be waited for (epoll refuses files)."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
