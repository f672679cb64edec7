"""The output files of a job, read: by anyone, at any time, also while a run is writing them.

Nothing here changes a file or waits for a lock. `read_output` tells all that the lines say; `scan_output` and
`check_output` read no JSON, for files of many gigabytes.
"""

from __future__ import annotations

import fcntl
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final

from batchkit.errors import JobDamaged, UsageError
from batchkit.formats.checkpoint import decode_standing
from batchkit.formats.results import (
    BEGINNING_BYTES,
    LINE_ENDS,
    BrokenLineError,
    OutputLine,
    begins_line,
    check_lines,
    decode,
    headed_lines,
    scan_lines,
)

__all__ = [
    "JobPaths",
    "ScannedLines",
    "check_output",
    "lock_holder",
    "read_holder",
    "read_output",
    "scan_output",
    "together",
]

_SCANNED_BYTES: Final = 1 << 17
"""What stays in a core's cache: with a megabyte a scan takes a fifth longer."""
_TOGETHER: Final = 64
_TOGETHER_SIZE: Final = 1 << 20
"""So many lines are handed on together, or fewer once what may be long in them comes to this size."""
_LOOKED_AT_BYTES: Final = 64 << 20
"""In so many bytes from the beginning of an output there is a line of ours, however damaged others are."""
_SOMETHING: Final = re.compile(rb"[^\0\r\n\t ]")
_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
"""What the files beside an output have instead of it in their names."""
_OF_ERRORS: Final = re.compile(r"(.+)\.errors(?:\.\d+)?\.jsonl", re.DOTALL)
_NAME_BYTES: Final = 200
"""File systems take 255; the files beside the output have longer names than it."""


