"""A server that others wrote, as a process beside the tests: started once, told apart by its port, ended with them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CACHE", "ServerProcess", "running"]

CACHE = Path(__file__).parents[2] / ".ci"
"""Where the servers are installed, by `make gateway` and `make litellm`; no test installs anything."""

_READY_S = 120
_LOG_LINES = 400


class ServerProcess:
    """A running server, and the end of what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], listening: re.Pattern[bytes]) -> None:
        self.port = 0
        self._listening = listening
        self._lines: deque[bytes] = deque(maxlen=_LOG_LINES)
        self._heard: Future[int] = Future()
        self._process = process
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For one test: what the server writes in the meantime is printed, so that it stands beside a failure."""
        self._lines.clear()
        yield
        print(self.written())

    def written(self) -> str:
        """The end of what the server has written since it is watched."""
        return b"".join(tuple(self._lines)).decode(errors="replace")

    def wait_until_listening(self) -> None:
        """Block until the server has named its port. Raises AssertionError, with the log, if it ends before."""
        try:
            self.port = self._heard.result(_READY_S)
        except (EOFError, TimeoutError) as error:
            raise AssertionError(f"the server does not listen:\n{self.written()}") from error

    def end(self) -> None:
        """Kill the process and all that it has started; it has nothing to lose."""
        os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if not self._heard.done() and (found := self._listening.search(line)):
                self._heard.set_result(int(found[1]))
        if not self._heard.done():
            self._heard.set_exception(EOFError())


@contextmanager
def running(
    argv: Sequence[str | Path], *, listening: re.Pattern[bytes], environ: Mapping[str, str]
) -> Iterator[ServerProcess]:
    """Run `argv` until the block is left. The line that matches `listening` tells the port, as its first group.

    Its standard input stays open for as long as this process lives: a server that watches it outlives nobody.
    """
    process = subprocess.Popen(
        [*map(str, argv)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), **environ},
        start_new_session=True,
    )
    server = ServerProcess(process, listening)
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.end()
