"""Reader, bounded workers, one writer: the run of a job, from a line in to a line out.

Workers pull lines from one reader and hand each outcome to the writer by a plain call, so between a line read and a line
written nothing waits: what exists at any moment is two batches of lines, the second of which is read before the first is
used up, some requests that were made of the first, and one for each worker. A slow endpoint, or a slow disk, is felt by the reader at once. There are as many workers
as attempts may be in flight, and one more for each whose request is held by a limit of its own model, so that requests to other
models are not.

A run begins with one worker. The rest follow when the endpoint has given a first usable answer, or has not said anything
for two seconds: a refused key costs one request, not one for each worker.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from batchkit.engine.gate import Clock
from batchkit.engine.stop import Stop
from batchkit.errors import BatchkitError
from batchkit.records import BadLine, Failure, FailureKind, Outcome, Request
from batchkit.rules.tracing import derive_trace_id

__all__ = ["Item", "Pipeline"]

_PROBE_S = 2.0
_TOGETHER = 32
"""Lines that are parsed one after the other, which takes less work than each of them between all else that a request takes."""
_MOST_BYTES = 64 << 10
"""Of the input in those lines, if they are more than one."""
_ALONE = 20
"""After so many answers the endpoint is known well enough, whatever they were (`rules.stopping` watches as many)."""


class Item(Protocol):
    """What the reader brings: a line of a file, or a record of a Python caller."""

    @property
    def index(self) -> int: ...

    @property
    def offset(self) -> int: ...


class Pipeline:
    """Works through batches of lines. `run` may be called once.

    `parse` makes a request of a line; `is_done` tells lines that have their outcome in the output already, and raises
    BatchkitError for one behind which nothing may be sent; `deliver` brings
    a request to its outcome or to None when the run stops; `write` takes the outcome; `room` gives
    None while the writer has room for another, else what waits until it has; `held` gives how many requests wait in `deliver`
    for what holds up no others. `reads_ahead` says that reading never takes for ever, so that it may begin before the last line is
    taken. `limit` bounds the requests, counted from the input's
    beginning, of which `before` lie before the first batch.
    """

    def __init__(
        self,
        batches: AsyncIterator[list[Any]],
        *,
        parse: Callable[[Any], Request | BadLine],
        is_done: Callable[[Any], bool],
        deliver: Callable[[Request], Awaitable[Outcome | None]],
        proven: Callable[[], bool],
        write: Callable[[Outcome], None],
        concurrency: int,
        job_id: str,
        stop: Stop,
        clock: Clock,
        limit: int | None = None,
        before: int = 0,
        room: Callable[[], Awaitable[object] | None] = lambda: None,
        held: Callable[[], int] = lambda: 0,
        reads_ahead: bool = False,
    ) -> None:
        self._batches = batches
        self._parse = parse
        self._is_done = is_done
        self._deliver = deliver
        self._proven = proven
        self._write = write
        self._concurrency = concurrency
        self._job_id = job_id
        self._stop = stop
        self._clock = clock
        self._left = None if limit is None else limit - before
        self._room = room
        self._held = held
        self._lines: deque[Item] = deque()
        self._parsed: deque[tuple[int, int, Request | BadLine]] = deque()
        """What comes before them and nobody works on yet: index, offset, and what the line says."""
        self._reads_ahead = reads_ahead
        self._few = 0
        """With fewer lines at hand it is time to read on."""
        self._reading = False
        self._waiting: deque[Future[None]] = deque()
        """Workers that want a line when there is none. Thousands do at times, and an event of anyio's would take ten times as much."""
        self._ended = self._read_all = False
        self._unreadable: BatchkitError | None = None
        """Why there are no more lines, if that is not the end of the input."""
        self._taken: dict[int, int] = {}
        self._last: tuple[int, int] | None = None
        self._tasks = asyncio.TaskGroup()
        """The workers. In a group of anyio's each would take 2.7 KB and some 30 µs more."""
        self._workers = 0
        self._answered = 0
        self._open = False
        self._probe = anyio.CancelScope()
        self._broke: Exception | None = None

    @property
    def busy(self) -> int:
        """Requests that were taken from the input and have no outcome yet."""
        return len(self._taken)

    @property
    def lines(self) -> int | None:
        """The lines of the input up to the last that is not blank; None unless all were read and taken."""
        if not self._read_all or self._lines or self._parsed:
            return None
        return 0 if self._last is None else self._last[0] + 1

    @property
    def starved(self) -> bool:
        """Whether workers are waiting for the input."""
        return bool(self._waiting)

    def position(self) -> tuple[int, int] | None:
        """Index and offset of a line before which all are done; None before the first line."""
        if self._taken:
            index = min(self._taken)
            return index, self._taken[index]
        if self._parsed:
            index, offset, _ = self._parsed[0]
            return index, offset
        if self._lines:
            return self._lines[0].index, self._lines[0].offset
        return self._last

    async def run(self) -> None:
        """Work until the input ends or the run stops. The first error that a worker raised is raised, alone."""
        try:
            async with anyio.create_task_group() as group, self._tasks:
                group.start_soon(self._open_later, group)
                self._begin(group)
            if self._unreadable is not None:
                # Only now: whoever still waited for a turn was to be sent before.
                self._stop.request(self._unreadable)
        finally:
            if self._broke is not None:
                raise self._broke from None

    def _begin(self, group: TaskGroup) -> None:
        if self._workers < self._concurrency + self._held():
            self._workers += 1
            self._tasks.create_task(self._work(group))

    def _break(self, group: TaskGroup, error: Exception) -> None:
        """End the run, for the first error there was."""
        self._broke = self._broke or error
        group.cancel_scope.cancel()

    async def _open_later(self, group: TaskGroup) -> None:
        """Let everyone work, if the endpoint takes its time with its first answer."""
        self._stop.ends(self._probe)
        with self._probe:
            await self._clock.sleep(_PROBE_S)
        self._stop.forget(self._probe)
        if not self._open and self._stop.cause is None:
            self._open = True
            self._begin(group)

    async def _work(self, group: TaskGroup) -> None:
        try:
            while True:
                if (wait := self._room()) is not None:
                    await wait
                taken = self._take()
                if taken is None:
                    if await self._more(group):
                        continue
                    break
                if len(self._lines) < self._few and not self._reading:
                    self._read_on(group)
                if self._open and (self._workers < self._concurrency or self._held()):
                    self._begin(group)
                index, request = taken
                del taken  # or what it holds would be held until the next
                if isinstance(request, BadLine):
                    self._write(self._failed(request))
                else:
                    outcome = await self._deliver(request)
                    if not self._open:
                        self._answered += 1
                        self._open = self._proven() or self._answered >= _ALONE
                    if outcome is None:
                        return
                    self._write(outcome)
                    del outcome  # or each worker keeps its last one for as long as it waits for the next
                del request, self._taken[index]
                if self._workers > self._concurrency and self._workers > self._concurrency + self._held():
                    self._workers -= 1
                    return
        except Exception as error:  # noqa: BLE001 - raised again, by `run`
            self._break(group, error)
        # The input is at its end: nobody is left to let in.
        self._probe.cancel()

    def _take(self) -> tuple[int, Request | BadLine] | None:
        """The index of the next line that has no outcome yet, and what it says; None if there is none at hand."""
        if self._stop.cause is not None:
            return None
        if not self._parsed:
            self._parse_some()
            if not self._parsed:
                self._ended = self._ended or self._is_enough
                return None
        index, offset, request = self._parsed.popleft()
        self._taken[index] = offset
        return index, request

    def _parse_some(self) -> None:
        size = 0
        while self._lines and len(self._parsed) < _TOGETHER and size < _MOST_BYTES:
            if self._left is not None:
                if self._left <= 0:
                    self._lines.clear()
                    break
                self._left -= 1
            line = self._lines.popleft()
            self._last = (line.index, line.offset)
            try:
                is_done = self._is_done(line)
            except BatchkitError as error:
                self._lines.clear()
                self._ended, self._unreadable = True, error
                break
            if not is_done:
                request = self._parse(line)
                size += 0 if isinstance(request, BadLine) else len(request.body)
                self._parsed.append((line.index, line.offset, request))

    @property
    def _is_enough(self) -> bool:
        """Whether the lines at hand are all that the limit leaves."""
        return self._left is not None and self._left <= len(self._lines)

    async def _more(self, group: TaskGroup) -> bool:
        """Wait for more lines. False at the end of the input or of the run."""
        if self._stop.cause is not None or (self._ended and not self._lines):
            self._wake(len(self._waiting))
            return False
        if not self._lines:
            self._read_on(group)
            turn = get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        return True

    def _wake(self, most: int) -> None:
        for _ in range(min(most, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def _read_on(self, group: TaskGroup) -> None:
        """Begin to read the next lines, unless there are none that anybody needs."""
        if not (self._reading or self._ended or self._is_enough):
            self._reading = True
            group.start_soon(self._read, group)

    async def _read(self, group: TaskGroup) -> None:
        # A reader may wait for ever (a pipe), so a stop does not wait for it.
        try:
            with anyio.CancelScope() as scope:
                self._stop.ends(scope)
                try:
                    lines = await anext(self._batches)
                    self._few = len(lines) if self._reads_ahead else 0
                    self._lines.extend(lines)
                except StopAsyncIteration:
                    self._ended = self._read_all = True
                except BatchkitError as error:
                    # What was read before is still worth sending.
                    self._ended, self._unreadable = True, error
                finally:
                    self._stop.forget(scope)
        except Exception as error:  # noqa: BLE001 - raised again, by `run`
            self._break(group, error)
        finally:
            self._reading = False
            # One for each line, and one who finds none and has the next read: whoever waits, waits for a read that is under way,
            # which a stop ends. All, if there is nothing to come.
            self._wake(len(self._waiting) if self._is_enough else len(self._lines) + 1)

    def _failed(self, line: BadLine) -> Outcome:
        """A line that is not sent: a failure without an attempt."""
        return Outcome(
            line.index,
            line.custom_id,
            Failure(FailureKind.BAD_LINE, line.code, line.message),
            derive_trace_id(self._job_id, line.index),
            0,
            0.0,
            round(self._clock.time(), 6),
            input_crc32=line.input_crc32,
            metadata=line.metadata,
        )
