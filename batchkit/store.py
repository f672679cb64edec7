"""The job's files: lock, append, sync, checkpoint, recovery.

The two output files are the log of the job and the only truth; whatever else lies beside them is derived and may vanish.
Answers are appended before anything else happens to them, some with one write, so what a killed process leaves behind is whole
lines and at most one torn one at the end, which the next run moves aside and asks again. A broken line anywhere else is
damage, and damage is never written over.

Writing happens on the event loop (a line goes to the page cache in microseconds, and a disk that cannot keep up then
holds back the reading of answers instead of filling memory); syncing, which waits for the disk, happens in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Final

from batchkit.errors import JobLocked, OutputFull, OutputUnwritable, UsageError
from batchkit.formats.results import BrokenLineError, OutputLine, decode, encode
from batchkit.outputs import JobPaths, read_holder, read_output, scan_output
from batchkit.rules.progress import DoneIndexes

__all__ = ["Disk", "Store"]

_PRIVATE: Final = 0o600
_PIECE: Final = 1 << 20
_LOCK_TRIES: Final = 5


class Disk:
    """What a store does to the file system, each thing in one place, so that each can be made to fail.

    Everything raises OSError.
    """

    def open(self, path: Path, flags: int) -> int:
        """A descriptor of `path`, for its owner alone where it is made."""
        return os.open(path, flags | os.O_CLOEXEC, _PRIVATE)

    def write(self, descriptor: int, data: bytes) -> int:
        """Write at the end (or on); how many bytes were written, which may be fewer."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Wait until the disk has the file's bytes."""
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(descriptor, size)

    def rename(self, path: Path, target: Path) -> None:
        """Give the file another name, in place of whatever had it."""
        path.replace(target)

    def remove(self, path: Path) -> None:
        """Take the name away; a name that is not there is fine."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the disk has the folder's names."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Store:
    """The files of one job, held by one process.

    `Store.open` locks them; `recover` reads what stands in them and mends their ends; only then `append` may be called.
    """

    def __init__(self, paths: JobPaths, lock: int, disk: Disk) -> None:
        self.paths = paths
        self._lock = lock
        self._disk = disk
        self._results = _Log(paths.results, disk)
        self._errors = _Log(paths.errors, disk)
        self.notices: list[str] = []
        """What was mended while recovering, in words."""

    @classmethod
    def open(cls, output: Path, *, overwrite: bool = False, disk: Disk | None = None) -> Store:
        """Take the job's lock and open its files, making the folder where there is none.

        Raises UsageError where the output cannot be a file of ours, JobLocked where another run holds it.
        """
        paths = JobPaths.of(output)
        disk = Disk() if disk is None else disk
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.exists() and not stat.S_ISREG(output.stat().st_mode):
                raise UsageError(
                    f"the output {output} is not a regular file; name a file that batchkit may append to"
                )
            if overwrite:
                paths.refuse_anothers()
            else:
                paths.refuse_foreign()
            lock = _lock(paths.lock)
        except OSError as error:
            raise UsageError(f"cannot write beside {output}: {error.strerror}") from error
        try:
            notices: list[str] = []
            if overwrite:
                _move_aside(paths, disk)
            else:
                notices = _move_out_of_the_way(paths, disk)
            store = cls(paths, lock, disk)
            store.notices += notices
            # A file that is not in its folder on the disk is lost with the power, however well it was synced itself.
            disk.sync_folder(output.parent)
        except OSError as error:
            _unlock(paths.lock, lock, disk)
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        except BaseException:
            _unlock(paths.lock, lock, disk)
            raise
        return store

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes in the results and the errors file."""
        return self._results.size, self._errors.size

    def end_lines(self, results_bytes: int, errors_bytes: int) -> bool:
        """Whether so many bytes of the two files end with a line."""
        return self._results.ends_line(results_bytes) and self._errors.ends_line(errors_bytes)

    @property
    def dirty(self) -> bool:
        """Whether lines were appended that are not known to be on the disk."""
        return self._results.dirty or self._errors.dirty

    def recover(self, results_from: int = 0, errors_from: int = 0) -> Iterator[OutputLine]:
        """The lines from these byte offsets on, then the files' ends mended.

        A line without its newline is the mark of a writer that died in the middle of it: it is moved to `….torn-<time>`.
        Raises JobDamaged at a line that is broken though it has its newline.
        """
        for log, start in ((self._results, results_from), (self._errors, errors_from)):
            yield from read_output(log.path, start)
            last_at, notice = log.mend()
            if notice:
                self.notices.append(notice)
                yield from read_output(log.path, max(start, last_at))

    def mend(self) -> None:
        """Mend the ends of the files, as `recover` does, without reading them."""
        for log in (self._results, self._errors):
            _, notice = log.mend()
            if notice:
                self.notices.append(notice)

    def supersede_errors(self) -> Path | None:
        """Move the failures to the next `….errors.N.jsonl`, so that their requests are open again; None if there are none."""
        if not self._errors.size:
            return None
        _, notice = self._errors.mend()
        if notice:
            self.notices.append(notice)
        target = self._next_superseded()
        # The checkpoint counts them as done; it goes first, or a crash in between would leave it believed.
        self.remove_checkpoint()
        try:
            self._disk.rename(self.paths.errors, target)
            self._errors.close()
            self._errors = _Log(self.paths.errors, self._disk)
            self._disk.sync_folder(self.paths.results.parent)
        except OSError as error:
            raise _unwritable(target, error) from error
        return target

    def _next_superseded(self) -> Path:
        return self.paths.beside(f".errors.{len(self.paths.superseded()) + 1}.jsonl")

    def asked_again(self) -> DoneIndexes:
        """The requests with a failure in a `….errors.N.jsonl`. Raises JobDamaged at a broken line."""
        found = DoneIndexes()
        for path in self.paths.superseded():
            for lines in scan_output(path):
                for index in lines.indexes:  # some of them more than once
                    found.add(index)
        return found

    def set_aside(self, lines: Iterable[OutputLine]) -> Path:
        """Write failures whose requests stay open to the next `….errors.N.jsonl`, in one step. Raises OutputUnwritable."""
        target = self._next_superseded()
        self._replace(target, map(encode, lines))
        try:
            self._disk.sync_folder(target.parent)
        except OSError as error:
            raise _unwritable(target, error) from error
        return target

    def append(self, *lines: OutputLine) -> None:
        """Write results, or failures. Raises OutputUnwritable, leaving the file as it was before, where they cannot be written."""
        log = self._results if lines[0].outcome.succeeded else self._errors
        log.append(b"".join(map(encode, lines)))

    def sync(self) -> None:
        """Wait until the disk has all that was appended. Raises OutputUnwritable; then nothing may be appended any more."""
        self._results.sync()
        self._errors.sync()

    def read_checkpoint(self) -> bytes | None:
        """The checkpoint's bytes, or None where there is none."""
        try:
            return self.paths.checkpoint.read_bytes()
        except OSError:
            return None

    def remove_checkpoint(self) -> None:
        """Take the checkpoint away, if there is one. Raises OutputUnwritable."""
        try:
            self._disk.remove(self.paths.checkpoint)
            self._disk.sync_folder(self.paths.checkpoint.parent)
        except OSError as error:
            raise _unwritable(self.paths.checkpoint, error) from error

    def read_spending(self) -> bytes | None:
        """The bytes that say what the job may have spent, or None where there are none. Raises OutputUnwritable."""
        try:
            return self.paths.spending.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unwritable(self.paths.spending, error) from error

    def write_spending(self, data: bytes) -> None:
        """Write down what the job may have spent, and wait until no loss of power can undo it. Raises OutputUnwritable."""
        self._replace(self.paths.spending, (data,))
        try:
            self._disk.sync_folder(self.paths.spending.parent)
        except OSError as error:
            raise _unwritable(self.paths.spending, error) from error

    def replace(self, path: Path, *pieces: bytes) -> None:
        """Put `pieces` in place of `path` in one step: readers see the old file or the new one, never a part.

        Raises OutputUnwritable.
        """
        self._replace(path, pieces)

    def rewrite(self, path: Path, lines: Iterable[bytes]) -> None:
        """Put `lines`, which may be read from the file itself, in place of a file of output lines, wherever a link leads to.

        No checkpoint may count the old ones any more, and nothing may be appended afterwards. Raises OutputUnwritable.
        """
        self._replace(Path(os.path.realpath(path)), lines)

    def put_aside(self, path: Path, why: str, data: bytes) -> Path:
        """Append what was found in `path` to `<path>.<why>-<time>`, and return that. Raises OutputUnwritable."""
        return _put_aside(self._disk, path, why, data)

    def _replace(self, path: Path, pieces: Iterable[bytes]) -> None:
        temporary = path.with_name(path.name + ".tmp")
        disk = self._disk
        try:
            descriptor = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                for piece in pieces:
                    _write_all(disk, descriptor, piece)
                disk.sync(descriptor)
            finally:
                os.close(descriptor)
            disk.rename(temporary, path)
        except OSError as error:
            with suppress(OSError):
                disk.remove(temporary)
            raise _unwritable(path, error) from error

    def close(self) -> None:
        """Close the files and give up the lock; a second time does nothing."""
        self._results.close()
        self._errors.close()
        if self._lock >= 0:
            _unlock(self.paths.lock, self._lock, self._disk)
            self._lock = -1


