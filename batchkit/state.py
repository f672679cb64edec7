"""What a job's files say, added up: which requests are done, the totals, what the runs were started with.

Everything is a fold over the lines of the output files. A checkpoint only lets the fold begin further on, and one that
does not fit the files is left aside.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from batchkit.audit import Audit
from batchkit.errors import BatchkitError, JobDamaged, JobMismatch
from batchkit.formats import summary as summary_format
from batchkit.formats.checkpoint import Checkpoint, decode_checkpoint
from batchkit.formats.results import OutputLine
from batchkit.outputs import JobPaths, lock_holder, read_output, scan_output
from batchkit.records import Line, RunHeader
from batchkit.rules.pricing import PriceList, cost_of
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally
from batchkit.source import InputIdentity, Source
from batchkit.store import Store

__all__ = [
    "AT_ONCE_BYTES",
    "LEFT_AT_ONCE",
    "JobState",
    "build_summary",
    "load_for_run",
    "read_state",
    "reopen_failures",
]


@dataclass(slots=True)
class JobState:
    """A job as far as its files tell it.

    `job_id` is None for one that has no line yet. `run` is what the latest run was started with. `total` counts the
    requests of the input, None while they are not counted, and `limit` is how many of them are asked for. `index` and `offset` are a line of the input before which all
    is done. `checksums` are those of the input's lines by index, None where a checkpoint stands for them.
    """

    job_id: str | None = None
    tally: Tally = field(default_factory=Tally)
    done: DoneIndexes = field(default_factory=DoneIndexes)
    run: RunHeader | None = None
    total: int | None = None
    index: int = 0
    offset: int = 0
    status: str = "running"
    stop_reason: str | None = None
    superseded: int = 0
    limit: int | None = None
    killed: bool = False
    """Whether the last run ended without saying how, so that answers may have been on their way."""
    checksums: array[int] | None = None
    audit: Audit | None = None
    """What is still to be read of earlier lines; with `add_up`, the tally does not have them yet."""
    unadded: tuple[int, int] = (0, 0)
    """Results and failures that the tally does not have yet."""

    @property
    def to_do(self) -> int | None:
        """How many requests the job is to work through; None while they are not counted."""
        if self.limit is None or self.total is None:
            return self.total
        # An earlier run without the limit may have done more.
        return max(min(self.total, self.limit), len(self.done))

    @property
    def ended(self) -> tuple[int, int]:
        """Results and failures so far."""
        return self.tally.succeeded + self.unadded[0], self.tally.failed + self.unadded[1]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> JobState:
        """Begin with a checkpoint. Raises ValueError for a tally or intervals that cannot be."""
        return cls(
            checkpoint.job_id,
            Tally.from_state(checkpoint.tally),
            DoneIndexes(checkpoint.done),
            checkpoint.run,
            checkpoint.total,
            checkpoint.input_index,
            checkpoint.input_offset,
            checkpoint.status,
            checkpoint.stop_reason,
            checkpoint.superseded,
            checkpoint.limit,
        )

    def fold(self, lines: Iterable[OutputLine], *, superseded: bool = False) -> None:
        """Add lines to the totals; `superseded` ones are failures whose requests were asked again."""
        for line in lines:
            self._meet(line)
            if superseded:
                self.tally.add_superseded(line.outcome)
                continue
            self._mark(line.outcome.index, line.outcome.input_crc32)
            self.tally.add(line.outcome)

    def scan(self, path: Path, tell: Callable[[str], None]) -> int:
        """Mark the lines of a file done, without adding them up; how many there are. `tell` hears how far it is."""
        count = 0
        unmarked: list[int] = []
        size, told_at = path.stat().st_size, 0
        for lines in scan_output(path):
            if lines.end - told_at >= _TOLD_BYTES:
                told_at = lines.end
                tell(
                    f"there is no checkpoint to go by: {told_at / 1e9:.1f} of {size / 1e9:.1f} GB of {path.name} read"
                )
            checksums = self._checksums_up_to(max(lines.indexes, default=-1))
            for index, input_crc32 in zip(lines.indexes, lines.input_crc32s, strict=True):
                checksums[index] = input_crc32
            for line in lines.headed:
                self._meet(line)
            count += len(lines.indexes)
            unmarked += lines.indexes
            if len(unmarked) >= _MARKED_TOGETHER:
                self._mark_all(unmarked)
                unmarked.clear()
        self._mark_all(unmarked)
        return count

    def _mark_all(self, indexes: list[int]) -> None:
        twice = self.done.add_all(indexes)
        if twice is not None:
            raise _doubled(twice)

    def _mark(self, index: int, input_crc32: int) -> None:
        if not self.done.add(index):
            raise _doubled(index)
        if self.checksums is not None:
            self._checksums_up_to(index)[index] = input_crc32

    def _checksums_up_to(self, index: int) -> array[int]:
        checksums = self.checksums = array("I") if self.checksums is None else self.checksums
        missing = index + 1 - len(checksums)
        if missing > 0:
            # By more than what is missing, or each of ten million lines would move all before it.
            checksums.frombytes(bytes((missing + len(checksums) // 8) * checksums.itemsize))
        return checksums

    def _meet(self, line: OutputLine) -> None:
        if self.job_id is None:
            self.job_id = line.job_id
        elif line.job_id != self.job_id:
            raise JobDamaged(
                f"the output mixes the jobs {self.job_id!r} and {line.job_id!r} (request {line.outcome.index}). "
                "Nothing was written. Restore the files from a copy, or move the lines of the second job aside with "
                "`batchkit repair`."
            )
        if line.run is not None:
            self.tally.begin_run(line.run)
            if self.run is None or line.run.started_at >= self.run.started_at:
                self.run = line.run

    def is_unchanged(self, line: Line) -> bool:
        """Whether a line is done already. Raises JobMismatch if it is, but not as it stands in the input now."""
        if line.index not in self.done:
            return False
        if self.checksums is not None:
            now = 0 if line.raw is None else crc32(line.raw)
            if self.checksums[line.index] != now:
                raise JobMismatch(
                    f"line {line.index + 1} of the input is not the one that was answered: the input was edited, or it is "
                    "another. Nothing was sent. Give the input as it was, or another output, or begin anew with --overwrite."
                )
        return True


def _doubled(index: int) -> JobDamaged:
    return JobDamaged(
        f"the output has two lines for request {index}. Nothing was written. `batchkit repair` moves the second one aside."
    )


LEFT_AT_ONCE = "left_at_once"
"""The stop reason of a run that was told twice to stop, and did not wait for the answers on their way."""
_TOLD_BYTES = 512 << 20
_MARKED_TOGETHER = 1 << 16
"""Requests end nearly in order: many more than are in flight make long intervals."""
AT_ONCE_BYTES = 32 << 20
"""Files up to this size are read whole before a run begins, which takes a second at most."""


def load_for_run(
    store: Store,
    identity: InputIdentity,
    *,
    rescan: bool = False,
    at_once_bytes: int = AT_ONCE_BYTES,
    tell: Callable[[str], None] = lambda _: None,
) -> JobState:
    """The state of a job that is about to run; mends the ends of its files.

    Of files longer than `at_once_bytes` only what the run needs to begin is read, and `audit` in the state is what is to be
    read beside it. `tell` hears how far a long reading is, `store.notices` what was mended. Raises JobDamaged where the files
    cannot be believed.
    """
    killed = any(store.sizes) and not _ended_by_itself(store)
    checkpoint = None if rescan else _usable(store, identity)
    at_once = sum(store.sizes) <= at_once_bytes
    if checkpoint is not None:
        state = JobState.of(checkpoint)
        state.killed = killed
        behind = Audit(store.paths.results, checkpoint.results_bytes, checkpoint.errors_bytes, add_up=False)
        if at_once:
            behind.read()
        else:
            state.audit = behind
        state.fold(store.recover(checkpoint.results_bytes, checkpoint.errors_bytes))
        return state
    state = JobState(checksums=array("I"), superseded=len(store.paths.superseded()), killed=killed)
    if at_once:
        for path in store.paths.superseded():
            state.fold(read_output(path), superseded=True)
        state.fold(store.recover())
        return state
    store.mend()
    state.unadded = (state.scan(store.paths.results, tell), state.scan(store.paths.errors, tell))
    state.audit = Audit(store.paths.results, *store.sizes, add_up=True)
    return state


def _ended_by_itself(store: Store) -> bool:
    """Whether the checkpoint says how the last run ended."""
    try:
        checkpoint = decode_checkpoint(store.read_checkpoint() or b"")
    except (ValueError, KeyError, TypeError):
        return False
    return checkpoint.status != "running" and checkpoint.stop_reason != LEFT_AT_ONCE


def reopen_failures(store: Store, identity: InputIdentity) -> JobState | None:
    """The state after the job's failures were set aside, so that their requests are open again; None if there are none."""
    moved = store.supersede_errors()
    if moved is None:
        return None
    store.notices.append(f"the failures so far were moved to {moved.name}; their requests are asked again")
    return load_for_run(store, identity, rescan=True)


