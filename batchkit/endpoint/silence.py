"""Whether kept connections can carry another request."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterable

__all__ = ["fileno", "is_silent", "stirred"]

_STIRRED = select.POLLIN | select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def fileno(transport: asyncio.BaseTransport | None) -> int:
    """The file of a connection, for as long as it is open; -1 if there is none any more."""
    sock: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    return -1 if sock is None else sock.fileno()


def stirred(connections: Iterable[int]) -> set[int]:
    """Which of these idle connections the server has left or said anything on, by their files.

    Either is seen in the socket at once, but by the event loop only at its next turn. What is sent in between is lost, and
    nobody can tell afterwards whether it was read. Asking the sockets makes that window as short as the way to the server and
    what is written to those that were asked together. A loss within it is a plain connection error: to send again unasked would
    be to guess that nothing was billed.
    """
    poll = select.poll()  # kept with each connection, it would be half a kilobyte of each
    for connection in connections:
        poll.register(connection, _STIRRED)
    return {connection for connection, _ in poll.poll(0)}


def is_silent(connection: int) -> bool:
    """Whether it is open, and not `stirred`."""
    return connection >= 0 and not stirred((connection,))