@dataclass(frozen=True, slots=True)
class JobPaths:
    """Where the files of the job with output `results` are."""

    results: Path

    @classmethod
    def of(cls, output: str | os.PathLike[str]) -> JobPaths:
        """The files of the job with this output. Raises UsageError for what cannot be a file's name, or in a closed folder."""
        path = Path(output)
        name = os.fsencode(path.name)
        is_folder = os.fsencode(output).endswith(b"/") or path.name in ("", "..")
        # "-" is not stdout: the files beside the output belong to it.
        if is_folder or path.name == "-" or b"\0" in os.fsencode(path) or len(name) > _NAME_BYTES:
            raise UsageError(
                f"{str(path)[:100]!r} cannot be the name of an output; name a file, as results.jsonl"
            )
        try:
            path.exists()
        except OSError as error:
            raise UsageError(f"cannot look at {str(path)[:100]!r}: {error.strerror}") from error
        return cls(path)

    def beside(self, ending: str) -> Path:
        """The file named like the output but for its ending: `results.jsonl` has `results.errors.jsonl` beside it."""
        return self.results.with_name(self._stem + ending)

    @property
    def _stem(self) -> str:
        return self.results.stem if self.results.suffix in _SUFFIXES else self.results.name

    @property
    def errors(self) -> Path:
        return self.beside(".errors.jsonl")

    @property
    def checkpoint(self) -> Path:
        return self.beside(".checkpoint.json")

    @property
    def spending(self) -> Path:
        return self.beside(".spending.json")

    @property
    def summary(self) -> Path:
        return self.beside(".summary.json")

    @property
    def report(self) -> Path:
        return self.beside(".report.html")

    @property
    def lock(self) -> Path:
        return self.beside(".lock")

    def refuse_foreign(self) -> None:
        """Raise UsageError where the output is something else: failures of another job, or what batchkit never wrote.

        So too where what has the name of its failures is none of ours, or where either cannot be read.
        """
        self.refuse_anothers()
        has_begun = _is_job(self.results) or self.has_checkpoint
        for path in self.logs:
            if not path.is_file():
                continue  # whoever opens it says what it is
            if has_begun and path != self.results:
                continue  # what is none of ours in it now is damage
            try:
                with path.open("rb") as stream:
                    if _is_ours(stream.fileno()):
                        continue
            except ValueError:
                continue  # it was emptied meanwhile
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}") from error
            name = "output" if path == self.results else f"file beside the output {self.results}"
            raise UsageError(
                f"{path} is no {name} of batchkit: no line in it is one of batchkit's. Nothing in it was changed. Name "
                "another file as the output."
            )

    def refuse_anothers(self) -> None:
        """Raise UsageError where the job's files would be another's: its failures as the output, or all that stands beside it."""
        self._refuse_neighbours()
        for results in (self.results, Path(os.path.realpath(self.results))):
            of_errors = _OF_ERRORS.fullmatch(results.name)
            if of_errors is None:
                continue
            for name in _alike(of_errors[1]):
                job = JobPaths(results.with_name(name))
                if job.results.is_file() and (_is_job(job.results) or job.checkpoint.exists()):
                    raise UsageError(
                        f"{self.results} has failures of the job with the output {job.results}; name that"
                    )

    def _refuse_neighbours(self) -> None:
        if _is_job(self.results):
            return
        may_be_anothers = not self.results.exists() and (self.errors.exists() or self.checkpoint.exists())
        for other in map(self.results.with_name, _alike(self._stem)):
            # All requests of a job may have failed.
            is_empty = other.is_file() and not other.stat().st_size
            if other != self.results and (_is_job(other) or (is_empty and may_be_anothers)):
                raise UsageError(
                    f"{other} is the output of another job, and the files beside {self.results} would have the names of "
                    "those beside it; name another output"
                )
        for path in self.all:
            if path != self.results and _holds_results(path):
                raise UsageError(
                    f"{path} is the output of another job, and has the name of a file beside {self.results}; name another output"
                )

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint stands beside the output, rather than that something else has its name."""
        try:
            decode_standing(self.checkpoint.read_bytes())
        except (OSError, ValueError):
            return False
        return True

    @property
    def all(self) -> list[Path]:
        """The files of the job but for its lock."""
        return [*self.logs, self.checkpoint, self.spending, self.summary, self.report]

    @property
    def logs(self) -> list[Path]:
        """The files with lines: results, failures, and failures that were asked again."""
        return [self.results, self.errors, *self.superseded()]

    def superseded(self) -> list[Path]:
        """The failures of earlier tries, which were asked again since: `….errors.1.jsonl` and on."""
        found: list[Path] = []
        while (path := self.beside(f".errors.{len(found) + 1}.jsonl")).exists():
            found.append(path)
        return found


@dataclass(frozen=True, slots=True)
class ScannedLines:
    """What a scan reads of a run of lines: the indexes, the checksums of their input lines, and the lines with a run header."""

    indexes: Sequence[int]
    input_crc32s: array[int]
    headed: list[OutputLine]
    size: int
    """Their bytes."""


def scan_output(path: Path, start: int = 0, end: int | None = None) -> Iterator[ScannedLines]:
    """The whole lines of one output file between two bytes, a few hundred at a time, each checked but none read as JSON.

    Several times as fast as `read_output`, which tells all. Raises JobDamaged at a broken line.
    """
    for offset, lines in _pieces(path, start, end):
        try:
            indexes, input_crc32s = scan_lines(lines)
        except BrokenLineError as error:
            raise _damaged(path, offset + sum(map(len, lines[: error.at])), error) from error
        yield ScannedLines(indexes, input_crc32s, headed_lines(lines), sum(map(len, lines)))


def check_output(path: Path, start: int = 0, end: int | None = None) -> None:
    """Check the lines of one output file between two bytes. Raises JobDamaged at a broken line."""
    for offset, lines in _pieces(path, start, end):
        try:
            check_lines(lines)
        except BrokenLineError as error:
            raise _damaged(path, offset + sum(map(len, lines[: error.at])), error) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """While a file is read. That it does not exist is quiet. Raises JobDamaged where the disk does not give it."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        raise JobDamaged(
            f"{path} cannot be read: {error.strerror}. Nothing in it was changed. Mend the disk, or restore the file from a copy."
        ) from error


