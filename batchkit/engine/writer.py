"""The one writer: an outcome becomes a line, then a part of the totals, then news.

In that order, and in one plain call, so that no total can count what has no line. Syncing and the checkpoint follow in a
task of their own, since waiting for a disk is no reason to stop reading answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from batchkit.engine.gate import Clock
from batchkit.engine.stop import Stop
from batchkit.errors import OutputFull, OutputUnwritable
from batchkit.events import Event, Notice, RequestFinished
from batchkit.records import Outcome
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally

__all__ = ["CHECKPOINT_INTERVAL_S", "SYNC_INTERVAL_S", "Writer"]

SYNC_INTERVAL_S = 0.2
"""At most so much work is lost when the machine loses its power."""
CHECKPOINT_INTERVAL_S = 5.0
_ASK_AGAIN_S = 1.0
"""How often a full disk is asked whether there is room by now."""


class Writer:
    """`append` puts an outcome's line into the output, `sync` waits for the disk, `is_dirty` tells whether that is due.

    `snapshot` is taken on the event loop, between two outcomes, and gives what writes the checkpoint in a thread.

    Where a line finds no room, it and all that follow are held in memory until there is some, and nothing new is begun
    meanwhile: what is held is at most what was in flight.
    """

    def __init__(
        self,
        *,
        append: Callable[[Outcome], None],
        sync: Callable[[], None],
        is_dirty: Callable[[], bool],
        snapshot: Callable[[], Callable[[], None]],
        tally: Tally,
        done: DoneIndexes,
        clock: Clock,
        stop: Stop,
        emit: Callable[[Event], None],
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
        self._held: deque[Outcome] = deque()
        self._asked_at = 0.0

    def write(self, outcome: Outcome) -> None:
        """Write the outcome of a request that has none yet, or hold it until there is room. Raises OutputUnwritable."""
        if self._held:
            self._held.append(outcome)
            return
        try:
            self._put(outcome)
        except OutputFull as error:
            self._held.append(outcome)
            self._asked_at = self._clock.now()
            self._emit(
                Notice(
                    f"{error.args[0]} Nothing new is begun; answers in flight are held in memory until there is room."
                )
            )

    def room(self) -> Awaitable[None] | None:
        """None while lines find room; else what waits until they do, or until the run stops."""
        return self._until_room() if self._held else None

    async def settle(self) -> None:
        """Have what is held written down. Raises OutputUnwritable if the run stops and there still is no room."""
        while self._held:
            self._put_held()
            if not self._held:
                return
            if self._stop.cause is not None:
                indexes = [outcome.index for outcome in self._held]
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
            if self._held and self._clock.now() - self._asked_at >= _ASK_AGAIN_S:
                self._put_held()
            if not self._is_dirty():
                continue
            # A checkpoint says before which line of the input all is done. The reader has passed answers that are held, and
            # who went on from there would never ask for them.
            if not self._held and self._clock.now() - saved_at >= CHECKPOINT_INTERVAL_S:
                await self.save()
                saved_at = self._clock.now()
            else:
                await self._clock.in_thread(self._sync)

    async def save(self) -> None:
        """Sync the output, then write a checkpoint of what was just synced. Raises OutputUnwritable."""
        write_checkpoint = self._snapshot()
        await self._clock.in_thread(self._sync)
        with suppress(OutputFull):  # it is a cache
            await self._clock.in_thread(write_checkpoint)

    def _put(self, outcome: Outcome) -> None:
        if outcome.index in self._done:
            raise RuntimeError(f"request {outcome.index} was worked on twice")
        self._append(outcome)
        self._done.add(outcome.index)
        self._tally.add(outcome)
        self._emit(RequestFinished(outcome))

    def _put_held(self) -> None:
        self._asked_at = self._clock.now()
        with suppress(OutputFull):
            while self._held:
                self._put(self._held[0])
                self._held.popleft()
            self._emit(Notice("there is room again; the run goes on"))

    async def _until_room(self) -> None:
        while self._held and self._stop.cause is None:
            await self._clock.sleep(SYNC_INTERVAL_S)
