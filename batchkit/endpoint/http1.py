"""The straight way out: HTTP/1.1 as one endpoint needs it, on asyncio's own transports. The one place that knows httptools.

There is one origin, one method and one kind of body, which is there before it is sent and whole before it is read. So a
request is a head that was spelled once, a few lines more, and its body in the same write; and an answer is what stands
between two bytes of a connection that is nobody else's meanwhile. Only the attempt waits, and what the attempts of one turn of
the event loop send leaves together at its end: the server is woken once, not by each of them.

How an answer is read: a parser tells a `_Connection` of headers and pieces of the body. The first of these ends it, as
`_End` names them: its last byte, its bounds, the parser's refusal, the connection's loss. A connection that has anything
else about it than a whole answer and silence is not used again.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, cast

import aiohappyeyeballs
import httptools
from yarl import URL

from batchkit.endpoint import bounds
from batchkit.endpoint.deadlines import Deadlines
from batchkit.endpoint.judging import Head, Judge
from batchkit.endpoint.silence import is_silent, watch
from batchkit.formats.headers import EndpointAddress, attempt_headers
from batchkit.records import Answer, Failure, Request, Trace

__all__ = ["Http1Endpoint"]

_DNS_TTL_S = 60.0
_CONNECTING_AT_ONCE = 1024
"""A server's queue of those it has not greeted yet is about as long, and each waiting there takes as much memory as three that are through."""
_NEXT_ADDRESS_S = 0.25
"""So long an address may be silent before the next is tried beside it (RFC 8305)."""
_TLS_GOODBYE_S = 1.0
_PIECE_BYTES = 256 * 1024
"""Larger bodies are written piece by piece, as fast as they leave."""


class Http1Endpoint:
    """Sends the requests of one run to one address, over connections of its own. It is an `Endpoint`."""

    def __init__(self, address: EndpointAddress, *, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._url = url = URL(address.url)
        self._head = _RequestHead(url, address.headers)
        self._judge = Judge(address, url.host or "", timeout)
        self._entered = False
        self.connected: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        self._loop = loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(loop, self._timeout)
        self._addresses = _Addresses(loop, self._url.raw_host or "", self._url.port or 0)
        self._tls = _tls_settings(self._url)
        self._pool = _Pool(loop)
        self._connecting = asyncio.Semaphore(_CONNECTING_AT_ONCE)
        self._entered = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        self._entered = False
        self._deadlines.close()
        self._addresses.close()
        await self._pool.close()

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        """One HTTP call for `request`. The answer is `Failure` for all that the network or the server does wrong."""
        if not self._entered:
            raise RuntimeError("the endpoint is used outside `async with`")
        body = request.body
        try:
            head = self._head.spelled(attempt_headers(self._address, request.portkey, trace), len(body))
        except ValueError as error:
            return self._judge.unsendable(error)
        deadline = self._deadlines.start()
        connection = self._pool.take()
        try:
            if connection is None:
                connection = await self._connection()
            answered = connection.exchange(head, body)
            del head  # with thousands in flight, what is not needed while they wait adds up
            await answered
            while connection.stale:
                self._pool.put_back(connection)
                connection = None
                connection = self._pool.take() or await self._connection()
                head = self._head.spelled(attempt_headers(self._address, request.portkey, trace), len(body))
                await connection.exchange(head, body)
            return self._judged(connection)
        except _NotConnected as reason:
            return reason.failure
        except asyncio.CancelledError:
            if not deadline.caught():
                raise
            return self._judge.overdue(sent=connection is not None)
        finally:
            self._deadlines.end(deadline)
            if connection is not None:
                self._pool.put_back(connection)

    def _judged(self, connection: _Connection) -> Answer:
        match connection.end:
            case _End.WHOLE:
                return self._judge.whole(connection.head, connection.body())
            case _End.TOO_LARGE:
                return self._judge.too_large(connection.head)
            case _End.MALFORMED:
                return self._judge.malformed()
            case _:
                if connection.answering:
                    return self._judge.cut(connection.head, connection.body())
                return self._judge.unanswered(sent=connection.sent)

    async def _connection(self) -> _Connection:
        """A new connection, or one that has become idle before its turn has come. Raises _NotConnected."""
        async with self._connecting:
            connection = self._pool.take()
            if connection is None:
                connection = await self._connect()
                self.connected()
            return connection

    async def _connect(self) -> _Connection:
        try:
            addresses = await self._addresses.read()
        except (OSError, UnicodeError):
            raise _NotConnected(self._judge.host_unknown()) from None
        connection = _Connection(self._loop, self._pool)
        try:
            async with asyncio.timeout(bounds.CONNECT_S):
                sock = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, loop=self._loop
                )
                await self._loop.create_connection(lambda: connection, sock=sock, **self._tls)
            if not self._entered:
                connection.abort()  # it came about too late
        except BaseException as error:
            connection.abort()
            self._pool.lost(connection)  # uvloop does not say so of one that came about in this moment
            if isinstance(error, OSError):
                raise _NotConnected(self._why_not_connected(error)) from None
            raise
        return connection

    def _why_not_connected(self, error: OSError) -> Failure:
        match error:
            case ssl.SSLCertVerificationError():
                return self._judge.not_verified(error.verify_message)
            case ssl.SSLError():
                return self._judge.no_tls()
            case TimeoutError() if error.errno is None:
                return self._judge.silent()
            case _:
                return self._judge.unreachable(error)