class _Log:
    """A file that only grows."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._descriptor = disk.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self.size = os.fstat(self._descriptor).st_size
        self.dirty = False

    def ends_line(self, size: int) -> bool:
        return size == 0 or os.pread(self._descriptor, 1, size - 1) == b"\n"

    def append(self, data: bytes) -> None:
        self.dirty = True
        try:
            written = self._disk.write(self._descriptor, data)
            if written < len(data):
                _write_all(self._disk, self._descriptor, data[written:])
        except OSError as error:
            # A part of the line may be there; if it cannot be taken back, the next run finds it torn.
            try:
                self._disk.truncate(self._descriptor, self.size)
            except OSError as stuck:
                raise _broken(self.path, stuck) from error
            raise _unwritable(self.path, error) from error
        self.size += len(data)

    def sync(self) -> None:
        self._look()
        if not self.dirty:
            return
        # Before the call: a line appended while it waits may not be in it.
        self.dirty = False
        try:
            self._disk.sync(self._descriptor)
        except OSError as error:
            # What the disk has now nobody knows, and a second fsync would say that all is well.
            raise _broken(self.path, error) from error

    def _look(self) -> None:
        """Whether the file is still where it was: one that was removed takes every line and keeps none."""
        try:
            status = os.stat(self.path)  # noqa: PTH116 - one call, no object
            if status.st_ino == os.fstat(self._descriptor).st_ino:
                return
            what = "replaced"
        except OSError:
            what = "removed"
        raise OutputUnwritable(
            f"{self.path} was {what} while the run was writing it: what was answered since is lost with it. The run stops; "
            "put the file back, or start the same command again to go on with what is there."
        )

    def mend(self) -> tuple[int, str | None]:
        """Cut a torn line off the end, keeping its bytes aside. A line that lacks nothing but its newline is completed.

        Returns where that line began, and what was done in words, None if nothing was. Raises OutputUnwritable.
        """
        tail = _last_line(self._descriptor, self.size)
        if not tail:
            return self.size, None
        last_at = self.size - len(tail)
        try:
            decode(tail)
        except BrokenLineError:
            return last_at, self._cut(tail)
        self.append(b"\n")
        return last_at, f"{self.path.name} ended without a newline; it was added"

    def _cut(self, tail: bytes) -> str:
        aside = _put_aside(self._disk, self.path, "torn", tail)
        try:
            self._disk.truncate(self._descriptor, self.size - len(tail))
            self._disk.sync(self._descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.size -= len(tail)
        return (
            f"{self.path.name} ended in a torn line of {len(tail):,} bytes, as a killed run leaves it; "
            f"it was moved to {aside.name} and its request is asked again"
        )

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(path: Path) -> int:
    """Hold the lock file. It is removed when the lock is given up, so what was locked must still be what stands there."""
    tries = 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        if os.fstat(descriptor).st_size > 0 and read_holder(descriptor) is None:
            os.close(descriptor)
            raise UsageError(
                f"{path} is in the way: it is no lock file of ours, and the job's own would take its place. Name another output."
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = read_holder(descriptor)
            os.close(descriptor)
            tries += 1
            if tries < _LOCK_TRIES:
                # Whoever asks for a job's status has the lock for a moment.
                time.sleep(0.02)
                continue
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise JobLocked(
                f"another run{f' (process {holder})' if holder else ''} is working on {path.with_suffix('').name}; "
                "wait for it or stop it. Nothing was touched."
            ) from error
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                return descriptor
        os.close(descriptor)


def _unlock(path: Path, descriptor: int, disk: Disk) -> None:
    try:
        with suppress(OSError):
            disk.remove(path)
    finally:
        os.close(descriptor)


def _move_aside(paths: JobPaths, disk: Disk) -> None:
    """Rename the job's files, the results last: until then what stands is the old job, not a part of it."""
    derived = (paths.checkpoint, paths.summary, paths.report)
    _rename(disk, *derived, *reversed(paths.superseded()), paths.errors, paths.results, paths.spending)


