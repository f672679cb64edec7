"""The one writer: outcomes become lines, then a part of the totals, then news.

In that order, so that no total can count what has no line. The outcomes of one turn of the event loop are written together, by a
task that is woken by the first of them, or sooner by who is about to send anything (`sending`): at no moment are there more answers
without a line, and requests on their way, than may be in flight. Syncing and the checkpoint are a task of their own, since waiting
for a disk is no reason to stop reading answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from operator import attrgetter

import anyio

from batchkit.engine.gate import Clock
from batchkit.engine.stop import Stop
from batchkit.errors import OutputFull, OutputUnwritable
from batchkit.events import Event, Notice, RequestFinished
from batchkit.records import Failure, Outcome
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally

__all__ = ["CHECKPOINT_INTERVAL_S", "SYNC_INTERVAL_S", "Writer"]

SYNC_INTERVAL_S = 0.2
"""At most so much work is lost when the machine loses its power."""
CHECKPOINT_INTERVAL_S = 5.0
_ASK_AGAIN_S = 1.0
"""How often a full disk is asked whether there is room by now."""
_TOGETHER = 64
"""So many outcomes are written together at most: thousands may end in one turn of the event loop, and their lines are made at once."""
_LARGE_BYTES = 64 * 1024
"""Who brings so much is written at once, with those before it."""


class Writer:
    """`append` puts outcomes of one kind, results or failures, into the output: all of them, or none where it raises.

    `sync` waits for the disk, `is_dirty` tells whether that is due. `snapshot` is taken on the event loop, between two outcomes, and
    gives what writes the checkpoint in a thread. `told_with` may add to an outcome what else its line is to tell.

    Where lines find no room, they are held in memory until there is some, and nothing new is begun meanwhile: what is held is at most
    what was in flight. `run` goes on until cancelled while outcomes are written, `keep_safe` beside it.
    """

    def __init__(
        self,
        *,
        append: Callable[[Sequence[Outcome]], None],
        sync: Callable[[], None],
        is_dirty: Callable[[], bool],
        snapshot: Callable[[], Callable[[], None]],
        tally: Tally,
        done: DoneIndexes,
        clock: Clock,
        stop: Stop,
        emit: Callable[[Event], None],
        told_with: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ) -> None:
        self._append = append
        self._sync = sync
        self._is_dirty = is_dirty
        self._snapshot = snapshot
        self._tally = tally
        self._done = done
        self._clock = clock
        self._stop = stop
        self._emit = emit
        self._told_with = told_with
        self._outcomes: list[Outcome] = []
        """What has no line yet."""
        self._come = anyio.Event()
        self._broke: Exception | None = None
        self._is_full = False
        """Whether the last line found no room."""
        self._asked_at = 0.0

    def write(self, outcome: Outcome) -> None:
        """Have the outcome of a request that has none yet written: a failure at once, a result before the event loop has turned twice.

        What goes wrong is raised by `run`, `keep_safe` and `settle`.
        """
        outcomes, answer = self._outcomes, outcome.answer
        outcomes.append(outcome)
        if len(outcomes) == 1:
            self._come.set()
        # A failure may be one too many for the run, and lines that cannot be sent fail by the thousand in one turn.
        if len(outcomes) >= _TOGETHER or isinstance(answer, Failure) or len(answer.body) >= _LARGE_BYTES:
            self.flush()

    async def run(self) -> None:
        """Write what comes until cancelled. Raises OutputUnwritable."""
        while True:
            await self._come.wait()
            self._come = anyio.Event()
            self.flush()
            self._raise()

    def flush(self) -> None:
        """Write now what there is. What goes wrong is raised by `run` and `settle`."""
        if self._outcomes and not self._is_full and self._broke is None:
            self._put()

    def room(self) -> Awaitable[bool] | None:
        """None while lines find room; else what waits until they do, which is false when the run stops first."""
        return self._until_room() if self._is_full else None

    def sending(self) -> Callable[[], Awaitable[bool]] | None:
        """To be asked before requests are sent. What ended before is written now; where it cannot be, what waits until it can."""
        self.flush()
        return None if not self._is_full and self._broke is None else self._until_room

    async def settle(self) -> None:
        """Have everything written. Raises OutputUnwritable, also if the run stops and there still is no room."""
        while True:
            if self._outcomes and self._broke is None:
                self._put()
            self._raise()
            if not self._outcomes:
                return
            if self._stop.cause is not None:
                indexes = [outcome.index for outcome in self._outcomes]
                shown = ", ".join(map(str, indexes[:20])) + (" …" if len(indexes) > 20 else "")
                raise OutputUnwritable(
                    f"there is no room for the answers to {len(indexes):,} requests, which are lost (index {shown}). All "
                    "others are safe. Make room and start the same command again: it asks these once more."
                )
            await self._clock.sleep(_ASK_AGAIN_S)

    async def keep_safe(self) -> None:
        """Sync and write checkpoints until cancelled. Raises OutputUnwritable."""
        saved_at = self._clock.now()
        while True:
            await self._clock.sleep(SYNC_INTERVAL_S)
            if self._is_full and self._clock.now() - self._asked_at >= _ASK_AGAIN_S:
                self._put()
            self.flush()
            self._raise()
            if not self._is_dirty():
                continue
            try:
                saved_at = await self._sync_or_save(saved_at)
            except OutputUnwritable as error:
                self._broke = error  # nothing may be appended any more
                raise

    async def _sync_or_save(self, saved_at: float) -> float:
        """Sync, and write a checkpoint where one is due. When the last was written, in the clock's seconds."""
        # A checkpoint says before which line of the input all is done. The reader has passed answers that are held, and
        # who went on from there would never ask for them.
        if self._is_full or self._clock.now() - saved_at < CHECKPOINT_INTERVAL_S:
            await self._clock.in_thread(self._sync)
            return saved_at
        await self._save()
        return self._clock.now()

    async def _save(self) -> None:
        """Sync the output, then write a checkpoint of what was just synced."""
        write_checkpoint = self._snapshot()
        await self._clock.in_thread(self._sync)
        with suppress(OutputFull):  # it is a cache
            await self._clock.in_thread(write_checkpoint)

    def _put(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        written = 0
        try:
            if not self._is_full:  # else the first has been told with
                outcomes[0] = self._told_with(outcomes[0])
            for some in _alike(outcomes, 1 if self._is_full else _TOGETHER):
                self._put_some(some)
                written += len(some)
        except OutputFull as error:
            self._outcomes = outcomes[written:]
            self._asked_at = self._clock.now()
            if not self._is_full:
                self._is_full = True
                self._emit(
                    Notice(
                        f"{error.args[0]} Nothing new is begun; answers in flight are held in memory until there is room."
                    )
                )
        except Exception as error:  # noqa: BLE001 - it is raised where it ends the run, and not in whoever came to flush
            self._broke = error
        else:
            if self._is_full:
                self._is_full = False
                self._emit(Notice("there is room again; the run goes on"))

    def _put_some(self, outcomes: Sequence[Outcome]) -> None:
        done = self._done
        for outcome in outcomes:
            if outcome.index in done:
                raise RuntimeError(f"request {outcome.index} was worked on twice")
        self._append(outcomes)
        done.add_all([outcome.index for outcome in outcomes])
        self._tally.add_all(outcomes)
        for outcome in outcomes:
            self._emit(RequestFinished(outcome))

    def _raise(self) -> None:
        if self._broke is not None:
            raise self._broke

    async def _until_room(self) -> bool:
        while self._is_full and self._stop.cause is None:
            await self._clock.sleep(SYNC_INTERVAL_S)
        return not self._is_full and self._broke is None


def _alike(outcomes: Sequence[Outcome], most: int) -> Iterator[Sequence[Outcome]]:
    """Those that stand behind one another and belong into the same file, so many at a time."""
    for _, alike in groupby(outcomes, key=attrgetter("answer.__class__")):
        while some := list(islice(alike, most)):
            yield some
