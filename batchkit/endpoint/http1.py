"""The straight way out: HTTP/1.1 as one endpoint needs it, on asyncio's own transports.

There is one origin, one method and one kind of body, which is there before it is sent and whole before it is read. So a
request is a head that was spelled once, a few lines more, and its body in the same write; and an answer is what stands
between two bytes of a connection that is nobody else's meanwhile. Only the attempt waits, and what the attempts of one turn of
the event loop send leaves together at its end: the server is woken once, not by each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from yarl import URL

from batchkit.endpoint.connecting import Connector, NotConnected
from batchkit.endpoint.connection import Connection
from batchkit.endpoint.deadlines import Deadlines
from batchkit.endpoint.judging import Judge
from batchkit.endpoint.pool import Pool
from batchkit.endpoint.reading import End
from batchkit.endpoint.room import Room
from batchkit.formats.headers import EndpointAddress, attempt_headers, id_lines
from batchkit.records import Answer, Request, Trace

__all__ = ["Http1Endpoint"]

_CONNECTING_AT_ONCE = 1024
"""A server's queue of those it has not greeted yet is about as long, and each waiting there takes as much memory as three that are through."""


class Http1Endpoint:
    """Sends the requests of one run to one address, over connections of its own. It is an `Endpoint`."""

    def __init__(self, address: EndpointAddress, *, timeout: float) -> None:
        self._timeout = timeout
        self._url = url = URL(address.url)
        self._head = _RequestHead(url, address)
        self._judge = Judge(address, url.host or "", timeout)
        self._entered = False
        self.connected: Callable[[], None] = lambda: None
        self.sending: Callable[[], Room | None] = lambda: None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(loop, self._timeout)
        self._pool = Pool(loop, self._judged, self._tell_sending)
        self._connector = Connector(loop, self._url, self._pool, self._judge)
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
        self._connector.close()
        await self._pool.close()

    def _tell_sending(self) -> Room | None:
        return self.sending()

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        """One HTTP call for `request`. The answer is `Failure` for all that the network or the server does wrong."""
        if not self._entered:
            raise RuntimeError("the endpoint is used outside `async with`")
        try:
            head = self._head.spelled(request, trace)
        except ValueError as error:
            return self._judge.unsendable(error)
        due = self._deadlines.next()
        connection = self._pool.take()
        try:
            while True:
                if connection is None:
                    del head  # with thousands in flight, what is not needed while they wait adds up
                    connection = await self._connection(due)
                    head = self._head.spelled(request, trace)
                self._deadlines.start(connection, due)
                answered = connection.exchange(head, request.body)
                del head
                answer = await answered
                if answer is not None:
                    return answer
                room = connection.held_back
                self._deadlines.stop(connection)
                self._pool.put_back(connection)
                connection = None
                if room is not None:
                    if not await room():
                        return self._judge.unanswered(sent=False)
                    due = self._deadlines.next()
                connection = self._pool.take()
                head = self._head.spelled(request, trace)
        except NotConnected as reason:
            return reason.failure
        finally:
            if connection is not None:
                self._deadlines.stop(connection)
                self._pool.put_back(connection)

    def _judged(self, connection: Connection) -> Answer | None:
        """What came of an exchange; None where nothing was sent, and another is to follow."""
        if connection.stale or connection.held_back is not None:
            return None
        end, reader = connection.end, connection.reader
        head = None if reader is None else reader.head
        if reader is not None and head is not None:
            if end is End.WHOLE:
                return self._judge.whole(head, reader.body())
            if end is End.TOO_LARGE:
                return self._judge.too_large(head)
            if end is End.LOST:
                return self._judge.cut(head, reader.body())
        if end is End.OVERDUE:
            return self._judge.overdue(sent=connection.sent)
        if end is End.MALFORMED:
            return self._judge.malformed()
        return self._judge.unanswered(sent=connection.sent)

    async def _connection(self, due: float) -> Connection:
        """A new connection, or one that has become idle before its turn has come. Raises NotConnected."""
        try:
            with self._deadlines.limit(due):
                async with self._connecting:
                    connection = self._pool.take()
                    if connection is None:
                        connection = await self._connector.connect()
                        self.connected()
                    return connection
        except TimeoutError:
            raise NotConnected(self._judge.overdue(sent=False)) from None


class _RequestHead:
    """The head of every request. What is the same in each is spelled once; the repr does not show the keys in it."""

    __slots__ = ("_address", "_constant", "_ids_apart", "_start")

    def __init__(self, url: URL, address: EndpointAddress) -> None:
        self._address = address
        self._start = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"
        self._constant = self._start + _lines(address.headers)
        self._ids_apart = attempt_headers(address, None, Trace("", "")).keys().isdisjoint(address.headers)

    def spelled(self, request: Request, trace: Trace) -> bytes:
        """The head of one attempt, whose own headers win. Raises ValueError for what no header can hold."""
        ids = id_lines(self._address, trace) if request.portkey is None and self._ids_apart else None
        head = self._of_its_own(request, trace) if ids is None else self._constant + ids
        return f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode()

    def _of_its_own(self, request: Request, trace: Trace) -> str:
        headers, always = attempt_headers(self._address, request.portkey, trace), self._address.headers
        if headers.keys().isdisjoint(always):
            return self._constant + _lines(headers)
        return self._start + _lines({**always, **headers})


def _lines(headers: Mapping[str, str]) -> str:
    values = "".join(headers.values())
    if "\r" in values or "\n" in values or "\0" in values:
        raise ValueError("a header holds a line break or a zero byte")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
