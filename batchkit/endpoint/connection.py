"""One connection of HTTP/1.1, and what is read on it. The one place that knows httptools.

How an answer is read: a parser tells a `Connection` of headers and pieces of the body. The first of these ends it, as
`End` names them: its last byte, its bounds, the parser's refusal, the connection's loss. A connection that has anything
else about it than a whole answer and silence is not used again.
"""

from __future__ import annotations

import asyncio
import select
from enum import Enum
from functools import lru_cache
from typing import Protocol, cast

import httptools

from batchkit.endpoint import bounds
from batchkit.endpoint.judging import Head
from batchkit.endpoint.silence import is_silent, watch

__all__ = ["Connection", "End", "Owner"]

_PIECE_BYTES = 256 * 1024
"""Larger bodies are written piece by piece, as fast as they leave."""


class Owner(Protocol):
    """Whoever has the connections, as one of them knows it."""

    def opened(self, connection: Connection) -> None:
        """It is there."""
        ...

    def send_soon(self, connection: Connection) -> None:
        """It has a request to `send`."""
        ...

    def unfit(self, connection: Connection) -> None:
        """No exchange can follow on it."""
        ...

    def lost(self, connection: Connection) -> None:
        """It is there no longer."""
        ...


class End(Enum):
    """What ended the reading of an answer."""

    WHOLE = 1
    TOO_LARGE = 2
    MALFORMED = 3
    LOST = 4
    OVERDUE = 5


_NO_HEAD = Head(0, {}, ())
_NO_BODY = frozenset({204, 304})
_SWITCHING_PROTOCOLS = 101


@lru_cache(maxsize=1024)
def _spelled_low(name: bytes) -> str:
    """A header's name as it is looked up. A server has few, and they come with every answer."""
    return name.strip().lower().decode("utf-8", "surrogateescape")


class _Refused(Exception):
    """Stops the parser in the middle of what it was fed."""


class Connection(asyncio.Protocol):
    """One connection, and the exchange that is under way on it: `exchange` ends, then the rest says what came of it.

    The parser reads one answer after the other and calls the `on_` methods; it refuses what could be read in two ways
    (two lengths, a length beside chunks), and takes what servers do write: folded headers, bare line feeds.
    """

    __slots__ = (
        "_kept",
        "_loop",
        "_owner",
        "_parser",
        "_paused",
        "_pieces",
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
    end: End | None

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
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
            self._ended(End.LOST)  # a new one, of which the server thought better
        else:
            self._request = head, body
            self._owner.send_soon(self)
        return waiter

    def send(self) -> None:
        """Send the request, if it is still wanted."""
        request, transport = self._request, self._transport
        self._request = None
        if request is None or transport is None:
            return
        self.stale = self._kept and not is_silent(self._watch)
        if self.stale or transport.is_closing():
            self._ended(End.LOST)
            return
        head, body = request
        self.sent = True
        if len(body) <= _PIECE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            self._unsent = memoryview(body)
            self._write_on()

    def overdue(self) -> None:
        """End the exchange: its time is up."""
        self._request = None
        self._ended(End.OVERDUE)

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
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self.end is not None or self._request is not None:
            self._unfit()  # nothing was asked
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # After a whole answer it is what follows that cannot be read, and that was not asked for.
            self._ended(End.LOST if self._pieces else End.MALFORMED)
            self._unfit()
            return
        if self._received > bounds.HEAD_BYTES and self.end is None:
            if not self.answering:
                self._ended(End.MALFORMED)
            elif self._received - self._size > bounds.BODY_BYTES:
                self._ended(End.TOO_LARGE)

    def eof_received(self) -> None:
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._gone()
        else:
            self._ended(End.LOST)
            self._unfit()
        self._transport = None
        self._request = self._unsent = None
        del self._parser  # the two hold one another
        self._owner.lost(self)

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
        self._ended(End.WHOLE if self.answering and self._lasts_until_the_end() else End.LOST)
        self._unfit()

    def _lasts_until_the_end(self) -> bool:
        return "content-length" not in self.head.headers and not any(
            name.lower() == b"transfer-encoding" and value.strip().lower().endswith(b"chunked")
            for name, value in self.head.raw_headers
        )

    def _unfit(self) -> None:
        """No exchange can follow any more."""
        self._owner.unfit(self)
        self.close()

    def _ended(self, end: End) -> None:
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
            self._ended(End.TOO_LARGE)
            raise _Refused

    def on_body(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > bounds.BODY_BYTES:
            self._ended(End.TOO_LARGE)
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
        self._ended(End.WHOLE)
