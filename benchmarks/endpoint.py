"""An endpoint that costs next to nothing, so that the client is what is measured.

It answers whatever is POSTed with the same chat completion, at once or after a latency, and looks at no more of a request than
its length. A process of its own: `serving()` starts one and, when it is over, tells what CPU it took.

    python benchmarks/endpoint.py [latency_s] [sigma] [answer_bytes]
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import cast

from processes import environment, on_core

_BACKLOG = 16_384
_LATENCIES = 4_096
_CONTENT = "The answer has a few words. "


@dataclass(frozen=True)
class Manner:
    """How an endpoint answers: after a median of seconds (lognormal with that sigma), with a body of about so many bytes."""

    latency_s: float = 0.0
    sigma: float = 0.0
    answer_bytes: int = 700


def answer_of(size: int) -> bytes:
    """A whole HTTP answer whose body has `size` bytes, or the fewest that a completion can have."""
    completion = {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 250, "completion_tokens": 60, "total_tokens": 310},
    }
    room = max(0, size - len(json.dumps(completion)))
    content = (_CONTENT * (room // len(_CONTENT) + 1))[:room]
    completion["choices"][0]["message"]["content"] = content  # type: ignore[index]
    body = json.dumps(completion).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class Connection(asyncio.Protocol):
    """Answers one request after the other, each as soon as it is all there."""

    def __init__(self, answer: bytes, latencies: Iterator[float] | None) -> None:
        self._answer = answer
        self._latencies = latencies
        self._received = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports are none by inheritance.
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._received += data
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end].lower()
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._missing = int(length or 0) - (len(self._received) - end - 4)
            self._received = b""
        if self._missing:
            return
        if self._latencies is None:
            self._transport.write(self._answer)
        else:
            self._loop.call_later(next(self._latencies), self._respond)

    def _respond(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answer)


async def serve(manner: Manner) -> None:
    answer = answer_of(manner.answer_bytes)
    latencies = None
    if manner.latency_s:
        random = Random(1)
        drawn = (random.lognormvariate(math.log(manner.latency_s), manner.sigma) for _ in range(_LATENCIES))
        latencies = cycle(tuple(drawn))
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(answer, latencies), "127.0.0.1", 0, backlog=_BACKLOG
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Serving:
    """An endpoint that is there: its base URL, and at the end the seconds of CPU it took."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.cpu_s = 0.0


@contextmanager
def serving(manner: Manner) -> Iterator[Serving]:
    """An endpoint in a process of its own, on the last core. A new one has a new port, which no socket of a run before holds."""
    words = [str(word) for word in (manner.latency_s, manner.sigma, manner.answer_bytes)]
    with on_core(-1):
        child = subprocess.Popen(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, env=environment()
        )
    with child:
        assert child.stdout is not None
        here = Serving(f"http://127.0.0.1:{child.stdout.readline().strip()}/v1")
        try:
            yield here
        finally:
            child.terminate()
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            here.cpu_s = used.ru_utime + used.ru_stime


if __name__ == "__main__":
    import uvloop

    given = zip((float, float, int), sys.argv[1:], strict=False)
    uvloop.run(serve(Manner(*(kind(word) for kind, word in given))))
