"""The command in processes of its own that are forked from one that has imported it, which is what takes it longest.

A process that is made so has its own environment, streams, limits and signals, and ends as one that was started anew; only
the second of importing is shared, and what Python does at its very end is left out. It is for tests that start the command by the dozen.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest
from acceptance.conftest import LONGEST_S, Command, Ran

PROBED_AT_ONCE = "from batchkit.rules import outage; outage._FIRST_WAIT_S = 0.01"
"""A patch for a command that ends because it reaches nobody, where how long it tries is not what is tested."""
SIMULATED_AT_ONCE = """
from functools import partial
from batchkit import parts
from batchkit.simulator.settings import SimulatorSettings
parts.EmbeddedSimulator = partial(parts.EmbeddedSimulator, SimulatorSettings(instant=True))
"""
"""A patch for a command with --simulate, where how long answers take is not what is tested."""
_TOLD_BYTES = 1 << 20


class Forked:
    """A command that runs: what of `subprocess.Popen` the tests ask for, with its two outputs in files.

    `communicate` gives all of them, what was read of `stderr` before too.
    """

    def __init__(self, status: int, out: Path, err: Path) -> None:
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        self.out_path, self.err_path = out, err
        self.stderr = _Growing(err, self)
        self.pid = int(self._line())
        self.returncode: int | None = None

    def _line(self) -> bytes:
        said = b""
        while not said.endswith(b"\n"):
            piece = self._status.read(1)
            assert piece, "the process that forks is gone"
            said += piece
        return said

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Its exit code, or the number of the signal that ended it, negative."""
        if self.returncode is None:
            last = threading.Timer(LONGEST_S, self.send_signal, [9])
            last.start()
            try:
                self.returncode = os.waitstatus_to_exitcode(int(self._line()))
            finally:
                last.cancel()
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """All that it said, once it has ended."""
        self.wait()
        return self.out_path.read_text(), self.err_path.read_text()


class _Growing:
    """What a command says while it runs, line by line, as from a pipe."""

    def __init__(self, path: Path, process: Forked) -> None:
        self._path, self._process = path, process
        self._read = 0

    def readline(self) -> str:
        """The next line, waited for; without its end, or empty, once the command has ended."""
        while True:
            ended = self._process.poll() is not None
            line, newline, _ = self._path.read_bytes()[self._read :].partition(b"\n")
            if newline or ended:
                self._read += len(line + newline)
                return (line + newline).decode()
            time.sleep(0.001)


class Forker:
    """The process that has imported the command. A context manager."""

    def __enter__(self) -> Self:
        self._ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        its.close()
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.wait(LONGEST_S)
        self._folder.cleanup()

    def start(
        self,
        words: Sequence[Any],
        *,
        folder: Path,
        environ: Mapping[str, str],
        stdin: bytes = b"",
        patch: str = "",
        terminal: int | None = None,
    ) -> Forked:
        """Start the command. `patch` is Python that runs in it first; `terminal` takes the place of both its outputs."""
        paths = []
        descriptors = []
        for content in (stdin, b"", b""):
            descriptor, path = tempfile.mkstemp(dir=self._folder.name)
            os.write(descriptor, content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            descriptors.append(descriptor)
            paths.append(Path(path))
        status, its_status = os.pipe()
        streams = descriptors if terminal is None else [descriptors[0], terminal, terminal]
        message = {"words": [*map(str, words)], "folder": str(folder), "environ": {**environ}, "patch": patch}
        data = json.dumps(message).encode()
        assert len(data) < _TOLD_BYTES
        socket.send_fds(self._ours, [data], [*streams, its_status])
        for descriptor in (*descriptors, its_status):
            os.close(descriptor)
        return Forked(status, *paths[1:])


class CalledForked(Command):
    """`acceptance.conftest.Command`, forked where it is called and by `fork`; what `start` starts is a process made anew."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        super().__init__(folder)
        self.patch = ""
        """Of those that are called without one of their own."""
        self._forker = forker
        self._forked: list[Forked] = []

    def __call__(self, *words: Any, code: int | None = 0, stdin: bytes = b"", patch: str = "") -> Ran:
        process = self.fork(*words, stdin=stdin, patch=patch or self.patch)
        out, err = process.communicate()
        ran = Ran(process.wait(), out, err)
        assert code is None or ran.code == code, ran
        return ran

    def fork(self, *words: Any, **more: Any) -> Forked:
        """Start it; `more` is that of `Forker.start`."""
        process = self._forker.start(words, folder=self.folder, environ=self.environ, **more)
        self._forked.append(process)
        return process

    def close(self) -> None:
        for process in self._forked:
            if process.poll() is None:
                process.send_signal(9)
                process.wait()
        super().close()


class ForkedCommand(CalledForked):
    """A command that is also forked by `start`."""

    def start(self, *words: Any, **more: Any) -> Any:
        return self.fork(*words, **more)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    with Forker() as running:
        yield running


@pytest.fixture
def command(forker: Forker, tmp_path: Path) -> Iterator[CalledForked]:
    """In place of the acceptance tests' own."""
    made = CalledForked(tmp_path, forker)
    yield made
    made.close()


def _serve(channel: socket.socket) -> None:
    """Fork a command for each message, until nobody can send one any more. Returns only in a forked process, to run it."""
    import gc

    import uvloop  # noqa: F401
    from genai_prices.data_snapshot import get_snapshot

    import batchkit.api
    import batchkit.cli.args
    import batchkit.cli.main
    import batchkit.formats.report
    import batchkit.mending
    import batchkit.observers.progress
    import batchkit.validation  # noqa: F401
    from batchkit.rules.tokens import count_text

    get_snapshot()
    count_text("")
    gc.freeze()
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, _TOLD_BYTES, 4)
        if not data:
            os._exit(0)
        if not os.fork():
            _mind(channel, data, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        _forget_ended()


def _forget_ended() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _mind(channel: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Fork the command and stay to say how it ended. Returns in the command's process."""
    channel.close()
    *streams, status = descriptors
    if command := os.fork():
        os.write(status, b"%d\n" % command)
        for descriptor in streams:
            os.close(descriptor)
        ended = os.waitpid(command, 0)[1]
        with suppress(BrokenPipeError):
            os.write(status, b"%d\n" % ended)
        os._exit(0)
    os.close(status)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in set(streams):
        os.close(descriptor)
    message = json.loads(data)
    os.chdir(message["folder"])
    os.environ.clear()
    os.environ.update(message["environ"])
    # As at the start of an interpreter.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["batchkit", *message["words"]]
    exec(message["patch"], {})


def _end(code: int) -> NoReturn:
    """As an interpreter ends: threads waited for, exit handlers called, lost objects finalised, streams flushed.

    But for its modules, which it would take down one by one: that touches, and so copies, all that the processes share.
    """
    import atexit
    import gc

    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect(1)  # older than that is only what was there before the fork
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from batchkit.cli.main import main

    try:
        status = main()
    except SystemExit as wrong_usage:
        status = wrong_usage.code
    _end(status)
