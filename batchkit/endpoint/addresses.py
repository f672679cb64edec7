"""The addresses behind the endpoint's name."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, cast

__all__ = ["AddressInfo", "Addresses"]

_DNS_TTL_S = 60.0

AddressInfo = tuple[int, int, int, str, Any]
"""What getaddrinfo says of one address."""


class Addresses:
    """The addresses behind the endpoint's name, as the system's own resolver says: it sees the hosts file, VPNs, mDNS.

    They are asked for at most once a minute, in a thread, however many connections wait for them; each connection begins
    with the next of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self._loop = loop
        self._host = host
        self._port = port
        self._known: deque[AddressInfo] = deque()
        self._known_until = 0.0
        self._lookup: asyncio.Task[None] | None = None

    async def read(self) -> list[AddressInfo]:
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
        self._known = deque(cast("list[AddressInfo]", found))
        self._known_until = self._loop.time() + _DNS_TTL_S

    def _looked_up(self, lookup: asyncio.Task[None]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # asyncio complains of what nobody looked at, and all who waited may be gone
