"""Fakes for tests, ours and those of batchkit's users: time that nobody waits for, an endpoint that does as it is told.

    clock = ManualClock()
    endpoint = ScriptedEndpoint({"a": [failure("server_error"), reply()]}, clock=clock, latency_s=2.0)

Both keep the contract of the real ones: `engine.gate.Clock`, and `endpoint.Endpoint.attempt`, which reports what goes
wrong as a value and raises nothing. `FaultyDisk` keeps real files, and fails or dies when it is told to.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from random import Random
from typing import TypeVar

import anyio
import orjson

from batchkit.endpoint.room import Room
from batchkit.engine.gate import Clock
from batchkit.records import Answer, Failure, FailureKind, Reply, Request, Trace, Usage
from batchkit.store import Disk

__all__ = ["Crash", "FaultyDisk", "ManualClock", "ScriptedEndpoint", "failure", "reply"]

_IDLE_TURNS = 20

T = TypeVar("T")


class ManualClock:
    """Time that stands still while anything runs and jumps to the next sleeper when nothing does.

    An hour of backoff takes a millisecond. Times are seconds; `epoch` is the Unix time at `now() == 0`. What is done in a
    thread elsewhere is done at once and takes no time.
    """

    def __init__(self, epoch: float = 1_763_820_000.0) -> None:
        self._epoch = epoch
        self._now = 0.0
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._order = count()
        self._turns_left = 0
        self._watching = False

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def time(self) -> float:
        """Unix time in seconds."""
        return self._epoch + self._now

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds of this clock."""
        woken = anyio.Event()
        heapq.heappush(self._sleepers, (self._now + max(0.0, seconds), next(self._order), woken))
        self._turns_left = _IDLE_TURNS
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_soon(self._turn)
        await woken.wait()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do it here and now."""
        return work()

    def _turn(self) -> None:
        """One turn of the event loop is over. When enough of them brought no new sleeper, everyone waits for time."""
        self._turns_left -= 1
        if self._turns_left <= 0:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            woken.set()
            self._turns_left = _IDLE_TURNS
        if self._sleepers:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._watching = False


class ScriptedEndpoint:
    """Gives the answers it was told to give, and remembers what it was asked.

    `script` has the answers for a custom_id in order, the last of which is given from then on; a custom_id that is not in
    it is answered by `otherwise`. Each attempt takes `latency_s` seconds of `clock`.
    """

    def __init__(
        self,
        script: Mapping[str, Iterable[Answer]] | None = None,
        *,
        otherwise: Callable[[Request], Answer] | None = None,
        clock: Clock | None = None,
        latency_s: float = 0.0,
    ) -> None:
        self._script = {custom_id: list(answers) for custom_id, answers in (script or {}).items()}
        self._otherwise = otherwise if otherwise is not None else lambda _: reply()
        self._clock = clock
        self._latency_s = latency_s
        self._asked: defaultdict[str, int] = defaultdict(int)
        self.attempts: list[tuple[Request, Trace]] = []
        """Every attempt, in the order in which they began."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.sending: Callable[[], Room | None] = lambda: None
        """Called before each attempt, which a `Room` is waited for first."""

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        """The next answer for this request."""
        while (room := self.sending()) is not None:
            if not await room():
                return failure(FailureKind.CONNECTION_ERROR)
        self.attempts.append((request, trace))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._clock is not None:
                await self._clock.sleep(self._latency_s)
        finally:
            self.in_flight -= 1
        answers = self._script.get(request.custom_id)
        if not answers:
            return self._otherwise(request)
        asked = self._asked[request.custom_id]
        self._asked[request.custom_id] += 1
        return answers[min(asked, len(answers) - 1)]


class Crash(BaseException):
    """The process is killed here. No `except Exception` notices, and a `FaultyDisk` does nothing any more."""


class FaultyDisk(Disk):
    """Real files, on a disk that can fail, and that can forget what was not synced.

    `fault` is asked before each thing is done, with its name (`open`, `write`, `sync`, `truncate`, `rename`, `remove`,
    `sync_folder`) and its number from 0; it may raise an OSError, or `Crash`, after which nothing is done at all. For a
    `write` it may also return how many of the bytes are written before that many are reported (a short write), or, as a
    negative number, before `Crash` is raised.
    """

    def __init__(self, fault: Callable[[str, int], int | None] = lambda _what, _number: None) -> None:
        self.fault = fault
        self.steps = 0
        """How many things were asked of it."""
        self.dead = False
        self._synced: dict[int, int] = {}
        self._names_undone: list[Callable[[], object]] = []

    def open(self, path: Path, flags: int) -> int:
        self._step("open")
        if not path.exists():
            self._names_undone.append(lambda: path.unlink(missing_ok=True))
        descriptor = super().open(path, flags)
        status = os.fstat(descriptor)
        # What an earlier process left in a file has long been on the disk.
        self._synced.setdefault(status.st_ino, 0 if flags & os.O_TRUNC else status.st_size)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        some = self._step("write")
        if some is None:
            return super().write(descriptor, data)
        if some >= 0:
            return super().write(descriptor, data[: max(1, some)])
        super().write(descriptor, data[: -some % len(data)])
        self.dead = True
        raise Crash

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        status = os.fstat(descriptor)
        self._synced[status.st_ino] = status.st_size

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)
        inode = os.fstat(descriptor).st_ino
        self._synced[inode] = min(self._synced.get(inode, 0), size)

    def rename(self, path: Path, target: Path) -> None:
        self._step("rename")
        before = target.read_bytes() if target.exists() else None

        def undo() -> None:
            target.rename(path)
            if before is not None:
                target.write_bytes(before)

        super().rename(path, target)
        self._names_undone.append(undo)

    def remove(self, path: Path) -> None:
        self._step("remove")
        if path.exists():
            before = path.read_bytes()
            self._names_undone.append(lambda: path.write_bytes(before))
        super().remove(path)

    def sync_folder(self, folder: Path) -> None:  # noqa: ARG002 - there is one
        self._step("sync_folder")
        self._names_undone.clear()

    def lose_power(self, folder: Path, random: Random) -> None:
        """Forget what was not synced: the last of the names, and of each file's end a random part, or leave zeros there."""
        for _ in range(random.randint(0, len(self._names_undone))):
            self._names_undone.pop()()
        for path in sorted(folder.iterdir()):
            status = path.stat()
            synced = self._synced.get(status.st_ino, status.st_size)
            if synced < status.st_size:
                kept = random.randint(synced, status.st_size)
                os.truncate(path, kept)
                if random.random() < 0.3:
                    os.truncate(path, random.randint(kept, status.st_size))

    def _step(self, what: str) -> int | None:
        if self.dead:
            raise Crash
        number = self.steps
        self.steps += 1
        try:
            return self.fault(what, number)
        except Crash:
            self.dead = True
            raise


def reply(
    content: str = "Hello.", *, model: str = "gpt-4o-mini-2024-07-18", usage: Usage | None = None
) -> Reply:
    """A usable completion with status 200."""
    used = usage if usage is not None else Usage(10, 5, 15)
    body = {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        ],
        "usage": {
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "total_tokens": used.total_tokens,
            "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        },
    }
    return Reply(200, "req_test", orjson.dumps(body), model, used, "stop")


def failure(
    kind: FailureKind | str,
    *,
    code: str | None = None,
    message: str = "it did not work",
    status: int | None = None,
    retry_after: float | None = None,
) -> Failure:
    """An attempt that failed; `code` is the kind's word unless given."""
    kind = FailureKind(kind)
    return Failure(kind, code or kind.value, message, status, retry_after=retry_after)
