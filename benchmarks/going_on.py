"""How long a job with many results takes to go on: with its checkpoint, and without.

Makes an input and an output of N results (default a million; 500 bytes a line) in a temporary folder, adds a thousand open
requests, and starts the real command against a small server on loopback that notes when the first request comes. Prints
seconds to the first request, peak memory, and the speed of the scan.

    python benchmarks/going_on.py 10000000
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zlib import crc32

from batchkit.formats.results import OutputLine, encode
from batchkit.outputs import scan_output
from batchkit.records import Outcome, RunHeader
from batchkit.testing import reply

OPEN = 1000
BODY = b'{"model":"m","messages":[{"role":"user","content":"%d"}]}'


def make(folder: Path, results: int, base_url: str) -> tuple[Path, Path]:
    source, output = folder / "in.jsonl", folder / "results.jsonl"
    with source.open("wb") as lines:
        for index in range(results + OPEN):
            lines.write(BODY % index + b"\n")
    header = RunHeader(1.0, base_url, {}, str(source), source.stat().st_size)
    first = OutputLine(
        Outcome(0, "line-0", reply("x"), "0" * 32, 1, 0.5, 2.0, {}, crc32(BODY % 0)), "job", header
    )
    second = encode(
        OutputLine(Outcome(1, "line-1", reply("x"), "0" * 32, 1, 0.5, 2.0, {}, crc32(BODY % 1)), "job")
    )
    template = second[: second.rindex(b',"crc32"')]
    template = (
        template.replace(b"%", b"%%").replace(b"%016x" % 1, b"%016x").replace(b'"line-1"', b'"line-%d"')
    )
    template = template.replace(
        b'"index":1,"input_crc32":"%08x"' % crc32(BODY % 1), b'"index":%d,"input_crc32":"%08x"'
    )
    with output.open("wb", buffering=1 << 20) as lines:
        lines.write(encode(first))
        for index in range(1, results):
            covered = template % (index, index, index, crc32(BODY % index))
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


def main() -> None:
    results = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    port = 18_231
    base_url = f"http://127.0.0.1:{port}/v1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = make(folder, results, base_url)
        size = output.stat().st_size
        print(f"{results:,} results, {size / 1e9:.2f} GB ({size // results} bytes a line)")

        began = time.process_time()
        for _ in scan_output(output):
            pass
        took = time.process_time() - began
        print(f"scan: {size / took / 1e6:,.0f} MB/s, {took / results * 1e6:.2f} µs a line (one core)")

        # The first run leaves half of what is open to the second, which finds its input as it was.
        for what, more in (
            ("without its checkpoint", ["--limit", str(results + OPEN // 2)]),
            ("with its checkpoint", []),
        ):
            first, took, peak = asyncio.run(start(source, output, base_url, port, more))
            print(
                f"{what}: first request after {first:.2f} s, done after {took:.1f} s, peak memory {peak:.0f} MiB"
            )


if __name__ == "__main__":
    main()
