"""batchkit beside a bare aiohttp loop on the same work, in turn, as a ratio.

What is compared is two whole programs: read a JSONL file, POST each body, append each answer to a file, add up the tokens.
The bare one does just that, with a pool of workers and nothing for the day on which something fails; batchkit is the
command as it is, with checksums, syncing, checkpoint, retries, pacing, progress, summary and report. The endpoint stands
in a third process and answers at once, so that the client is what is measured.

Each figure leaves the start of the program out, which is measured by a run of one request. CPU is that of the child,
user and system, as the kernel counted it.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import cast

import aiohttp
import orjson
import uvloop

REQUESTS = 20_000
REQUEST_BYTES = 1_024
IN_FLIGHT = (64, 256)
ROUNDS = 2


# --- the endpoint --------------------------------------------------------------------------------------------------

_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The answer has a few words. " * 10},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 250, "completion_tokens": 60, "total_tokens": 310},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_COMPLETION),
    _COMPLETION,
)


class Endpoint(asyncio.Protocol):
    """Answers whatever is POSTed, as soon as it is all there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports are none by inheritance.
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            self._received = b""
            self._transport.write(_ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- the bare loop -------------------------------------------------------------------------------------------------


async def work_bare(requests: Path, results: Path, base_url: str, in_flight: int) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    with requests.open("rb") as lines, results.open("ab", buffering=0) as out:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def work() -> None:
                for line in lines:
                    record = orjson.loads(line)
                    async with session.post(
                        f"{base_url}/chat/completions",
                        data=orjson.dumps(record["body"]),
                        headers={"Content-Type": "application/json"},
                    ) as response:
                        body = orjson.loads(await response.read())
                    for name in usage:
                        usage[name] += body["usage"][name]
                    answer = {
                        "custom_id": record["custom_id"],
                        "response": {"status_code": 200, "body": body},
                    }
                    out.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))

            await asyncio.gather(*(work() for _ in range(in_flight)))
    print(usage)


# --- the comparison ------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What a child took: seconds of wall clock and of CPU, MiB at its peak."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(argv: list[str]) -> Cost:
    began = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{argv} ended with {child.returncode}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / unit)


def argv_of(program: str, requests: Path, results: Path, base_url: str, in_flight: int) -> list[str]:
    if program == "bare":
        return [sys.executable, __file__, "bare", str(requests), str(results), base_url, str(in_flight)]
    words = [sys.executable, "-m", "batchkit", "run", str(requests), "-o", str(results)]
    return [*words, "--base-url", base_url, "--concurrency", str(in_flight), "--progress", "off"]


def write_requests(path: Path, count: int) -> None:
    with path.open("wb") as out:
        for number in range(count):
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Question {number}. "}]}
            line = orjson.dumps({"custom_id": f"request-{number}", "body": body})
            out.write(line.replace(b'. "', b". " + b"x" * (REQUEST_BYTES - len(line) - 1) + b'"') + b"\n")


@contextmanager
def endpoint() -> Iterator[str]:
    with subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{child.stdout.readline().strip()}/v1"
        child.terminate()


def compare(folder: Path, base_url: str, in_flight: int) -> None:
    programs = ("batchkit", "bare")
    one, many = folder / "one.jsonl", folder / "many.jsonl"
    starts = {
        program: measure(argv_of(program, one, folder / f"start-{in_flight}-{program}", base_url, in_flight))
        for program in programs
    }
    rates: dict[str, list[float]] = {program: [] for program in programs}
    cpus: dict[str, list[float]] = {program: [] for program in programs}
    peaks: dict[str, list[float]] = {program: [] for program in programs}
    for turn in range(ROUNDS):
        for program in programs:
            results = folder / f"{program}-{in_flight}-{turn}.jsonl"
            cost = measure(argv_of(program, many, results, base_url, in_flight))
            with results.open("rb") as lines:
                if sum(1 for _ in lines) != REQUESTS:
                    raise SystemExit(f"{program} did not answer all requests")
            rates[program].append(REQUESTS / (cost.wall_s - starts[program].wall_s))
            cpus[program].append((cost.cpu_s - starts[program].cpu_s) / REQUESTS * 1e6)
            peaks[program].append(cost.peak_mib)
            print(
                f"{in_flight:>5} in flight  {program:<9} {rates[program][-1]:7,.0f} requests/s "
                f"{cpus[program][-1]:6.0f} µs CPU a request {cost.peak_mib:6.0f} MiB at the peak"
            )
    rate, cpu = (mean(each["batchkit"]) / mean(each["bare"]) for each in (rates, cpus))
    extra = mean(peaks["batchkit"]) - mean(peaks["bare"])
    print(
        f"{in_flight:>5} in flight  batchkit beside the bare loop: {rate:.2f} of its requests/s, "
        f"{cpu:.2f} times its CPU, {extra:+.0f} MiB; "
        f"starts in {starts['batchkit'].wall_s:.1f} s, the bare loop in {starts['bare'].wall_s:.1f} s"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name, endpoint() as base_url:
        folder = Path(name)
        write_requests(folder / "one.jsonl", 1)
        write_requests(folder / "many.jsonl", REQUESTS)
        for in_flight in IN_FLIGHT:
            compare(folder, base_url, in_flight)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            uvloop.run(serve())
        case ["bare", requests, results, base_url, in_flight]:
            uvloop.run(work_bare(Path(requests), Path(results), base_url, int(in_flight)))
        case []:
            main()
        case _:
            raise SystemExit("usage: throughput.py")
