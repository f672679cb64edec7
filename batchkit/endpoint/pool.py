"""The connections of an endpoint: which are open, which can be used again, and what leaves and came in this turn of the event loop.

What is the same for many is done for one after the other, which takes less work than for each between all else that it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from batchkit.endpoint import bounds
from batchkit.endpoint.connection import Connection
from batchkit.endpoint.reading import AnswerReader
from batchkit.endpoint.room import Room
from batchkit.endpoint.silence import stirred
from batchkit.records import Answer

__all__ = ["Pool"]

_ASKED_TOGETHER = 16
"""So many connections are asked at once whether the server has left them: asking each by itself takes a system call more, and with
more at once the last would be written to a millisecond later."""


class Pool:
    """The connections of an endpoint: all that are open, so that none is left behind, and those of them that are idle.

    `judge` says what came of an exchange that has ended. `sending` is called before what leaves in one turn of the event loop does,
    and keeps it from leaving by a `Room`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        judge: Callable[[Connection], Answer | None],
        sending: Callable[[], Room | None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._judge = judge
        self._sending = sending
        self.readers: list[AnswerReader] = []
        self._open: set[Connection] = set()
        self._none_left: asyncio.Future[None] | None = None
        self._leaving: list[Connection] = []
        self._ended: list[tuple[Connection, asyncio.Future[Answer | None]]] = []
        self._idle: dict[Connection, float] = {}
        """Since when, in the loop's time. The last to come is the first to be used again."""
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
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

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next attempt, or end it if there is anything the matter with it."""
        connection.forget()
        if not connection.reusable:
            connection.abort()
            return
        self._idle[connection] = self._loop.time()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(bounds.KEEPALIVE_S, self._sweep)

    def send_soon(self, connection: Connection) -> None:
        """Have the connection send its request, with all others of this turn of the event loop."""
        if not self._leaving:
            self._loop.call_soon(self._send)
        self._leaving.append(connection)

    def _send(self) -> None:
        leaving, self._leaving = self._leaving, []
        room = self._sending()
        if room is not None:
            for connection in leaving:
                connection.hold_back(room)
            return
        for begin in range(0, len(leaving), _ASKED_TOGETHER):
            some = leaving[begin : begin + _ASKED_TOGETHER]
            left = stirred([connection.fileno for connection in some if connection.fileno >= 0])
            for connection in some:
                connection.send(left)

    def ended(self, connection: Connection, waiter: asyncio.Future[Answer | None]) -> None:
        """Have `waiter` told what came of its exchange, with all others that end in this turn of the event loop."""
        if not self._ended:
            self._loop.call_soon(self._tell)
        self._ended.append((connection, waiter))

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        for connection, waiter in ended:
            if waiter.done():
                continue  # it waits no more, and the connection may be in other hands
            try:
                waiter.set_result(self._judge(connection))
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
                waiter.set_exception(error)

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def unfit(self, connection: Connection) -> None:
        """No attempt can use the connection again."""
        self._idle.pop(connection, None)

    def lost(self, connection: Connection) -> None:
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
        expired: list[Connection] = []
        for connection, since in self._idle.items():
            if since > oldest:
                self._sweeper = self._loop.call_at(since + bounds.KEEPALIVE_S, self._sweep)
                break
            expired.append(connection)
        for connection in expired:
            del self._idle[connection]
            connection.close()
