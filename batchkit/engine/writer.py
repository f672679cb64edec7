"""The one writer: an outcome becomes a line, then a part of the totals, then news.

In that order, and in one plain call, so that no total can count what has no line. Syncing and the checkpoint follow in a
task of their own, since waiting for a disk is no reason to stop reading answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from anyio import to_thread

from batchkit.engine.gate import Clock
from batchkit.events import Event, RequestFinished
from batchkit.records import Outcome
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.tally import Tally

__all__ = ["CHECKPOINT_INTERVAL_S", "SYNC_INTERVAL_S", "Writer"]

SYNC_INTERVAL_S = 0.2
"""At most so much work is lost when the machine loses its power."""
CHECKPOINT_INTERVAL_S = 5.0


class Writer:
    """`append` puts an outcome's line into the output, `sync` waits for the disk, `is_dirty` tells whether that is due.

    `snapshot` is taken on the event loop, between two outcomes, and gives what writes the checkpoint in a thread.
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
        emit: Callable[[Event], None],
        in_thread: Callable[[Callable[[], None]], Awaitable[None]] = to_thread.run_sync,
    ) -> None:
        self._append = append
        self._sync = sync
        self._is_dirty = is_dirty
        self._snapshot = snapshot
        self._tally = tally
        self._done = done
        self._clock = clock
        self._emit = emit
        self._in_thread = in_thread

    def write(self, outcome: Outcome) -> None:
        """Write the outcome of a request that has none yet. Raises OutputUnwritable."""
        if outcome.index in self._done:
            raise RuntimeError(f"request {outcome.index} was worked on twice")
        self._append(outcome)
        self._done.add(outcome.index)
        self._tally.add(outcome)
        self._emit(RequestFinished(outcome))

    async def keep_safe(self) -> None:
        """Sync and write checkpoints until cancelled. Raises OutputUnwritable."""
        saved_at = self._clock.now()
        while True:
            await self._clock.sleep(SYNC_INTERVAL_S)
            if not self._is_dirty():
                continue
            if self._clock.now() - saved_at >= CHECKPOINT_INTERVAL_S:
                await self.save()
                saved_at = self._clock.now()
            else:
                await self._in_thread(self._sync)

    async def save(self) -> None:
        """Sync the output, then write a checkpoint of what was just synced. Raises OutputUnwritable."""
        write_checkpoint = self._snapshot()
        await self._in_thread(self._sync)
        await self._in_thread(write_checkpoint)
