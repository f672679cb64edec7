"""Servers that try to get a key out, and the search for it.

The command, the endpoints and the files are those of `tests/acceptance`.
"""

import asyncio
import os
import pty
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import forked_command
import pytest
from acceptance import conftest as acceptance
from forked_command import CalledForked, ForkedCommand, Forker

command, simulate, record = acceptance.command, acceptance.simulate, acceptance.record
forker = forked_command.forker
write_requests, files, until, line = (
    acceptance.write_requests,
    acceptance.files,
    acceptance.until,
    acceptance.line,
)


@dataclass(frozen=True)
class Received:
    """A request as it came: its first line, its headers by lower-case names, its body."""

    first_line: str
    headers: dict[str, str]
    head: str
    body: bytes


Answering = Callable[[Received], bytes | None]


class RawServer:
    """Answers each request with the bytes that `answer` makes of it, then closes; None is no answer, ever."""

    def __init__(self, answer: Answering) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.origin = ""
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://{self.origin}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.origin = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first_line, *lines = head.split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            assert len(headers) == len(lines), "a header was sent twice"
            body = await reader.readexactly(int(headers["content-length"]))
            received = Received(first_line, headers, head, body)
            self.received.append(received)
            answer = self._answer(received)
            if answer is None:
                await asyncio.get_running_loop().create_future()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()


@pytest.fixture(scope="session")
def raw_server() -> type[RawServer]:
    """The class, for servers that live longer than a test."""
    return RawServer


@pytest.fixture
def serve() -> Iterator[Callable[[Answering], RawServer]]:
    """Starts raw servers."""
    with ExitStack() as running:
        yield lambda answer: running.enter_context(acceptance.elsewhere(RawServer(answer)))


@pytest.fixture(scope="session")
def forked_in(forker: Forker) -> Iterator[Callable[[Path], ForkedCommand]]:
    """The command for tests that start it often, by its folder."""
    with ExitStack() as running:

        def make(folder: Path) -> ForkedCommand:
            made = ForkedCommand(folder, forker)
            running.callback(made.close)
            return made

        yield make


@pytest.fixture
def forked(forked_in: Callable[[Path], ForkedCommand], tmp_path: Path) -> Iterator[ForkedCommand]:
    made = forked_in(tmp_path)
    yield made
    made.close()


@pytest.fixture
def on_terminal(command: CalledForked) -> Callable[..., tuple[int, bytes]]:
    """Runs the command with a terminal for its output; its exit code and all that it showed."""

    def run(*words: Any) -> tuple[int, bytes]:
        ours, its = pty.openpty()
        process = command.fork(*words, terminal=its)
        os.close(its)
        last = threading.Timer(acceptance.LONGEST_S, process.send_signal, [signal.SIGKILL])
        last.start()
        shown = b""
        try:
            # A terminal whose other end is closed is an error to read from, and that is its end.
            with suppress(OSError):
                while piece := os.read(ours, 65536):
                    shown += piece
        finally:
            last.cancel()
            os.close(ours)
        return process.wait(), shown

    return run


class Canary:
    """Keys that are found wherever they come out."""

    portkey = "pk-CANARY/portkey+0123456789abcdef/tail-of-portkey=="
    openai = "sk-CANARY-openai-0123456789abcdef-tail-of-openai"
    virtual = "vk-CANARY-virtual-0123456789abcdef-tail-of-virtual"

    def __init__(self, secret_folder: Path) -> None:
        self._folder = secret_folder
        self.variables = {
            "PORTKEY_API_KEY": self.portkey,
            "PORTKEY_VIRTUAL_KEY": self.virtual,
            "OPENAI_API_KEY": self.openai,
        }

    def in_files(self) -> dict[str, str]:
        """The keys as an environment that names files of mode 0600."""
        environ = {}
        for variable, key in self.variables.items():
            path = self._folder / variable.lower()
            path.touch(mode=0o600)
            path.write_text(key + "\n")
            environ[f"{variable}_FILE"] = str(path)
        return environ

    def assert_unseen(self, folder: Path, *shown: str | bytes) -> None:
        """No key, nor its first or last twelve characters, stands in a file of the folder, in a name or in what was shown."""
        said = [text.encode() if isinstance(text, str) else text for text in shown]
        paths = [path for path in folder.rglob("*") if path.is_file()]
        said += [path.read_bytes() for path in paths] + [str(path).encode() for path in paths]
        for key in self.variables.values():
            for part in (key, key[:12], key[-12:]):
                for text in said:
                    at = text.find(part.encode())
                    assert at < 0, text[max(0, at - 200) : at + 200]


@pytest.fixture(scope="session")
def canary_variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment's keys, for commands that more than one test looks at."""
    return Canary(tmp_path_factory.mktemp("secrets")).variables


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> Canary:
    return Canary(tmp_path_factory.mktemp("secrets"))
