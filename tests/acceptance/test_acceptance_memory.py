"""A job's size is no matter of memory."""

import asyncio
import json
import os
import sys
from contextlib import ExitStack

import pytest

SHORT, LONG = 2_500, 25_000
ALLOWED_KIB = 8 * 1024

_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_COMPLETION),
    _COMPLETION,
)


class Instant(asyncio.Protocol):
    """Answers each request alike and at once; a request comes in one piece or two."""

    def connection_made(self, transport):
        self._transport = transport
        self._pending = b""

    def data_received(self, data):
        self._pending += data
        head, end, body = self._pending.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) == int(length):
            self._pending = b""
            self._transport.write(_ANSWER)


class InstantServer:
    async def __aenter__(self):
        self._server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has its own unit elsewhere")
def test_ten_times_the_lines_take_the_same_memory(command, run_elsewhere, write_requests, tmp_path):
    with ExitStack() as running:
        server = running.enter_context(run_elsewhere(InstantServer()))
        peaks = {}
        for count in (SHORT, LONG):
            requests, results = write_requests(count), tmp_path / f"{count}.jsonl"
            run = command.start(
                "run", requests, "-o", results, "--base-url", server.base_url, "--concurrency", 64
            )
            _, status, usage = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
            assert run.returncode == 0
            assert results.read_bytes().count(b"\n") == count
            peaks[count] = usage.ru_maxrss
    assert peaks[LONG] <= peaks[SHORT] + max(ALLOWED_KIB, peaks[SHORT] / 10), peaks