def _pieces(path: Path, start: int, end: int | None) -> Iterator[tuple[int, list[bytes]]]:
    """A file's whole lines with their newlines, a few hundred at a time, and the byte where they begin."""
    with _reading(path), path.open("rb", buffering=_SCANNED_BYTES) as stream:
        offset = stream.seek(start)
        if end is None:
            end = os.fstat(stream.fileno()).st_size
        # The size is a hint: what is read goes on to the end of a line, and may go past `end`.
        while offset < end and (lines := stream.readlines(_SCANNED_BYTES)):
            begin, offset = offset, offset + sum(map(len, lines))
            behind = offset
            while lines and (behind > end or not lines[-1].endswith(b"\n")):
                behind -= len(lines.pop())
            if lines:
                yield begin, lines


def read_output(path: Path, start: int = 0, end: int | None = None) -> Iterator[OutputLine]:
    """The lines of one output file between two bytes; a line without its newline at the end is left out.

    Reads without a lock, so also while a run is writing. A file that does not exist has no lines. Raises JobDamaged at a
    broken line.
    """
    with _reading(path), path.open("rb") as stream:
        stream.seek(start)
        offset = start
        for line in stream:
            if not line.endswith(b"\n") or (end is not None and offset >= end):
                return
            try:
                yield decode(line[:-1])
            except BrokenLineError as error:
                raise _damaged(path, offset, error) from error
            offset += len(line)


def together(lines: Iterable[OutputLine]) -> Iterator[list[OutputLine]]:
    """Lines in their order, some at a time, at least one; one with a run header only as the first of them."""
    some: list[OutputLine] = []
    held = 0
    for line in lines:
        if line.run is not None and some:
            yield some
            some, held = [], 0
        some.append(line)
        held += len(line.outcome.answer.body or b"") + len(line.outcome.custom_id)
        # Before the next line is read, which may be as long as a hundred thousand others.
        if len(some) == _TOGETHER or held >= _TOGETHER_SIZE:
            yield some
            some, held = [], 0
    if some:
        yield some


def _alike(stem: str) -> Iterator[str]:
    """The names of all outputs that have the same files beside them."""
    return (stem + suffix for suffix in ("", *_SUFFIXES))


def _is_job(path: Path) -> bool:
    """Whether a file has lines of ours in it, be they damaged."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size > 0 and _is_ours(stream.fileno())
    except (OSError, ValueError):
        return False


def _holds_results(path: Path) -> bool:
    """Whether the first line of a file is one of an output, and not of failures."""
    try:
        line = next(read_output(path), None) if path.is_file() else None
    except (JobDamaged, OSError):
        return False
    return line is not None and line.outcome.succeeded


def _is_ours(descriptor: int) -> bool:
    """Whether a file may be an output in whatever state: empty, torn, cut, damaged."""
    if not os.fstat(descriptor).st_size:
        return True
    with mmap(descriptor, 0, access=ACCESS_READ) as content:
        # What a kill or a loss of power leaves of a first line may be its first bytes, or zeros.
        first = _SOMETHING.search(content, 0, _LOOKED_AT_BYTES)
        if first is None:
            return True
        begun = content[first.start() : first.start() + BEGINNING_BYTES].rstrip(b"\0\r\n\t ")
        return begins_line(begun) or content.find(LINE_ENDS, 0, _LOOKED_AT_BYTES) >= 0


def _damaged(path: Path, offset: int, error: BrokenLineError) -> JobDamaged:
    return JobDamaged(
        f"{path} is damaged in the line at byte {offset:,}: {error}. Nothing in it was changed. Move the damage aside with "
        "`batchkit repair`, which keeps all other lines, or restore the file from a copy."
    )


def lock_holder(paths: JobPaths) -> int | None:
    """The process id of the run that works on the job now, or None."""
    try:
        descriptor = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return read_holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def read_holder(descriptor: int) -> int | None:
    """The process id that stands in an open lock file, None if none does."""
    written = os.pread(descriptor, 20, 0).strip()
    return int(written) if written.isdigit() else None
