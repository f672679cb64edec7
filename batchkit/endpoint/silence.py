"""Whether a kept connection can carry another request."""

from __future__ import annotations

import asyncio
import select
import socket

__all__ = ["descriptor_of", "is_silent"]

_STIRRED = select.POLLIN | select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def descriptor_of(transport: asyncio.BaseTransport | None) -> int:
    """The socket of a connection, negative if there is none any more."""
    sock: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    return -1 if sock is None else sock.fileno()


def is_silent(descriptor: int) -> bool:
    """Whether the server has neither left an idle connection nor said anything on it.

    Either is seen in the socket at once, but by the event loop only at its next turn. What is sent in between is lost, and
    nobody can tell afterwards whether it was read. Asking the socket makes that window as short as the way to the server,
    for a microsecond. A loss within it is a plain connection error: to send again unasked would be to guess that nothing
    was billed.
    """
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, _STIRRED)
    return not poll.poll(0)
