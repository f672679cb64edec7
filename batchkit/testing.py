"""Fakes for tests, ours and those of batchkit's users: time that nobody waits for, an endpoint that does as it is told.

    clock = ManualClock()
    endpoint = ScriptedEndpoint({"a": [failure("server_error"), reply()]}, clock=clock, latency_s=2.0)

Both keep the contract of the real ones: `engine.gate.Clock`, and `endpoint.Endpoint.attempt`, which reports what goes
wrong as a value and raises nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import TypeVar

import anyio
import orjson

from batchkit.engine.gate import Clock
from batchkit.records import Answer, Failure, FailureKind, Reply, Request, Trace, Usage

__all__ = ["ManualClock", "ScriptedEndpoint", "failure", "reply"]

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

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        """The next answer for this request."""
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
