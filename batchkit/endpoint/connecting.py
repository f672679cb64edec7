"""How a connection comes about: by the addresses of a name, the faster of two, and TLS where it is asked for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import aiohappyeyeballs
from yarl import URL

from batchkit.endpoint import bounds
from batchkit.endpoint.addresses import Addresses, AddressInfo
from batchkit.endpoint.connection import Connection, Owner
from batchkit.endpoint.deadlines import Deadlines
from batchkit.endpoint.judging import Judge
from batchkit.records import Failure

__all__ = ["Connector", "NotConnected"]

_NEXT_ADDRESS_S = 0.25
"""So long an address may be silent before the next is tried beside it (RFC 8305)."""
_TLS_GOODBYE_S = 1.0


class NotConnected(Exception):
    """An attempt has ended with this failure before it began."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class Connector:
    """Connects to the origin of `url`, for the owner of the connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, url: URL, owner: Owner, judge: Judge) -> None:
        self._loop = loop
        self._addresses = Addresses(loop, url.raw_host or "", url.port or 0)
        self._deadlines = Deadlines(loop, bounds.CONNECT_S)
        self._tls = _tls_settings(url)
        self._owner = owner
        self._judge = judge
        self._closed = False

    def close(self) -> None:
        """No connection is wanted any more."""
        self._closed = True
        self._addresses.close()
        self._deadlines.close()

    async def connect(self) -> Connection:
        """A new connection. Raises NotConnected."""
        try:
            addresses = await self._addresses.read()
        except (OSError, UnicodeError):
            raise NotConnected(self._judge.host_unknown()) from None
        connection = Connection(self._loop, self._owner)
        try:
            with self._deadlines.limit(self._deadlines.next()):
                where = await self._where(addresses)
                await self._loop.create_connection(lambda: connection, **where, **self._tls)
            if self._closed:
                connection.abort()  # it came about too late
        except BaseException as error:
            connection.abort()
            self._owner.lost(connection)  # uvloop does not say so of one that came about in this moment
            if isinstance(error, OSError):
                raise NotConnected(self._why_not_connected(error)) from None
            raise
        return connection

    async def _where(self, addresses: Sequence[AddressInfo]) -> dict[str, Any]:
        """The only address there is, or a socket that is connected to whichever answered first."""
        host, port, *scope = addresses[0][4]
        if len(addresses) == 1 and not any(scope):
            return {"host": host, "port": port}  # for a third of what the race costs
        return {
            "sock": await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, loop=self._loop
            )
        }

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
