"""How long a job with many results takes to go on: with its checkpoint, and without.

Makes an input and an output of N results (default a million) in a temporary folder: lines of 570 to 830 bytes, in the order
in which requests end, here and there a body with what looks like our own part of a line. Adds a thousand open requests, and starts
the real command against a small server on loopback that notes when the first request comes. Prints seconds to the first request,
peak memory, and the speed of the scan; and what `status` and `report` take before and after, without a checkpoint and with it.

    python benchmarks/going_on.py 10000000
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections import deque
from pathlib import Path
from random import Random
from zlib import crc32

from processes import environment, measure

from batchkit.formats.results import OutputLine, encode
from batchkit.outputs import check_output, scan_output
from batchkit.records import Outcome, Reply, RunHeader
from batchkit.state import JobState
from batchkit.testing import reply

OPEN = 1000
IN_FLIGHT = 256
MOST_CONTENT = 260
BODY = b'{"model":"m","messages":[{"role":"user","content":"%d"}]}'
ANSWER = (
    b'{"id":"chatcmpl-test","object":"chat.completion","model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}'
)
TRAP = b'","more":{"a":0,"batchkit":{"index":7,"input_crc32":"00000000"}},"b":"'
"""Ends the content to put beside it what looks like our own part of a line."""


def make(folder: Path, results: int, base_url: str) -> tuple[Path, Path]:
    source, output = folder / "in.jsonl", folder / "results.jsonl"
    with source.open("wb") as lines:
        for index in range(results + OPEN):
            lines.write(BODY % index + b"\n")
    header = RunHeader(1.0, base_url, {}, str(source), source.stat().st_size)

    def line(index: int, content: bytes, run: RunHeader | None = None) -> bytes:
        answer = Reply(200, "req_test", ANSWER % content)
        outcome = Outcome(index, f"line-{index}", answer, "0" * 32, 1, 0.5, 2.0, {}, crc32(BODY % index))
        return encode(OutputLine(outcome, "job", run))

    # Encoding all of them would take longer than what is measured.
    one = line(1, b"CONTENT")
    template = one[: one.rindex(b',"crc32"')]
    for found, hole in (
        (b"%016x" % 1, b"%016x"),
        (b'"line-1"', b'"line-%d"'),
        (b"CONTENT", b"%b"),
        (b'"index":1,"input_crc32":"%08x"' % crc32(BODY % 1), b'"index":%d,"input_crc32":"%08x"'),
    ):
        template = template.replace(found, hole)
    dice = Random(1)
    with output.open("wb", buffering=1 << 20) as lines:
        lines.write(line(0, b"", header))
        for first in range(1, results, IN_FLIGHT):
            indexes = list(range(first, min(first + IN_FLIGHT, results)))
            dice.shuffle(indexes)
            for index in indexes:
                content = b"x" * dice.randrange(MOST_CONTENT) + (TRAP if index % 1000 == 0 else b"")
                covered = template % (index, index, content, index, crc32(BODY % index))
                lines.write(b'%b,"crc32":"%08x"}}\n' % (covered, crc32(covered)))
    (folder / "results.errors.jsonl").touch()
    return source, output


class Server(asyncio.Protocol):
    """Answers everything alike, and notes when the first request came."""

    first: float | None = None
    answer = reply("x").body
    response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(answer),
        answer,
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        Server.first = Server.first or time.monotonic()
        for _ in range(data.count(b"POST ")):
            self.transport.write(self.response)  # type: ignore[attr-defined]


async def start(
    source: Path, output: Path, base_url: str, port: int, more: list[str]
) -> tuple[float, float, float]:
    """Seconds to the first request, seconds in all, and peak memory in MiB."""
    Server.first = None
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batchkit", "run", str(source), "-o", str(output), "--base-url", base_url,
        "--progress", "off", *more, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    peak = 0.0
    while process.returncode is None:
        try:
            with open(f"/proc/{process.pid}/status", encoding="ascii") as status:  # noqa: ASYNC230, PTH123
                peak = max(
                    [peak, *(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))]
                )
        except OSError:
            pass
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), 0.05)
        except TimeoutError:
            continue
    took = time.monotonic() - began
    server.close()
    return (Server.first or began) - began, took, peak


def ask(output: Path, without: str) -> None:
    """What those take that only read a job's files."""
    for command in ("status", "report"):
        cost = measure([sys.executable, "-m", "batchkit", command, str(output)], environment(), core=None)
        print(
            f"{command} {without} checkpoint: {cost.wall_s:.2f} s, {cost.cpu_s:.2f} s of CPU, "
            f"peak memory {cost.peak_mib:.0f} MiB"
        )


def main() -> None:
    results = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    base_url = f"http://127.0.0.1:{port}/v1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = make(folder, results, base_url)
        size = output.stat().st_size
        print(f"{results:,} results, {size / 1e9:.2f} GB ({size // results} bytes a line)")

        for what, scan, clock in (
            (
                "scan of the lines, of one core's time",
                lambda: deque(scan_output(output), maxlen=0),
                time.process_time,
            ),
            ("check of the lines, of one core's time", lambda: check_output(output), time.process_time),
            (
                "scan into a state, from both ends",
                lambda: JobState(checksums=array("I")).scan(output, lambda _: None),
                time.monotonic,
            ),
        ):
            began = clock()
            scan()
            took = clock() - began
            print(f"{what}: {size / took / 1e6:,.0f} MB/s, {took / results * 1e6:.2f} µs a line")

        ask(output, "without its")
        # The first run leaves half of what is open to the second, which finds its input as it was.
        for what, more in (
            ("without its checkpoint", ["--limit", str(results + OPEN // 2)]),
            ("with its checkpoint", []),
        ):
            first, took, peak = asyncio.run(start(source, output, base_url, port, more))
            print(
                f"{what}: first request after {first:.2f} s, done after {took:.1f} s, peak memory {peak:.0f} MiB"
            )

        ask(output, "with its")


if __name__ == "__main__":
    main()
