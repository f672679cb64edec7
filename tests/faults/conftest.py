"""What breaks things for the tests of the faults: disks, limits, processes that die; and one run in this process.

The command, the endpoints and the files are those of `tests/acceptance`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked_command
import pytest
from acceptance import conftest as acceptance

from batchkit.engine.monitor import Monitor
from batchkit.engine.stop import Stop
from batchkit.events import Event, Gauges
from batchkit.formats.headers import endpoint_address
from batchkit.job import JobRun
from batchkit.settings import Settings
from batchkit.source import Source
from batchkit.store import Disk, Store
from batchkit.testing import ManualClock, ScriptedEndpoint

simulate, provider, record = acceptance.simulate, acceptance.provider, acceptance.record
forker, command = forked_command.forker, forked_command.command
write_requests, files, until = acceptance.write_requests, acceptance.files, acceptance.until
line, kill, run_elsewhere = acceptance.line, acceptance.kill, acceptance.run_elsewhere

ADDRESS = endpoint_address("http://127.0.0.1:1/v1", version="0", timeout=60)

_BROKEN = """
import sys
{patch}
from batchkit.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def held(command, record, files, write_requests, until):
    """A run of forty requests with seven answers written and thirteen held back at the endpoint: process, endpoint, words."""
    endpoint = record(most=7)
    words = ["run", write_requests(40), "-o", files.results_path, "--base-url", endpoint.base_url]
    words += ["--concurrency", 13, "--json"]
    run = command.fork(*words, "--progress", "log")
    until(lambda: len(endpoint.received) == 20 and files.count() == 7, run)
    return run, endpoint, words


@pytest.fixture
def broken(command) -> Callable[..., subprocess.Popen]:
    """Starts the command anew, as a child of this process, with a `patch`: Python that runs in it first and breaks something."""

    def start(*words: Any, patch: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", _BROKEN.format(patch=patch), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=command.folder,
            env=command.environ,
        )
        command._started.append(process)
        return process

    return start


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems in memory, by size in bytes, writable or not; skips where mounting is not allowed."""
    mounted = []

    def mount(size: int, *, read_only: bool = False) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        options = f"size={size},mode=755" + (",ro" if read_only else "")
        argv = ["mount", "-t", "tmpfs", "-o", options, "batchkit", str(folder)]
        try:
            done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


@pytest.fixture
def read_only(small_disk, tmp_path) -> Path:
    """A folder in which nothing can be made."""
    if os.geteuid() == 0:  # whom no permission stops
        return small_disk(4096, read_only=True)
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    return folder


class Listener:
    """Remembers what a run tells."""

    interval_s = 10.0

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def handle(self, event: Event) -> None:
        self.heard.append(event)

    def tick(self, gauges: Gauges) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing was opened."""


class Job:
    """A job that is run in this process, on a clock nobody waits for. `run` is one start of the program."""

    def __init__(self, folder: Path, requests: bytes) -> None:
        self.input = folder / "requests.jsonl"
        self.input.write_bytes(requests)
        self.output = folder / "out" / "results.jsonl"
        self.output.parent.mkdir()
        self.billed = 0
        self.told: list[Event] = []

    async def run(
        self,
        disk: Disk | None = None,
        *,
        clock: ManualClock | None = None,
        endpoint: Any = None,
        observers: tuple[Any, ...] = (),
        stop: Stop | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        clock = clock if clock is not None else ManualClock()
        endpoint = endpoint if endpoint is not None else ScriptedEndpoint(clock=clock, latency_s=0.15)
        listener, stop = Listener(), Stop() if stop is None else stop
        source = Source(str(self.input), in_thread=clock.in_thread)
        chosen = Settings(**{"concurrency": 3, "progress": "off", "job_id": "job", **settings})
        store = Store.open(self.output, disk=disk)
        try:
            monitor = Monitor((listener, *observers), clock)
            job = JobRun(store, source, source.identify(), chosen, ADDRESS, monitor, clock, stop)
            await job.load()
            return await job.work(endpoint)
        finally:
            self.billed += len(getattr(endpoint, "attempts", ()))
            self.told += listener.heard
            store.close()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is such a place."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        yield Path(root)


@pytest.fixture
def make_job(line, in_memory) -> Callable[..., Job]:
    """Makes jobs of so many requests, in memory: these tests sync thousands of times."""

    def make(count: int) -> Job:
        return Job(Path(tempfile.mkdtemp(dir=in_memory)), b"".join(map(line, range(count))))

    return make
