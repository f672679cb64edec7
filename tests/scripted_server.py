"""A server on loopback that sends exactly the bytes it is told to, and can stop, stall or hang up between any two."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

Sends = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What the server does with one request: the bytes of an answer, or anything else with its connection."""

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def http(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An answer; `length` is what it says of its body's length where that is not true."""
    head = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def then_closing(data: bytes) -> Sends:
    """Sends `data` and closes the connection without a word about it."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return send


async def resetting(writer: asyncio.StreamWriter) -> None:
    """Reads the request and resets the connection."""
    writer.transport.abort()


async def hanging(writer: asyncio.StreamWriter) -> None:
    """Reads the request and says nothing."""
    await asyncio.get_running_loop().create_future()


def stalling(data: bytes) -> Sends:
    """Sends `data` and nothing more, and keeps the connection."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await hanging(writer)

    return send


async def dripping(writer: asyncio.StreamWriter) -> None:
    """Sends one byte now and then, for ever."""
    writer.write(http(200, length=1_000_000))
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.001)


async def endless(writer: asyncio.StreamWriter) -> None:
    """Sends a body without an end, as fast as it is read."""
    writer.write(CHUNKED)
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


class ScriptedServer:
    """Answers requests by its script, one entry after the other, and more of them by `after`, or again by the last entry.

    `heads` and `bodies` are what it was sent.
    """

    def __init__(self, *script: Sends, after: Sends | None = None) -> None:
        self.script = list(script)
        self._after = after
        self._tasks: set[asyncio.Task[None]] = set()
        self.heads: list[list[str]] = []
        self.bodies: list[bytes] = []
        self.connections = 0

    @property
    def received(self) -> int:
        """How many requests came."""
        return len(self.heads)

    @property
    def headers(self) -> dict[str, str]:
        """Those of the last request, by lower-case names."""
        pairs = [line.split(": ", 1) for line in self.heads[-1][1:]]
        assert len({name.lower() for name, _ in pairs}) == len(pairs), "a header was sent twice"
        return {name.lower(): value for name, value in pairs}

    @asynccontextmanager
    async def listening(
        self, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> AsyncIterator[str]:
        """The base URL, while it listens: at a free port unless one is given."""
        server = await asyncio.start_server(self._accept, host, port, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/v1"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
                length = next(
                    int(line.split(":")[1]) for line in head if line.lower().startswith("content-length")
                )
                self.bodies.append(await reader.readexactly(length))
                self.heads.append(head)
                sends = self._next()
                if isinstance(sends, bytes):
                    writer.write(sends)
                    await writer.drain()
                else:
                    await sends(writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    def _next(self) -> Sends:
        if self._after is None and len(self.script) == 1:
            return self.script[0]
        if self.script:
            return self.script.pop(0)
        assert self._after is not None
        return self._after


@contextmanager
def silent_host() -> Iterator[str]:
    """The base URL of a host that says nothing to whoever knocks: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as queue:
        for _ in range(2):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