class _NotConnected(Exception):
    """An attempt has ended with this failure before it began."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class _RequestHead:
    """The head of every request. What is the same in each is spelled once; the repr does not show the keys in it."""

    __slots__ = ("_always", "_constant", "_start")

    def __init__(self, url: URL, headers: Mapping[str, str]) -> None:
        self._always = headers
        self._start = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"
        self._constant = self._start + _lines(headers)

    def spelled(self, headers: Mapping[str, str], body_bytes: int) -> bytes:
        """The head of one request, whose own headers win. Raises ValueError for what no header can hold."""
        if headers.keys().isdisjoint(self._always):
            lines = self._constant + _lines(headers)
        else:
            lines = self._start + _lines({**self._always, **headers})
        return f"{lines}Content-Length: {body_bytes}\r\n\r\n".encode()


def _lines(headers: Mapping[str, str]) -> str:
    values = "".join(headers.values())
    if "\r" in values or "\n" in values or "\0" in values:
        raise ValueError("a header holds a line break or a zero byte")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def _tls_settings(url: URL) -> dict[str, Any]:
    """What makes a connection one over TLS that verifies, if it is to be one."""
    if url.scheme != "https":
        return {}
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return {
        "ssl": context,
        "server_hostname": (url.raw_host or "").rstrip("."),
        "ssl_shutdown_timeout": _TLS_GOODBYE_S,
    }


_AddressInfo = tuple[int, int, int, str, Any]
"""What getaddrinfo says of one address."""


class _Addresses:
    """The addresses behind the endpoint's name, as the system's own resolver says: it sees the hosts file, VPNs, mDNS.

    They are asked for at most once a minute, in a thread, however many connections wait for them; each connection begins
    with the next of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self._loop = loop
        self._host = host
        self._port = port
        self._known: deque[_AddressInfo] = deque()
        self._known_until = 0.0
        self._lookup: asyncio.Task[None] | None = None

    async def read(self) -> list[_AddressInfo]:
        """All of them, the one to try first in front. Raises OSError if there is none."""
        while self._loop.time() >= self._known_until:
            if self._lookup is None:
                self._lookup = self._loop.create_task(self._look_up())
                self._lookup.add_done_callback(self._looked_up)
            # One attempt's deadline is no reason to stop for the others.
            await asyncio.shield(self._lookup)
        addresses = list(self._known)
        self._known.rotate(-1)
        return addresses

    def close(self) -> None:
        """Nobody waits for a lookup any more."""
        if self._lookup is not None:
            self._lookup.cancel()

    async def _look_up(self) -> None:
        found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._known = deque(cast("list[_AddressInfo]", found))
        self._known_until = self._loop.time() + _DNS_TTL_S

    def _looked_up(self, lookup: asyncio.Task[None]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # asyncio complains of what nobody looked at, and all who waited may be gone


class _Pool:
    """The connections of an endpoint: all that are open, so that none is left behind, and those of them that are idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[_Connection] = set()
        self._none_left: asyncio.Future[None] | None = None
        self._leaving: list[_Connection] = []
        self._idle: dict[_Connection, float] = {}
        """Since when, in the loop's time. The last to come is the first to be used again."""
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self) -> _Connection | None:
        """An idle connection, if there is one that the server is not known to have left."""
        if not self._idle:
            return None
        oldest = self._loop.time() - bounds.KEEPALIVE_S
        while self._idle:
            connection, since = self._idle.popitem()
            if since >= oldest and connection.reusable:
                return connection
            connection.close()
        return None

    def put_back(self, connection: _Connection) -> None:
        """Keep a connection for the next attempt, or end it if there is anything the matter with it."""
        if not connection.reusable:
            connection.abort()
            return
        connection.forget()
        self._idle[connection] = self._loop.time()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(bounds.KEEPALIVE_S, self._sweep)

    def send_soon(self, connection: _Connection) -> None:
        """Have the connection send its request, with all others of this turn of the event loop."""
        if not self._leaving:
            self._loop.call_soon(self._send)
        self._leaving.append(connection)

    def _send(self) -> None:
        leaving, self._leaving = self._leaving, []
        for connection in leaving:
            connection.send()

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def unfit(self, connection: _Connection) -> None:
        """No attempt can use the connection again."""
        self._idle.pop(connection, None)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if not self._open and self._none_left is not None and not self._none_left.done():
            self._none_left.set_result(None)

    async def close(self) -> None:
        """End all connections, and come back when they are gone."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        if self._open:
            self._none_left = self._loop.create_future()
            for connection in self._open:
                connection.abort()
            await self._none_left

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        self._sweeper = None
        oldest = self._loop.time() - bounds.KEEPALIVE_S
        for connection, since in list(self._idle.items()):
            if since > oldest:
                self._sweeper = self._loop.call_at(since + bounds.KEEPALIVE_S, self._sweep)
                return
            del self._idle[connection]
            connection.close()


class _End(Enum):
    """What ended the reading of an answer."""

    WHOLE = 1
    TOO_LARGE = 2
    MALFORMED = 3
    LOST = 4


_NO_HEAD = Head(0, {}, ())
_NO_BODY = frozenset({204, 304})
_SWITCHING_PROTOCOLS = 101


@lru_cache(maxsize=1024)
def _spelled_low(name: bytes) -> str:
    """A header's name as it is looked up. A server has few, and they come with every answer."""
    return name.strip().lower().decode("utf-8", "surrogateescape")


