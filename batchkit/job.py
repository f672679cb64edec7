"""Chooses the parts and joins them: a file of requests worked through into a file of answers.

`run_job` is the whole of it. What a run does, in order: look at everything that could forbid it (settings, keys, the input,
the output) before anything is written; take the job's lock and read what stands in its files; send; and, whatever
happened, leave files that say exactly what was answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from msgspec.structs import replace

from batchkit.accounts import build_summary
from batchkit.audit import Audit
from batchkit.belonging import cut_short, refuse_other_input, refuse_other_settings
from batchkit.credentials import Credentials
from batchkit.endpoint import Endpoint, open_endpoint
from batchkit.engine.gate import Clock, SystemClock
from batchkit.engine.limit_news import LimitNews
from batchkit.engine.monitor import Monitor, Readings
from batchkit.engine.pipeline import Pipeline
from batchkit.engine.purse import in_dollars
from batchkit.engine.stop import Stop
from batchkit.engine.writer import Writer
from batchkit.errors import (
    BatchkitError,
    Interrupted,
    JobDamaged,
    JobError,
    OutputFull,
    OutputUnwritable,
    RunStopped,
    UsageError,
)
from batchkit.events import Event, Notice, Observer, RequestFinished, RunFinished, RunStarted, RunStopping
from batchkit.formats import report as report_format, summary as summary_format
from batchkit.formats.checkpoint import encode_checkpoint
from batchkit.formats.headers import EndpointAddress
from batchkit.formats.prices import prices_to_json
from batchkit.formats.requests import parse_line
from batchkit.formats.results import OutputLine
from batchkit.formats.spending import encode_spending
from batchkit.outputs import JobPaths
from batchkit.parts import (
    affordable,
    build_delivery,
    build_purse,
    new_job_id,
    open_address,
    too_many_failures,
    worst_cases_of,
)
from batchkit.records import BadLine, Line, Outcome, Request, RunHeader
from batchkit.rules.pricing import PriceList, cost_of
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.spending import Spending
from batchkit.rules.tally import Tally
from batchkit.settings import Settings
from batchkit.source import InputIdentity, Source
from batchkit.spent import read_authorised, refuse_unbounded, spent_before, write_authorised
from batchkit.state import AT_ONCE_BYTES, LEFT_AT_ONCE, JobState, load_for_run, reopen_failures
from batchkit.store import Store
from batchkit.version import __version__

__all__ = ["JobRun", "run_job", "write_derived"]

_PATIENCE_S = 1.0
_LINES_EACH = 4
"""Lines that are read together for each attempt that may be in flight: a worker that finds none has to wait, and to be woken."""
_SIMULATED = "simulator"
"""What stands for the base URL of a simulated run, whose port changes from run to run."""


async def run_job(
    input_path: str,
    output: Path,
    settings: Settings,
    credentials: Credentials,
    *,
    stop: Stop,
    observers: Sequence[Observer],
) -> dict[str, Any]:
    """One run of a job, for the two front doors. `stop` lets the caller end it."""
    clock = SystemClock()
    source = Source(input_path, in_thread=clock.in_thread)
    identity = source.identify()
    _refuse_input_as_output(identity, output)
    monitor = Monitor(observers, clock)
    async with AsyncExitStack() as parts:
        address = await open_address(parts, settings, credentials)
        store = Store.open(output, overwrite=settings.overwrite)
        try:
            job = JobRun(store, source, identity, settings, address, monitor, clock, stop)
            await job.load()
            endpoint = await parts.enter_async_context(open_endpoint(address, timeout=settings.timeout))
            return await job.work(endpoint)
        finally:
            store.close()


def _refuse_input_as_output(identity: InputIdentity, output: Path) -> None:
    if identity.size is None:
        return
    for path in JobPaths(output).all:
        if path.exists() and path.samefile(identity.path):
            what = "output" if path == output else "a file of the output's job"
            raise UsageError(f"input and {what} are the same file, {path}; name another output")


class JobRun:
    """One run of one job: its state, and the parts that change it."""

    def __init__(
        self,
        store: Store,
        source: Source,
        identity: InputIdentity,
        settings: Settings,
        address: EndpointAddress,
        monitor: Monitor,
        clock: Clock,
        stop: Stop,
        *,
        at_once_bytes: int = AT_ONCE_BYTES,
        audit: Callable[[Audit], Awaitable[Tally | None]] = Audit.run,
    ) -> None:
        """`at_once_bytes` is how large an output is read whole before the run; a larger one goes to `audit`."""
        self._at_once_bytes = at_once_bytes
        self._read_beside = audit
        self._store = store
        self._source = source
        self._identity = identity
        self._settings = settings
        self._address = address
        self._monitor = monitor
        self._clock = clock
        self._stop = stop
        self._header = RunHeader(
            started_at=round(clock.time(), 6),
            base_url=_SIMULATED if settings.simulate else address.base_url,
            defaults=settings.defaults,
            input_path=identity.path,
            input_bytes=identity.size,
            simulated=settings.simulate,
            version=__version__,
            concurrency=settings.concurrency,
            prices=prices_to_json(settings.given_prices),
        )
        # The first line that this run writes into each of the two files says what the run was started with, so that
        # whoever folds a file meets the run before its lines.
        self._headed: set[bool] = set()
        self._prices = PriceList(
            at=self._header.started_at,
            base_url="" if settings.simulate else address.base_url,
            given=settings.given_prices,
        )
        self._prices_ready = False
        self._worst_cases = worst_cases_of(settings, self._prices)
        self._spending: Spending | None = None
        """What may still be spent, in a run with a `max_cost`."""
        self._state = JobState()
        self._pipeline: Pipeline | None = None
        self._job_id = ""
        self._resumed = False
        self._damage: JobDamaged | None = None
        """What is broken in the lines that are looked at beside the run."""
        self._asked_again = DoneIndexes()
        """Requests that have failed before, in a job that has results."""
        self._counted = anyio.Event()
        self._audited = anyio.Event()

    async def load(self) -> None:
        """Read what stands in the job's files, and refuse what does not belong to them."""
        settings = self._settings
        self._state = state = await self._clock.in_thread(
            lambda: load_for_run(
                self._store,
                self._identity,
                rescan=settings.rescan,
                at_once_bytes=self._at_once_bytes,
                tell=self._tell_reading,
            )
        )
        if state.has_lines and state.job_id is not None:
            refuse_other_settings(settings, state.job_id, state.run, self._header)
            # A pipe is read once: its lines are compared as they are met.
            if self._identity.size is not None and state.checksums is not None:
                if settings.retry_failed:
                    await self._clock.in_thread(lambda: state.expect_anew(self._store.paths.errors))
                await refuse_other_input(self._source, state, self._stop)
        self._resumed = state.job_id is not None
        self._header = replace(self._header, in_flight_before=state.in_flight_untold)
        capped_before = state.run is not None and state.run.max_cost is not None
        if settings.max_cost is not None or capped_before or self._store.paths.spending.exists():
            await self._reckon()
        if settings.retry_failed:
            # Only now: a run that is refused leaves everything as it was.
            reopened = await self._clock.in_thread(lambda: reopen_failures(self._store, self._identity))
            if reopened is not None:
                self._state = state = reopened
        if state.ended[0]:
            self._asked_again = await self._clock.in_thread(self._store.asked_again)
        self._job_id = settings.job_id or state.job_id or new_job_id(self._header.started_at)
        state.job_id = self._job_id
        state.limit = settings.limit
        state.status, state.stop_reason = "running", None
        state.tally.begin_run(self._header)
        state.run = self._header

    def _tell_reading(self, message: str) -> None:
        """Tell how far a long reading is, and end it where the run was asked to stop."""
        if self._stop.cause is not None:
            raise self._stop.cause
        self._monitor.emit(Notice(message))

    async def _reckon(self) -> None:
        """See what runs before have spent, and whether the rest can be bounded; for which all of it must be added up."""
        settings, state, store = self._settings, self._state, self._store
        await self._read_prices()
        if state.audit is not None and state.audit.add_up:
            await self._add_up(state.audit)
        cap = settings.cost_cap
        authorised = read_authorised(store, state.run)
        before = spent_before(state, self._prices, authorised, capped=cap is not None)
        self._header = replace(self._header, max_cost=cap, unseen_cost=before.unseen)
        if before.unseen:
            store.notices.append(
                f"runs before may have spent {in_dollars(before.unseen)} of which no line tells: it counts as spent"
            )
        if cap is None:
            return
        if self._identity.size is not None:
            await refuse_unbounded(
                self._source,
                state,
                self._worst_cases,
                self._header.defaults,
                limit=settings.limit,
                again=settings.retry_failed,
                stop=self._stop,
                in_thread=self._clock.in_thread,
                tell=lambda message: self._monitor.emit(Notice(message)),
            )
        self._spending = Spending(cap, before.total)

    async def work(self, endpoint: Endpoint) -> dict[str, Any]:
        """Send what is not done, to the end of the input or of the run. Returns the summary."""
        settings, state, clock, stop, monitor = (
            self._settings,
            self._state,
            self._clock,
            self._stop,
            self._monitor,
        )
        stop.told = self._tell_stop
        concurrency = affordable(settings.concurrency, monitor)
        spending = self._spending
        purse = None
        if spending is not None:
            authorise = partial(write_authorised, self._store, stop=stop, clock=clock, emit=monitor.emit)
            purse = build_purse(spending, self._worst_cases, stop, clock, monitor, authorise)
        gate, delivery = build_delivery(
            endpoint,
            settings,
            self._job_id,
            stop,
            clock,
            monitor,
            url=self._address.url,
            concurrency=concurrency,
            resumed=self._resumed,
            asked_again=self._asked_again,
            purse=purse,
        )
        writer = Writer(
            append=self._append,
            sync=self._store.sync,
            is_dirty=lambda: self._store.dirty,
            snapshot=self._snapshot,
            tally=state.tally,
            done=state.done,
            clock=clock,
            stop=stop,
            emit=monitor.emit if settings.max_failures is None else self._tell_of_failures,
            told_with=LimitNews(gate, clock).told_with,
        )
        endpoint.sending = writer.sending
        pipeline = self._pipeline = Pipeline(
            self._source.batches(
                state.index,
                state.offset,
                least=1 if self._identity.size is None else _LINES_EACH * concurrency,
            ),
            parse=self._parse,
            is_done=state.is_unchanged,
            deliver=delivery.deliver,
            proven=lambda: delivery.proven,
            write=writer.write,
            concurrency=concurrency,
            job_id=self._job_id,
            stop=stop,
            clock=clock,
            limit=settings.limit,
            before=state.done.below(state.index),
            room=writer.room,
            held=gate.held,
            # A read of a pipe may take for ever, and nothing ends it.
            reads_ahead=self._identity.size is not None,
        )
        monitor.readings = Readings(
            state.tally,
            pipeline,
            delivery,
            gate,
            concurrency,
            lambda: state.ended,
            lambda: state.to_do,
            self._cost_so_far,
            None if spending is None else float(spending.cap),
        )
        monitor.emit(
            RunStarted(
                self._job_id,
                *state.ended,
                "the embedded simulator" if settings.simulate else self._address.base_url,
                concurrency,
            )
        )
        for notice in self._store.notices:
            monitor.emit(Notice(notice))
        await clock.in_thread(self._say_that_it_runs)
        broke: BatchkitError | None = None
        try:
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(writer.run)
                    group.start_soon(writer.keep_safe)
                    group.start_soon(monitor.watch)
                    group.start_soon(delivery.under_way.run)
                    group.start_soon(self._read_prices)
                    group.start_soon(self._count)
                    group.start_soon(self._audit)
                    with stop.abandoned:
                        await pipeline.run()
                        # What is pending belongs into the summary; someone who stops the run does not wait long for it.
                        with anyio.move_on_after(_PATIENCE_S if stop.cause is not None else None):
                            await self._counted.wait()
                        await self._audited.wait()
                    await writer.settle()
                    group.cancel_scope.cancel()
            finally:
                # Whatever ended it, what was answered is paid for.
                writer.flush()
            await clock.in_thread(self._store.sync)
        except* BatchkitError as errors:
            broke = _first(errors)
        if delivery.left_open:
            self._set_aside(delivery.left_open)
        return self._close(stop.cause if broke is None else broke, writer_failed=broke is not None)

    def _say_that_it_runs(self) -> None:
        """See that no kill from now on is taken for the end of the run before, which the checkpoint may tell of."""
        store = self._store
        try:
            if self._spending is not None:
                # First: a checkpoint that tells of a `max_cost`, and no such file, would mean that all of it may be spent.
                store.write_spending(encode_spending(self._spending.used))
            store.replace(store.paths.checkpoint, self._encoded())
        except OutputFull:
            store.remove_checkpoint()

    def _set_aside(self, left_open: Sequence[Outcome]) -> None:
        """Write down what requests have cost that stay open: no line of theirs will tell."""
        first, *others = (OutputLine(outcome, self._job_id) for outcome in left_open)
        try:
            path = self._store.set_aside([replace(first, run=self._header), *others])
        except OutputUnwritable as error:
            self._monitor.emit(
                Notice(f"what {len(left_open):,} requests have cost that stay open is in no total: {error}")
            )
            return
        self._state.superseded += 1
        self._state.tally.add_all(left_open, superseded=True)
        self._monitor.emit(
            Notice(
                f"{len(left_open):,} requests stay open that may have cost something; it is in the totals, by {path.name}"
            )
        )

    def _tell_of_failures(self, event: Event) -> None:
        """Tell the observers, and see whether that was a failure too many."""
        self._monitor.emit(event)
        if isinstance(event, RequestFinished) and not event.outcome.succeeded:
            self._stop_at_most_failures()

    def _stop_at_most_failures(self) -> None:
        cause = too_many_failures(self._settings, *self._state.ended, self._state.to_do)
        if cause is not None:
            self._stop.request(cause)

    def _append(self, outcomes: Sequence[Outcome]) -> None:
        lines = [OutputLine(outcome, self._job_id) for outcome in outcomes]
        succeeded = outcomes[0].succeeded
        if succeeded in self._headed:
            self._store.append(*lines)
        else:
            self._store.append(replace(lines[0], run=self._header), *lines[1:])
            self._headed.add(succeeded)

    def _parse(self, line: Line) -> Request | BadLine:
        return parse_line(line, self._header.defaults, self._address)

    def _tell_stop(self, cause: BatchkitError) -> None:
        self._monitor.emit(RunStopping(str(cause)))

    def _snapshot(self) -> Callable[[], None]:
        """The job at this moment, as what writes it down later; nothing while its totals are not complete."""
        store = self._store
        if self._adds_up:
            return lambda: None
        data = self._encoded()
        return lambda: store.replace(store.paths.checkpoint, data)

    @property
    def _adds_up(self) -> bool:
        """Whether earlier lines are not in the totals yet."""
        return self._state.audit is not None and self._state.audit.add_up

    def _encoded(self) -> bytes:
        """The checkpoint of this moment. While totals are not complete, one that tells of the run and accounts for no line."""
        if self._adds_up:
            return encode_checkpoint(self._state.standing())
        position = None if self._pipeline is None else self._pipeline.position()
        return encode_checkpoint(self._state.checkpoint(self._store.sizes, self._identity, position))

    async def _count(self) -> None:
        """Count the input's requests, for the time left and for what is pending."""
        state = self._state
        if state.total is None and self._identity.size is not None:
            with suppress(
                RunStopped
            ):  # whoever reads the lines to send them comes to the same place, and says so
                state.total = await self._source.count()
                # What was a share of little may be one of all.
                self._stop_at_most_failures()
        self._counted.set()

    async def _audit(self) -> None:
        """Look at the earlier lines of a large job, and add them up if that is still to be done."""
        state = self._state
        if state.audit is not None:
            try:
                await self._add_up(state.audit)
            except JobDamaged as damage:
                self._damage = damage
                self._stop.request(damage)
            else:
                self._stop_at_most_failures()
        self._audited.set()

    async def _add_up(self, audit: Audit) -> None:
        state = self._state
        if audit.add_up:
            self._monitor.emit(Notice(f"adding up {sum(state.unadded):,} earlier lines"))
        earlier = await self._read_beside(audit)
        if earlier is not None:
            state.tally.merge(earlier)
        state.audit, state.unadded = None, (0, 0)

    async def _read_prices(self) -> None:
        """Read the price list off the event loop."""
        await self._clock.in_thread(self._prices.load)
        self._prices_ready = True

    def _cost_so_far(self) -> tuple[float | None, bool]:
        if self._spending is not None:
            return float(self._spending.spent), False
        if not self._prices_ready:
            return None, False
        cost = cost_of(self._state.tally, self._prices)
        return float(cost.known_total), cost.total is None

    def _close(self, cause: BatchkitError | None, *, writer_failed: bool) -> dict[str, Any]:
        """Say how it ended, in the checkpoint, the summary and the report, then raise what stopped the run."""
        state, store = self._state, self._store
        lines = None if self._pipeline is None else self._pipeline.lines
        if self._identity.size is None and cause is None and lines is not None:
            # Only now is it known how long it was.
            if lines < state.done.end:
                cause = cut_short(lines, state, sent="What was open of it was sent.")
            elif state.limit is None:
                state.total = len(state.done)
        unfinished = state.to_do is None or len(state.done) < state.to_do
        if self._damage is not None:
            cause = self._damage
        elif not (unfinished or writer_failed or self._adds_up or isinstance(cause, JobError)):
            # It was asked to stop when there was nothing left to stop.
            cause = None
        state.status = "completed"
        if isinstance(cause, Interrupted):
            state.status = "interrupted"
        elif cause is not None:
            state.status = "stopped"
            state.stop_reason = cause.code if isinstance(cause, RunStopped) else type(cause).__name__
        if cause is not None and self._stop.abandoned.cancel_called:
            state.stop_reason = LEFT_AT_ONCE
        if self._spending is not None and not writer_failed:
            # Whoever cannot write it leaves more standing there than was spent, which is no danger.
            with suppress(BatchkitError):
                store.write_spending(encode_spending(self._spending.used))
        if self._adds_up and cause is not None:
            # Left before the earlier lines were added up: no totals are better than wrong ones.
            with suppress(BatchkitError):
                store.replace(store.paths.checkpoint, self._encoded())
            self._monitor.close()
            raise cause
        summary = build_summary(state, self._prices)
        if not writer_failed:
            try:
                self._snapshot()()
                write_derived(store, summary)
            except Exception as error:  # noqa: BLE001 - whatever it is, the answers are worth more
                self._monitor.emit(
                    Notice(
                        f"the summary or the report could not be written ({error!r}); every answer is. `batchkit report` makes both"
                    )
                )
        self._monitor.close()
        self._monitor.emit(RunFinished(summary))
        if cause is not None:
            cause.summary = summary
            raise cause
        return summary


def write_derived(store: Store, summary: Mapping[str, Any]) -> None:
    """Write the summary and the report beside the output."""
    store.replace(store.paths.summary, summary_format.dumps(summary))
    store.replace(store.paths.report, report_format.render_html(summary).encode())


def _first(group: BaseExceptionGroup[BatchkitError]) -> BatchkitError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