def _move_out_of_the_way(paths: JobPaths, disk: Disk) -> list[str]:
    """Rename what has the names of files beside an output though no job was begun here. What was done, in words."""
    if any(map(_has_bytes, paths.logs)) or paths.has_checkpoint:
        return []
    moved = _rename(disk, paths.checkpoint, paths.summary, paths.report)
    return [f"{path.name} was there before the job; it was moved to {target.name}" for path, target in moved]


def _has_bytes(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _rename(disk: Disk, *paths: Path) -> list[tuple[Path, Path]]:
    """Give files `….old-<time>` as their names, all with the same ending, and one that none of them took before. Both names of each."""
    now = time.strftime(".old-%Y%m%d-%H%M%S")
    for ending in chain((now,), (f"{now}-{number}" for number in count(2))):
        targets = {path: path.with_name(path.name + ending) for path in paths}
        if not any(target.exists() for target in targets.values()):
            break
    moved = [(path, target) for path, target in targets.items() if path.exists()]
    for path, target in moved:
        disk.rename(path, target)
    return moved


def _last_line(descriptor: int, size: int) -> bytes:
    """The bytes after the last newline."""
    tail = b""
    end = size
    while end > 0:
        start = max(0, end - _PIECE)
        piece = os.pread(descriptor, end - start, start)
        newline = piece.rfind(b"\n")
        tail = piece[newline + 1 :] + tail
        if newline >= 0:
            break
        end = start
    return tail


def _put_aside(disk: Disk, path: Path, why: str, data: bytes) -> Path:
    aside = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        descriptor = disk.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            _write_all(disk, descriptor, data + b"\n")
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(aside, error) from error
    return aside


def _write_all(disk: Disk, descriptor: int, data: bytes) -> None:
    written = disk.write(descriptor, data)
    while written < len(data):
        written += disk.write(descriptor, data[written:])


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _unwritable(path: Path, error: OSError) -> OutputUnwritable:
    if error.errno in _FULL:
        return OutputFull(f"no room to write {path}: {error.strerror}.")
    return _broken(path, error)


def _broken(path: Path, error: OSError) -> OutputUnwritable:
    return OutputUnwritable(
        f"cannot write {path}: {error.strerror}. The answers written so far are safe; mend the disk, then start the same "
        "command again: it goes on, and asks again only what was in flight."
    )
