"""One connection of HTTP/1.1: what is sent on it, who reads what comes, and when either is over.

A connection that has anything else about it than a whole answer and silence is not used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Protocol, cast

from batchkit.endpoint.reading import AnswerReader, End
from batchkit.endpoint.room import Room
from batchkit.endpoint.silence import fileno
from batchkit.records import Answer

__all__ = ["Connection", "Owner"]

_PIECE_BYTES = 256 * 1024
"""Larger bodies are written piece by piece, as fast as they leave."""


class Owner(Protocol):
    """Whoever has the connections, as one of them knows it."""

    readers: list[AnswerReader]
    """Those that read nothing just now: few answers arrive at once, however many are waited for."""

    def opened(self, connection: Connection) -> None:
        """It is there."""
        ...

    def send_soon(self, connection: Connection) -> None:
        """It has a request to `send`."""
        ...

    def ended(self, connection: Connection, waiter: asyncio.Future[Answer | None]) -> None:
        """The exchange on it has ended, and whoever waits for it is to be told what came of it."""
        ...

    def unfit(self, connection: Connection) -> None:
        """No exchange can follow on it."""
        ...

    def lost(self, connection: Connection) -> None:
        """It is there no longer."""
        ...


class Connection(asyncio.Protocol):
    """One connection, and the exchange that is under way on it: `exchange` ends, then `end` and `reader` say what came of it."""

    __slots__ = (
        "_kept",
        "_loop",
        "_owner",
        "_paused",
        "_request",
        "_transport",
        "_unsent",
        "_waiter",
        "end",
        "fileno",
        "held_back",
        "reader",
        "reusable",
        "sent",
        "stale",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self.fileno = -1
        """Its file, once it is open."""
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
        self.held_back: Room | None = None
        """What is to be waited for before a request is sent that was not for want of it."""
        self._waiter: asyncio.Future[Answer | None] | None = None
        """Who waits for the exchange that is under way."""
        self.end: End | None = None
        """What ended the exchange, while it is not forgotten."""
        self.reader: AnswerReader | None = None
        """What has read so much of the answer as came."""

    # --- for the endpoint ---

    def exchange(self, head: bytes, body: bytes) -> asyncio.Future[Answer | None]:
        """Send a request soon; what is done when the owner knows its answer, or that nothing was sent (None)."""
        self._kept = self.reusable
        self.reusable = self.sent = self.stale = False
        self.held_back = None
        self._waiter = waiter = self._loop.create_future()
        if self._transport is None:
            self._ended(End.LOST)  # a new one, of which the server thought better
        else:
            self._request = head, body
            self._owner.send_soon(self)
        return waiter

    def send(self, stirred: Container[int]) -> None:
        """Send the request, if it is still wanted, and if the connection is not one of the `stirred` ones (`silence`)."""
        request, transport = self._request, self._transport
        self._request = None
        if request is None or transport is None:
            return
        self.stale = self._kept and (self.fileno < 0 or self.fileno in stirred)
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

    def hold_back(self, room: Room) -> None:
        """End the exchange before anything of it is sent, if it is still wanted; another can follow."""
        if self._request is not None and self._transport is not None:
            self._request = None
            self.held_back = room
            self.reusable = not self._transport.is_closing()
            self._ended(End.LOST)

    def overdue(self) -> None:
        """End the exchange: its time is up."""
        self._request = None
        self._ended(End.OVERDUE)

    def forget(self) -> None:
        """Keep nothing of the last exchange, which may be long over when the next begins."""
        self._waiter = self.end = None
        reader = self.reader
        if reader is not None:
            self.reader = None
            if reader.lasting:
                reader.renew()
                self._owner.readers.append(reader)
            else:
                reader.discard()

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
        self.fileno = fileno(transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or not self.sent:
            self._unfit()  # nothing was asked
            return
        reader = self.reader
        if reader is None:
            readers = self._owner.readers
            self.reader = reader = readers.pop() if readers else AnswerReader()
        readable = reader.feed(data)
        if reader.end is not None:
            transport = self._transport
            self.reusable = (
                reader.lasting
                and self._unsent is None
                and transport is not None
                and not transport.is_closing()
                and not transport.get_write_buffer_size()
            )
            self._ended(reader.end)
        if not readable:
            self._unfit()

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
        reader = self.reader
        self._ended(End.WHOLE if reader is not None and reader.lasts_until_the_end() else End.LOST)
        self._unfit()

    def _unfit(self) -> None:
        """No exchange can follow any more."""
        self._owner.unfit(self)
        self.close()

    def _ended(self, end: End) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self.end = end
            self._owner.ended(self, waiter)
