"""The command as its users have it: a process with arguments, an environment, two streams and an exit code.

Endpoints stand in a thread of the test's own process, so that a test can look at what they received.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop
from aiohttp import web

from batchkit.simulator.server import Simulator
from batchkit.simulator.settings import SimulatorSettings

DATA = Path(__file__).parents[3] / "shared" / "data"
LONGEST_S = 60


@dataclass
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one JSON object on stdout."""
        return json.loads(self.out)


class Command:
    """`python -m batchkit …` in an environment without keys; `environ` is that environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("PORTKEY_", "OPENAI_", "BATCHKIT_")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        self._started: list[subprocess.Popen] = []

    def __call__(self, *words: Any, code: int | None = 0, stdin: bytes = b"") -> Ran:
        """Run it to its end, which must be the exit code `code`, if one is named."""
        done = subprocess.run(
            self._argv(words),
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=self.environ,
            timeout=LONGEST_S,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert code is None or ran.code == code, ran
        return ran

    def start(self, *words: Any) -> subprocess.Popen:
        process = subprocess.Popen(
            self._argv(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environ,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            with process:
                process.kill()

    def _argv(self, words: tuple[Any, ...]) -> list[str]:
        return [sys.executable, "-m", "batchkit", *map(str, words)]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    made.close()


@contextmanager
def elsewhere(server: AbstractAsyncContextManager) -> Iterator[Any]:
    """Enter an asynchronous context manager in an event loop of its own, in a thread of its own."""
    ready: Future = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        try:
            async with server as entered:
                ready.set_result((entered, asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    # asyncio's own server leaves a connection open that comes in the moment in which it is closed; uvloop's does not.
    thread = threading.Thread(target=uvloop.run, args=(serve(),))
    thread.start()
    try:
        entered, loop, stop = ready.result(LONGEST_S)
        try:
            yield entered
        finally:
            loop.call_soon_threadsafe(stop.set)
    finally:
        thread.join()


@pytest.fixture
def simulate() -> Iterator[Callable[..., Simulator]]:
    """Starts simulators; they take the settings' words, and answer at once unless a `speed` is named."""
    with ExitStack() as running:

        def start(**settings: Any) -> Simulator:
            chosen = SimulatorSettings(**{"instant": "speed" not in settings, **settings})
            return running.enter_context(elsewhere(Simulator(chosen)))

        yield start


@pytest.fixture(scope="session")
def provider() -> Iterator[Simulator]:
    """One simulator for all who only want answers."""
    with elsewhere(Simulator(SimulatorSettings(instant=True))) as simulator:
        yield simulator


class Recorder:
    """An endpoint that keeps what it received. After `most` good answers it holds the rest back, until `release`.

    `respond`, where given, may answer instead: it takes the number of the request, from 0, and returns status, headers
    and a JSON value, or None for the usual completion.
    """

    def __init__(
        self, *, most: float = float("inf"), respond: Callable[[int], tuple | None] = lambda _: None
    ) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.base_url = ""
        self._most = most
        self._respond = respond
        self._released = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.01
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        number = len(self.received)
        self.received.append(
            ({name.lower(): value for name, value in request.headers.items()}, await request.read())
        )
        said = self._respond(number)
        if said is not None:
            status, headers, value = said
            return web.json_response(value, status=status, headers=headers)
        if number >= self._most:
            await self._released.wait()
        message = {"role": "assistant", "content": "Yes."}
        return web.json_response(
            {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion",
                "model": "gpt-4o-mini-2024-07-18",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
            }
        )


@pytest.fixture
def record() -> Iterator[Callable[..., Recorder]]:
    """Starts recorders."""
    with ExitStack() as running:
        yield lambda **words: running.enter_context(elsewhere(Recorder(**words)))


@pytest.fixture
def write_requests(tmp_path: Path) -> Callable[..., Path]:
    """Writes an input of so many requests, each other than the rest."""

    def write(count: int, name: str = "requests.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(request_line(number) for number in range(count)))
        return path

    return write


def request_line(number: int, question: str = "What is") -> bytes:
    messages = [{"role": "user", "content": f"{question} {number}?"}]
    body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 20}
    return json.dumps({"custom_id": f"request-{number}", "body": body}).encode() + b"\n"


class Files:
    """What stands in a job's files."""

    def __init__(self, results: Path) -> None:
        self.results_path = results
        self.errors_path = results.with_name(f"{results.stem}.errors.jsonl")
        self.summary_path = results.with_name(f"{results.stem}.summary.json")
        self.checkpoint_path = results.with_name(f"{results.stem}.checkpoint.json")
        self.report_path = results.with_name(f"{results.stem}.report.html")

    @property
    def results(self) -> list[dict]:
        return self._read(self.results_path)

    @property
    def errors(self) -> list[dict]:
        return self._read(self.errors_path)

    @property
    def superseded(self) -> list[dict]:
        found = sorted(self.results_path.parent.glob(f"{self.results_path.stem}.errors.*.jsonl"))
        return [line for path in found for line in self._read(path)]

    @property
    def summary(self) -> dict:
        return json.loads(self.summary_path.read_bytes())

    @property
    def indexes(self) -> list[int]:
        """Of both files together, in order."""
        return sorted(line["batchkit"]["index"] for line in self.results + self.errors)

    def count(self) -> int:
        """Whole lines in the results."""
        return self.results_path.read_bytes().count(b"\n") if self.results_path.exists() else 0

    def assert_summary_is_a_fold(self, summary: dict, requests: int) -> None:
        """Each index stands once, and the totals of `summary` are those of the lines."""
        results, errors, superseded = self.results, self.errors, self.superseded
        assert self.indexes == list(range(requests))
        assert summary["requests"]["succeeded"] == len(results)
        assert summary["requests"]["failed"] == len(errors)
        assert summary["requests"]["total"] == requests
        lines = results + errors + superseded
        reasons: Counter[str] = Counter()
        for line in lines:
            reasons.update(line["batchkit"].get("retries", {}))
        assert summary["attempts"]["total"] == sum(line["batchkit"]["attempts"] for line in lines)
        assert summary["attempts"]["by_reason"] == dict(reasons)
        usages = [
            line["response"]["body"].get("usage") or {}
            for line in lines
            if line["response"] and isinstance(line["response"]["body"], dict)
        ]
        usages += [attempt["usage"] for line in lines for attempt in line["batchkit"].get("billed", ())]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert summary["usage"][name] == sum(usage.get(name, 0) for usage in usages)

    @staticmethod
    def _read(path: Path) -> list[dict]:
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Of the job whose output is results.jsonl."""
    return Files(tmp_path / "results.jsonl")


def wait_until(happened: Callable[[], Any], process: subprocess.Popen | None = None) -> None:
    """Look, a thousand times a second, until it `happened`; the process must live as long."""
    last = time.monotonic() + LONGEST_S
    while not happened():
        assert time.monotonic() < last, "it did not happen"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.001)  # who looks without a pause takes the core that it waits for


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def line() -> Callable[..., bytes]:
    return request_line


@pytest.fixture
def real_data() -> Path:
    """Real batch files, which stand beside the repository where there are any."""
    if not DATA.is_dir():
        pytest.skip(f"there are no data files in {DATA}")
    return DATA


@pytest.fixture
def kill() -> Callable[[subprocess.Popen], None]:
    """Ends a process as a crash does."""

    def end(process: subprocess.Popen) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    return end


@pytest.fixture
def run_elsewhere() -> Callable[[AbstractAsyncContextManager], AbstractContextManager]:
    return elsewhere