def _usable(store: Store, identity: InputIdentity) -> Checkpoint | None:
    data = store.read_checkpoint()
    if data is None:
        if any(store.sizes):
            store.notices.append("there is no checkpoint; it is rebuilt from the output files")
        return None
    try:
        checkpoint = decode_checkpoint(data)
        JobState.of(checkpoint)
    except (ValueError, KeyError, TypeError) as error:
        store.notices.append(f"the checkpoint cannot be used ({error}); it is rebuilt from the output files")
        return None
    sizes = store.sizes
    if sizes[0] < checkpoint.results_bytes or sizes[1] < checkpoint.errors_bytes:
        short = store.paths.results if sizes[0] < checkpoint.results_bytes else store.paths.errors
        raise JobDamaged(
            f"{short} is shorter than its checkpoint says: it was cut or replaced. Nothing was written. Restore it; or go on "
            "without what is missing with --rescan, which asks those requests again; or begin anew with --overwrite."
        )
    if checkpoint.superseded != len(store.paths.superseded()):
        return None
    if identity.size is None or (checkpoint.input_size, checkpoint.input_mtime_ns) != (
        identity.size,
        identity.mtime_ns,
    ):
        # The input may have been edited: only the lines' own checksums can tell, and they stand in the output.
        return None
    return checkpoint


