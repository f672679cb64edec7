"""Whether a kept connection can carry another request."""

from __future__ import annotations

import asyncio
import select
import socket

__all__ = ["is_silent", "watch"]

_STIRRED = select.POLLIN | select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def watch(transport: asyncio.BaseTransport | None) -> select.poll | None:
    """What looks at the socket of a connection, for as long as it is open; None if there is none any more."""
    sock: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return None
    poll = select.poll()
    poll.register(sock.fileno(), _STIRRED)
    return poll


def is_silent(watch: select.poll | None) -> bool:
    """Whether the server has neither left an idle connection nor said anything on it.

    Either is seen in the socket at once, but by the event loop only at its next turn. What is sent in between is lost, and
    nobody can tell afterwards whether it was read. Asking the socket makes that window as short as the way to the server,
    for half a microsecond. A loss within it is a plain connection error: to send again unasked would be to guess that nothing
    was billed.
    """
    return watch is not None and not watch.poll(0)
