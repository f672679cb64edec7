"""What a job's files say, added up: which requests are done, the totals, what the runs were started with.

Everything is a fold over the lines of the output files. A checkpoint only lets the fold begin further on, and one that
does not fit the files is left aside.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

from batchkit.audit import Audit
from batchkit.errors import BatchkitError, JobDamaged, JobMismatch
from batchkit.formats.checkpoint import Checkpoint, decode_checkpoint, decode_standing
from batchkit.formats.results import OutputLine
from batchkit.outputs import JobPaths, lock_holder, read_output, scan_output, together
from batchkit.records import Line, RunHeader
from batchkit.rules.groups import Groups
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally
from batchkit.rules.tally_state import state_of, tally_of
from batchkit.scanning import scan_from_both_ends
from batchkit.source import InputIdentity, Source
from batchkit.store import Store

__all__ = [
    "AT_ONCE_BYTES",
    "LEFT_AT_ONCE",
    "JobState",
    "load_for_run",
    "read_state",
    "reopen_failures",
]


@dataclass(slots=True)
class JobState:
    """A job as far as its files tell it.

    `job_id` is None for one that has no line yet. `run` is what the latest run was started with. `total` counts the
    requests of the input, None while they are not counted, and `limit` is how many of them are asked for. `index` and `offset` are a line of the input before which all
    is done. `checksums` are those of the input's lines by index, None where a checkpoint stands for them or once they were compared.
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
    is_untold: bool = False
    """Whether the last run has left no line, so that none tells of the kills before it either."""
    checksums: array[int] | None = None
    asked_anew: DoneIndexes = field(default_factory=DoneIndexes)
    """Requests that are about to be asked again, as the input has them by then."""
    audit: Audit | None = None
    """What is still to be read of earlier lines; with `add_up`, the tally does not have them yet."""
    groups: Groups | None = None
    """What is added up beside the tally, where it is asked for."""
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

    @property
    def in_flight_untold(self) -> int:
        """How many answers at most were on their way when runs were killed, beside those that lines tell of."""
        if self.run is None:
            return 0
        return (self.run.concurrency if self.killed else 0) + (
            self.run.in_flight_before if self.is_untold else 0
        )

    @property
    def has_lines(self) -> bool:
        """Whether anything was written down of any request."""
        return len(self.done) > 0 or self.superseded > 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> JobState:
        """Begin with a checkpoint. Raises ValueError for a tally or intervals that cannot be."""
        state = cls(
            checkpoint.job_id,
            tally_of(checkpoint.tally),
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
        run = checkpoint.run
        state.is_untold = run is not None and not state.tally.runs.has_worked(run.started_at)
        return state

    def checkpoint(
        self, sizes: tuple[int, int], identity: InputIdentity, position: tuple[int, int] | None
    ) -> Checkpoint:
        """What `of` begins with: this state, of a job with an id, which accounts for so many bytes of the two files.

        `position` is a later line of the input before which all is done, if one is known.
        """
        results_bytes, errors_bytes = sizes
        index, offset = position or (self.index, self.offset)
        return replace(
            self.standing(),
            results_bytes=results_bytes,
            errors_bytes=errors_bytes,
            superseded=self.superseded,
            done=tuple(self.done.intervals()),
            tally=state_of(self.tally),
            input_index=index,
            input_offset=offset,
            input_size=identity.size,
            input_mtime_ns=identity.mtime_ns,
        )

    def standing(self) -> Checkpoint:
        """A checkpoint that says how the job stands and what the last run was started with, and accounts for no line."""
        return Checkpoint(
            job_id=self.job_id or "",
            results_bytes=0,
            errors_bytes=0,
            superseded=0,
            done=(),
            tally=state_of(Tally()),
            run=self.run,
            input_index=0,
            input_offset=0,
            # Of no input, so that nobody goes on from it.
            input_size=None,
            input_mtime_ns=None,
            total=self.total,
            limit=self.limit,
            status=self.status,
            stop_reason=self.stop_reason,
        )

    def fold(self, lines: Iterable[OutputLine], *, superseded: bool = False) -> None:
        """Add lines to the totals; `superseded` ones are failures whose requests were asked again."""
        for some in together(lines):
            for line in some:
                self._meet(line)
                if self.groups is not None:
                    self.groups.add(line.outcome, superseded=superseded)
                if not superseded:
                    self._mark(line.outcome.index, line.outcome.input_crc32)
            self.tally.add_all([line.outcome for line in some], superseded=superseded)

    def scan(self, path: Path, tell: Callable[[str], None]) -> int:
        """Mark the lines of a file done, without adding them up; how many there are. `tell` hears how far it is."""
        count = 0
        size, read, told_at = path.stat().st_size, 0, 0
        with closing(scan_from_both_ends(path)) as parts:
            for lines in parts:
                read += lines.size
                if read - told_at >= _TOLD_BYTES:
                    told_at = read
                    tell(
                        f"there is no checkpoint to go by: {read / 1e9:.1f} of {size / 1e9:.1f} GB of {path.name} read"
                    )
                checksums = self._checksums_up_to(max(lines.indexes, default=-1))
                for index, input_crc32 in zip(lines.indexes, lines.input_crc32s, strict=True):
                    checksums[index] = input_crc32
                for line in lines.headed:
                    self._meet(line)
                # Requests end nearly in order: so many more together than are in flight make long intervals.
                twice = self.done.add_all(lines.indexes)
                if twice is not None:
                    raise _doubled(twice)
                count += len(lines.indexes)
        return count

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
                self.run, self.is_untold = line.run, False

    def meet_last_run(self, checkpoint: Checkpoint) -> None:
        """Learn of a run that left no line, of which a checkpoint tells, even one that nothing else is taken from."""
        run = checkpoint.run
        self.job_id = self.job_id or checkpoint.job_id
        if run is not None and (self.run is None or run.started_at > self.run.started_at):
            self.run, self.is_untold = run, True

    def is_unchanged(self, line: Line) -> bool:
        """Whether a line is done already. Raises JobMismatch if it is, but not as it stands in the input now."""
        if line.index not in self.done:
            return False
        # A pipe is compared as it is read, and what was open before is sent by then.
        checksums = array("I", [0 if line.raw is None else crc32(line.raw)])
        self.refuse_changed(line.index, checksums, sent="Only lines before it were sent.")
        return True

    def refuse_changed(self, index: int, checksums: array[int], *, sent: str = "Nothing was sent.") -> None:
        """Compare lines of the input, from `index` on, with those that are done. Raises JobMismatch at the first other one."""
        if self.checksums is None or checksums == (then := self.checksums[index : index + len(checksums)]):
            return
        for at, (before, now) in enumerate(zip(then, checksums, strict=False), index):
            if before != now and at in self.done and at not in self.asked_anew:
                raise JobMismatch(
                    f"line {at + 1} of the input is not the one that was answered: the input was edited, or it is "
                    f"another. {sent} Give the input as it was, or another output, or begin anew with --overwrite; a line "
                    "that failed may be mended, and is asked again by --retry-failed."
                )

    def expect_anew(self, errors: Path) -> None:
        """Let the requests whose failures stand in a file be others than they were. Raises JobDamaged at a broken line."""
        for lines in scan_output(errors):
            self.asked_anew.add_all(lines.indexes)


def _doubled(index: int) -> JobDamaged:
    return JobDamaged(
        f"the output has two lines for request {index}. Nothing was written. `batchkit repair` moves the second one aside."
    )


LEFT_AT_ONCE = "left_at_once"
"""The stop reason of a run that was told twice to stop, and did not wait for the answers on their way."""
_TOLD_BYTES = 512 << 20
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
    killed = _was_killed(store)
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
    else:
        store.mend()
        state.unadded = (state.scan(store.paths.results, tell), state.scan(store.paths.errors, tell))
        state.audit = Audit(store.paths.results, *store.sizes, add_up=True)
    with suppress(ValueError, KeyError, TypeError):
        state.meet_last_run(decode_checkpoint(store.read_checkpoint() or b""))
    return state


def _was_killed(store: Store) -> bool:
    """Whether the last run, if there was one, ended without saying how, or did not wait for what was on its way."""
    data = store.read_checkpoint()
    if data is None:
        return any(store.sizes) or bool(store.paths.superseded())
    try:
        standing = decode_standing(data)
    except ValueError:
        return True
    return standing.status == "running" or standing.stop_reason == LEFT_AT_ONCE


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
    if not store.end_lines(checkpoint.results_bytes, checkpoint.errors_bytes):
        return None  # the last line that it counts is torn
    if identity.size is None or (checkpoint.input_size, checkpoint.input_mtime_ns) != (
        identity.size,
        identity.mtime_ns,
    ):
        # The input may have been edited: only the lines' own checksums can tell, and they stand in the output.
        return None
    return checkpoint


def read_state(
    output: Path, *, held: bool = False, from_files_alone: bool = False, groups: Groups | None = None
) -> JobState:
    """The state of a job, read without disturbing the run that may be working on it.

    `held` says that the caller itself holds the job's lock, so that no run can. `from_files_alone` leaves the checkpoint's
    totals aside, and so do `groups`, to which all lines are added. Raises JobDamaged where the files cannot be read.
    """
    paths = JobPaths(output)
    checkpoint, state, is_ahead = None, JobState(), False
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = paths.checkpoint.read_bytes()
        standing = decode_standing(data)
        state = JobState(
            total=standing.total,
            limit=standing.limit,
            status=standing.status,
            stop_reason=standing.stop_reason,
        )
        is_ahead = (
            _size(paths.results) < standing.results_bytes or _size(paths.errors) < standing.errors_bytes
        )
        # One of an earlier version ends here: how the job stands is known, and its totals are those of the lines.
        usable = decode_checkpoint(data)
        checkpoint, state = usable, JobState.of(usable)
    if is_ahead:
        # What was cut off is no longer the job's, nor is the word that it was complete.
        state.status, state.stop_reason = "running", None
    if (
        checkpoint is None
        or is_ahead
        or from_files_alone
        or groups is not None
        or checkpoint.superseded != len(paths.superseded())
    ):
        state = JobState(
            total=state.total,
            limit=state.limit,
            status=state.status,
            stop_reason=state.stop_reason,
            groups=groups,
        )
        for path in paths.superseded():
            state.fold(read_output(path), superseded=True)
        starts = (0, 0)
    else:
        starts = (checkpoint.results_bytes, checkpoint.errors_bytes)
    for path, start in zip((paths.results, paths.errors), starts, strict=True):
        state.fold(read_output(path, start))
    if checkpoint is not None:
        state.meet_last_run(checkpoint)
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
