"""Takes damage out of a job's output files, so that the job can go on.

Every line that can be read is kept, also one that lost its newline to its neighbour. What cannot be read, and a second line
for the same request, is moved to `….damaged-<time>` beside its file, byte for byte: nothing is deleted. The requests of
lines that are gone are open again and asked by the next run.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

from batchkit.errors import UsageError
from batchkit.formats.checkpoint import (
    Checkpoint,
    decode_checkpoint,
    encode_checkpoint,
)
from batchkit.formats.results import LINE_BEGINS, BrokenLineError, OutputLine, decode
from batchkit.outputs import JobPaths
from batchkit.rules.progress import DoneIndexes
from batchkit.state import JobState
from batchkit.store import Store

__all__ = ["repair"]

_BEGINNING: Final = re.compile(re.escape(LINE_BEGINS) + rb'[0-9a-f]{16}0{6}[0-9a-f]{10}","custom_id":')
_END: Final = re.compile(rb',"crc32":"[0-9a-f]{8}"}}')
_INDEX: Final = re.compile(rb'"batchkit":\{"index":(\d{1,15}),')
_ID: Final = re.compile(rb'"batch_req_[0-9a-f]{16}(0{6}[0-9a-f]{10})"')
_NO_TEXT: Final = re.compile(rb"[\0-\x1f]")
"""What stands nowhere within a line."""
_SCRAP_BYTES: Final = 8
"""What is no longer than this was never a line: a newline that became something else."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some bytes of a file, without a newline: a line that can be read, or what stands beside such lines."""

    offset: int
    data: bytes
    line: OutputLine | None = None


def repair(output: str | os.PathLike[str]) -> dict[str, Any]:
    """Move damage out of the files of a job and tell what that means:

        {"moved": [{"file", "offset", "bytes", "index"}], "kept", "asked_again": [index, …], "complete"}

    `offset` is where the bytes stood; `index` is None where it could not be read. `kept` counts the lines of results and
    failures that stay. `asked_again` are the requests whose only line was moved, as far as their indexes could be read;
    `complete` is false where some could not, and where the checkpoint knows of more. Files without damage are left untouched.

    Raises UsageError where there is no such job, JobLocked while a run is working on it, OutputUnwritable where there is no
    room for the repaired file beside the damaged one.
    """
    path = JobPaths.of(output).results
    if not path.exists():
        raise UsageError(f"there is no job with the output {path}: the file does not exist")
    store = Store.open(path)
    try:
        before = _state_of_checkpoint(store)
        standing = None if before is None else before.standing()
        job_id = _job_of(store, standing)
        done = DoneIndexes()

        def belongs(line: OutputLine) -> bool:
            return job_id in (None, line.job_id)

        def belongs_once(line: OutputLine) -> bool:
            return belongs(line) and done.add(line.outcome.index)

        gone = {
            file: _sift(
                store, standing, file, belongs_once if file in (path, store.paths.errors) else belongs
            )
            for file in store.paths.logs
        }
    finally:
        store.close()
    moved: list[dict[str, Any]] = [
        {
            "file": file.name,
            "offset": piece.offset,
            "bytes": len(piece.data),
            "index": next(iter(_indexes(piece)), None),
        }
        for file, pieces in gone.items()
        for piece in pieces
    ]
    lost = {index for file in (path, store.paths.errors) for piece in gone[file] for index in _indexes(piece)}
    again = {index for index in lost if index not in done}
    return {
        "moved": moved,
        "kept": len(done),
        "asked_again": sorted(again),
        "complete": (before is None or _is_all_of(before.done, done, again))
        and all(_is_told(piece, done) for file in (path, store.paths.errors) for piece in gone[file]),
    }


def _is_told(piece: _Piece, done: DoneIndexes) -> bool:
    """Whether it is known which request lost its line with `piece`, if one did."""
    if piece.line is not None or len(piece.data) <= _SCRAP_BYTES:
        return True
    # One that claims the index of a line that stays has its damage there.
    indexes = _indexes(piece)
    if _NO_TEXT.search(piece.data):
        return False  # the newlines of others may be among what was written over
    return bool(indexes) and all(index not in done for index in indexes)


def _is_all_of(before: DoneIndexes, done: DoneIndexes, again: set[int]) -> bool:
    return all(
        index in done or index in again for start, end in before.intervals() for index in range(start, end)
    )


def _state_of_checkpoint(store: Store) -> JobState | None:
    """What the checkpoint says of the job as a whole: a run whose first line is broken may be known from there alone."""
    try:
        state = JobState.of(decode_checkpoint(store.read_checkpoint() or b""))
    except (ValueError, KeyError, TypeError):
        return None
    if state.status == "completed":
        state.status = "interrupted"
    return state


def _job_of(store: Store, standing: Checkpoint | None) -> str | None:
    """The job whose lines these are: that of the checkpoint, or of most of them."""
    pieces = chain.from_iterable(map(_pieces, store.paths.logs))
    lines = Counter(piece.line.job_id for piece in pieces if piece.line is not None)
    if standing is not None and standing.job_id in lines:
        return standing.job_id
    return max(lines, key=lines.__getitem__, default=None)


def _sift(
    store: Store, standing: Checkpoint | None, path: Path, stays: Callable[[OutputLine], bool]
) -> list[_Piece]:
    """Take out of a file what is no line or does not stay, put it aside, and return it."""
    if not path.exists():
        return []
    leaving = []
    size = 0
    for piece in _pieces(path):
        if piece.line is None or not stays(piece.line):
            leaving.append(piece)
        else:
            size += len(piece.data) + 1
    if not leaving and size == path.stat().st_size:
        return []
    if leaving:
        store.put_aside(path, "damaged", b"\n".join(piece.data for piece in leaving))
    if standing is None:
        store.remove_checkpoint()
    else:
        store.replace(store.paths.checkpoint, encode_checkpoint(standing))
    offsets = {piece.offset for piece in leaving}
    store.rewrite(path, (piece.data + b"\n" for piece in _pieces(path) if piece.offset not in offsets))
    return leaving


def _pieces(path: Path) -> Iterator[_Piece]:
    """All bytes of a file but its newlines, in order."""
    with path.open("rb") as stream:
        offset = 0
        for raw in stream:
            data = raw.removesuffix(b"\n")
            try:
                yield _Piece(offset, data, decode(data))
            except BrokenLineError:
                yield from _within(data, offset)
            offset += len(raw)


def _within(data: bytes, offset: int) -> Iterator[_Piece]:
    """What can be read in the middle of bytes that are no line, and what lies around it."""
    at = 0
    starts = [beginning.start() for beginning in _BEGINNING.finditer(data)]
    for start, following in pairwise([*starts, len(data)]):
        for end in _END.finditer(data, start, following):
            try:
                line = decode(data[start : end.end()])
            except BrokenLineError:
                continue
            if start > at:
                yield _Piece(offset + at, data[at:start])
            yield _Piece(offset + start, data[start : end.end()], line)
            at = end.end()
            break
    if at < len(data):
        yield _Piece(offset + at, data[at:])


def _indexes(piece: _Piece) -> list[int]:
    """The indexes that the bytes speak of. A line says its own twice; where the two differ, neither is believed."""
    said = {int(found) for found in _INDEX.findall(piece.data)}
    in_ids = {int(found, 16) for found in _ID.findall(piece.data)}
    return sorted(said & in_ids if said and in_ids else said | in_ids)