class _Refused(Exception):
    """Stops the parser in the middle of what it was fed."""


class _Connection(asyncio.Protocol):
    """One connection, and the exchange that is under way on it: `exchange` ends, then the rest says what came of it.

    The parser reads one answer after the other and calls the `on_` methods; it refuses what could be read in two ways
    (two lengths, a length beside chunks), and takes what servers do write: folded headers, bare line feeds.
    """

    __slots__ = (
        "_kept",
        "_loop",
        "_parser",
        "_paused",
        "_pieces",
        "_pool",
        "_raw_headers",
        "_received",
        "_request",
        "_size",
        "_transport",
        "_unsent",
        "_waiter",
        "_watch",
        "answering",
        "end",
        "head",
        "reusable",
        "sent",
        "stale",
    )
    _waiter: asyncio.Future[None] | None
    _raw_headers: list[tuple[bytes, bytes]]
    _pieces: list[bytes]
    head: Head
    answering: bool
    """Whether the answer has got as far as its body; then `head` is there."""
    end: _End | None

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: _Pool) -> None:
        self._loop = loop
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._watch: select.poll | None = None
        self._parser = parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._request: tuple[bytes, bytes] | None = None
        """What is to be sent, head and body, until it is."""
        self._unsent: memoryview | None = None
        """The rest of a large body that is being sent."""
        self._paused = False
        self.sent = False
        """Whether anything of the request can have reached the server."""
        self.reusable = self._kept = False
        """Whether another exchange can follow."""
        self.stale = False
        """Whether a kept connection turned out to have been left by the server, before anything was sent on it."""
        self.forget()

    # --- for the endpoint ---

    def exchange(self, head: bytes, body: bytes) -> asyncio.Future[None]:
        """Send a request soon; what is done when there is an answer, or can be none any more."""
        self._kept = self.reusable
        self.reusable = self.sent = self.stale = False
        self._waiter = waiter = self._loop.create_future()
        if self._transport is None:
            self._ended(_End.LOST)  # a new one, of which the server thought better
        else:
            self._request = head, body
            self._pool.send_soon(self)
        return waiter

    def send(self) -> None:
        """Send the request, if it is still wanted."""
        request, transport = self._request, self._transport
        self._request = None
        if request is None or transport is None:
            return
        self.stale = self._kept and not is_silent(self._watch)
        if self.stale or transport.is_closing():
            self._ended(_End.LOST)
            return
        head, body = request
        self.sent = True
        if len(body) <= _PIECE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            self._unsent = memoryview(body)
            self._write_on()

    def forget(self) -> None:
        """Keep nothing of the last exchange, which may be long over when the next begins."""
        self._waiter = None
        self._raw_headers = []
        self._pieces = []
        self._size = self._received = 0
        self.head = _NO_HEAD
        self.answering = False
        self.end = None

    def body(self) -> bytes:
        """What came of the body."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def close(self) -> None:
        """Take leave of the server."""
        self.reusable = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection, and whatever is under way on it."""
        self.reusable = False
        self._request = self._unsent = None
        if self._transport is not None:
            self._transport.abort()

    # --- for the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._watch = watch(transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self.end is not None or self._request is not None:
            self._unfit()  # nothing was asked
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # After a whole answer it is what follows that cannot be read, and that was not asked for.
            self._ended(_End.LOST if self._pieces else _End.MALFORMED)
            self._unfit()
            return
        if self._received > bounds.HEAD_BYTES and self.end is None:
            if not self.answering:
                self._ended(_End.MALFORMED)
            elif self._received - self._size > bounds.BODY_BYTES:
                self._ended(_End.TOO_LARGE)

    def eof_received(self) -> None:
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._gone()
        else:
            self._ended(_End.LOST)
            self._unfit()
        self._transport = None
        self._request = self._unsent = None
        del self._parser  # the two hold one another
        self._pool.lost(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._unsent is not None:
            self._write_on()

    def _write_on(self) -> None:
        transport = self._transport
        while (
            self._unsent is not None
            and not self._paused
            and transport is not None
            and not transport.is_closing()
        ):
            piece, rest = self._unsent[:_PIECE_BYTES], self._unsent[_PIECE_BYTES:]
            self._unsent = rest or None
            transport.write(piece)

    def _gone(self) -> None:
        """The server says nothing more, which ends an answer that is as long as its connection."""
        self._ended(_End.WHOLE if self.answering and self._lasts_until_the_end() else _End.LOST)
        self._unfit()

    def _lasts_until_the_end(self) -> bool:
        return "content-length" not in self.head.headers and not any(
            name.lower() == b"transfer-encoding" and value.strip().lower().endswith(b"chunked")
            for name, value in self.head.raw_headers
        )

    def _unfit(self) -> None:
        """No exchange can follow any more."""
        self._pool.unfit(self)
        self.close()

    def _ended(self, end: _End) -> None:
        if self.end is None and self._waiter is not None:
            self.end = end
            if not self._waiter.done():
                self._waiter.set_result(None)

    # --- for the parser ---

    def on_message_begin(self) -> None:
        if self.end is not None:
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.answering:
            return  # a trailer
        if len(name) + len(value) > bounds.HEADER_FIELD_BYTES or b"\0" in value:
            raise _Refused
        self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 and status != _SWITCHING_PROTOCOLS:
            return
        headers = {
            # The first of several counts.
            _spelled_low(name): value.strip().decode("utf-8", "surrogateescape")
            for name, value in reversed(self._raw_headers)
        }
        self.head = Head(status, headers, self._raw_headers)
        self.answering = True
        length = headers.get("content-length")
        if length is not None and int(length) > bounds.BODY_BYTES and status not in _NO_BODY:
            self._ended(_End.TOO_LARGE)
            raise _Refused

    def on_body(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > bounds.BODY_BYTES:
            self._ended(_End.TOO_LARGE)
            raise _Refused
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if not self.answering:
            self._raw_headers = []  # an interim answer
            return
        transport = self._transport
        self.reusable = (
            self._parser.should_keep_alive()
            and self._unsent is None
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )
        self._ended(_End.WHOLE)
