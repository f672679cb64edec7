"""Whether a kept connection can carry another request."""

from __future__ import annotations

import asyncio
import select
import socket

__all__ = ["fileno", "is_silent"]

_STIRRED = select.POLLIN | select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def fileno(transport: asyncio.BaseTransport | None) -> int:
    """The file of a connection, for as long as it is open; -1 if there is none any more."""
    sock: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    return -1 if sock is None else sock.fileno()


def is_silent(fileno: int) -> bool:
    """Whether the server has neither left an idle connection nor said anything on it.

    Either is seen in the socket at once, but by the event loop only at its next turn. What is sent in between is lost, and
    nobody can tell afterwards whether it was read. Asking the socket makes that window as short as the way to the server,
    for a microsecond. A loss within it is a plain connection error: to send again unasked would be to guess that nothing
    was billed.
    """
    if fileno < 0:
        return False
    poll = select.poll()  # kept with each connection, it would be half a kilobyte of each
    poll.register(fileno, _STIRRED)
    return not poll.poll(0)