def read_state(output: Path, *, held: bool = False, from_files_alone: bool = False) -> JobState:
    """The state of a job, read without disturbing the run that may be working on it.

    `held` says that the caller itself holds the job's lock, so that no run can. `from_files_alone` leaves the checkpoint's
    totals aside. Raises JobDamaged where the files cannot be read.
    """
    paths = JobPaths(output)
    try:
        checkpoint = decode_checkpoint(paths.checkpoint.read_bytes())
        state = JobState.of(checkpoint)
        is_ahead = (
            _size(paths.results) < checkpoint.results_bytes or _size(paths.errors) < checkpoint.errors_bytes
        )
    except (OSError, ValueError, KeyError, TypeError):
        checkpoint, state, is_ahead = None, JobState(), False
    if is_ahead:
        # What was cut off is no longer the job's, nor is the word that it was complete.
        state.status, state.stop_reason = "running", None
    if checkpoint is None or is_ahead or from_files_alone or checkpoint.superseded != len(paths.superseded()):
        state = JobState(
            total=state.total, limit=state.limit, status=state.status, stop_reason=state.stop_reason
        )
        for path in paths.superseded():
            state.fold(read_output(path), superseded=True)
        starts = (0, 0)
    else:
        starts = (checkpoint.results_bytes, checkpoint.errors_bytes)
    for path, start in zip((paths.results, paths.errors), starts, strict=True):
        state.fold(read_output(path, start))
    if state.total is None and state.run is not None:
        state.total = _count_again(state.run)
    if not held and lock_holder(paths) is not None:
        state.status, state.stop_reason = "running", None
    elif state.status == "running":
        # It ended without saying how: killed, or the machine went down.
        state.status = "completed" if state.to_do == len(state.done) else "interrupted"
    return state


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _count_again(run: RunHeader) -> int | None:
    """The requests in the input that a run was started with, if it still is where it was."""
    source = Source(run.input_path)
    if run.input_bytes is None or source.is_stdin:
        return None
    try:
        if source.identify().size != run.input_bytes:
            return None
        return sum(1 for _ in source.lines())
    except BatchkitError:
        return None


def build_summary(state: JobState, prices: PriceList) -> dict[str, Any]:
    """The job's summary, in the shape of the summary file."""
    tally = state.tally
    cost = cost_of(tally, prices)
    latency = tally.latency
    totals = summary_format.Totals(
        succeeded=tally.succeeded,
        failed=tally.failed,
        attempts=tally.attempts,
        by_reason=tally.by_reason,
        truncated=tally.truncated,
        models={
            name: summary_format.ModelFigures(model.requests, model.usage, cost.by_model[name])
            for name, model in tally.models.items()
        },
        unknown_usage=tally.unknown,
        known_cost=cost.known_total,
        dearest=cost.dearest,
        unpriced_models=cost.unpriced_models,
        price_list=prices.name if tally.models else None,
        latency_s=None if latency is None else (latency.p50, latency.p90, latency.p99, latency.max),
        errors={code: (error.count, error.example) for code, error in tally.errors.items()},
        started_at=tally.started_at,
        finished_at=tally.finished_at,
        active_s=tally.active_s,
        simulated=tally.simulated,
        in_flight_at_kills=tally.in_flight_at_kills,
        maybe_billed=tally.maybe_billed,
        gateway_retries=tally.gateway_retries,
        from_cache=tally.from_cache,
    )
    return summary_format.build(
        totals,
        job_id=state.job_id or "",
        status=state.status,
        stop_reason=state.stop_reason,
        requests=state.to_do,
    )
