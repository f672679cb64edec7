"""The way out for all that needs more than a connection to the endpoint itself: aiohttp's session.

One session serves the run and is stripped of what a batch does not need and each request would pay for: cookies, proxy
variables, redirects, aiohttp's own timeouts and decompression. A proxy is one that the address names, found once.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import Enum
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace as AiohttpTrace
from yarl import URL

from batchkit.endpoint import bounds
from batchkit.endpoint.deadlines import Deadlines
from batchkit.endpoint.decoding import TooLarge
from batchkit.endpoint.judging import Head, Judge
from batchkit.endpoint.room import Room
from batchkit.endpoint.silence import fileno, is_silent
from batchkit.formats.headers import EndpointAddress, attempt_headers
from batchkit.formats.proxies import Proxy
from batchkit.records import Answer, Failure, FailureKind, Request, Trace

__all__ = ["SessionEndpoint"]

_DNS_TTL_S = 60
_LARGE_BODY_BYTES = 1024 * 1024
_PROXY_AUTHENTICATION_REQUIRED = 407
_TLS_ERRORS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)
"""They are the endpoint's, also where a proxy leads to it."""


class SessionEndpoint:
    """Sends the requests of one run to one address, through aiohttp. It is an `Endpoint`."""

    def __init__(self, address: EndpointAddress, *, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._url = URL(address.url)
        self._host = self._url.host or ""
        self._judge = Judge(address, self._host, timeout)
        self._proxy = address.proxy
        self._session: aiohttp.ClientSession | None = None
        self._leaving: list[asyncio.Future[Room | None]] = []
        """Attempts that are about to be sent."""
        self.connected: Callable[[], None] = lambda: None
        self.sending: Callable[[], Room | None] = lambda: None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop, self._timeout)
        proxy = self._proxy
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                connected=self._tell_connected,
                limit=0,
                keepalive_timeout=bounds.KEEPALIVE_S,
                ttl_dns_cache=_DNS_TTL_S,
                # The system's own resolver sees what every other program does: hosts file, VPN, mDNS.
                resolver=aiohttp.ThreadedResolver(),
            ),
            # A session's own headers would go to the proxy too, with a CONNECT, and keys are among them.
            headers=self._address.headers if proxy is None else None,
            proxy=None if proxy is None else proxy.url,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=bounds.CONNECT_S, sock_read=None
            ),
            trust_env=False,
            auto_decompress=False,
            max_line_size=bounds.HEADER_FIELD_BYTES,
            max_field_size=bounds.HEADER_FIELD_BYTES,
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._deadlines.close()
            await self._session.close()
            self._session = None

    def _tell_connected(self) -> None:
        self.connected()

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        """One HTTP call for `request`. The answer is `Failure` for all that the network or the server does wrong."""
        if self._session is None:
            raise RuntimeError("the endpoint is used outside `async with`")
        _stage.set(_Stage.REUSED)
        while (room := await self._turn()) is not None:
            if not await room():
                return self._judge.unanswered(sent=False)
        try:
            with self._deadlines.limit(self._deadlines.next()):
                return await self._exchange(self._session, request, trace)
        except TimeoutError:
            by = "" if self._proxy is None else f" through the proxy {self._proxy.url}"
            return self._judge.overdue(sent=_stage.get() is not _Stage.CONNECTING, by=by)

    def _turn(self) -> asyncio.Future[Room | None]:
        """Ends with this turn of the event loop, whose attempts are asked about together; with what they have to wait for, if anything."""
        if not self._leaving:
            self._loop.call_soon(self._let_leave)
        turn: asyncio.Future[Room | None] = self._loop.create_future()
        self._leaving.append(turn)
        return turn

    def _let_leave(self) -> None:
        leaving, self._leaving = self._leaving, []
        room = self.sending()
        for turn in leaving:
            if not turn.done():
                turn.set_result(room)

    async def _exchange(self, session: aiohttp.ClientSession, request: Request, trace: Trace) -> Answer:
        proxy_headers: Mapping[str, str] | None = None
        try:
            headers = attempt_headers(self._address, request.portkey, trace)
            if self._proxy is not None:
                headers, proxy_headers = self._headers_by_proxy(self._proxy, headers)
            # aiohttp warns of large bytes; a file is written in pieces.
            large = len(request.body) > _LARGE_BODY_BYTES
            response = await session.post(
                self._url,
                data=io.BytesIO(request.body) if large else request.body,
                headers=headers,
                proxy_headers=proxy_headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            return self._unanswered(error)
        except ValueError as error:
            return self._judge.unsendable(error)
        try:
            return await self._receive(response)
        finally:
            # Gives the connection back if the body was read to its end, and closes it otherwise.
            response.release()

    def _headers_by_proxy(
        self, proxy: Proxy, headers: Mapping[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """What goes to the endpoint, and what only the proxy is told, in a CONNECT; http has but the one request for both."""
        for_proxy = {"User-Agent": self._address.headers["User-Agent"]}
        if proxy.authorization is not None:
            for_proxy["Proxy-Authorization"] = proxy.authorization
        sent = {**self._address.headers, **headers}
        return (sent, for_proxy) if self._url.scheme == "https" else ({**sent, **for_proxy}, {})

    async def _receive(self, response: aiohttp.ClientResponse) -> Answer:
        asked_by_proxy = response.status == _PROXY_AUTHENTICATION_REQUIRED and self._url.scheme == "http"
        if self._proxy is not None and asked_by_proxy:
            return self._refused_by_proxy(self._proxy, response.status)
        # The first of several counts.
        headers = {name.lower(): value for name, value in reversed([*response.headers.items()])}
        head = Head(response.status, headers, b"\n".join([value for _, value in response.raw_headers]))
        pieces: list[bytes] = []
        try:
            await _read(response, pieces)
        except TooLarge:
            return self._judge.too_large(head)
        except (aiohttp.ClientError, OSError):
            return self._judge.cut(head, b"".join(pieces))
        return self._judge.whole(head, b"".join(pieces))

    def _unanswered(self, error: Exception) -> Failure:
        """The failure of an attempt that brought no status."""
        if (
            self._proxy is not None
            and _stage.get() is _Stage.CONNECTING
            and not isinstance(error, _TLS_ERRORS)
        ):
            return self._not_let_through(self._proxy, error)
        match error:
            case aiohttp.ClientConnectorCertificateError():
                return self._judge.not_verified(_why_not_verified(error))
            case aiohttp.ClientConnectorDNSError():
                return self._judge.host_unknown()
            case aiohttp.ClientConnectorSSLError():
                return self._judge.no_tls()
            case aiohttp.ConnectionTimeoutError():
                return self._judge.silent()
            case aiohttp.ClientConnectorError():
                return self._judge.unreachable(error.os_error)
            case aiohttp.ClientResponseError():
                return self._judge.malformed()
            case _:
                return self._judge.unanswered(sent=_stage.get() is not _Stage.CONNECTING)

    def _not_let_through(self, proxy: Proxy, error: Exception) -> Failure:
        """The failure of an attempt that never came as far as the endpoint."""
        match error:
            case aiohttp.ClientHttpProxyError():
                return self._refused_by_proxy(proxy, error.status)
            case aiohttp.ClientConnectorDNSError():
                return Failure(
                    FailureKind.MISDIRECTED, "host_unknown", f"the name of the proxy {proxy.url} is not known"
                )
            case aiohttp.ClientProxyConnectionError():
                reason = error.os_error.strerror or type(error.os_error).__name__
                message = f"cannot connect to the proxy {proxy.url}: {reason}"
            case aiohttp.ConnectionTimeoutError():
                message = f"no connection through the proxy {proxy.url} within {bounds.CONNECT_S:g} s"
            case aiohttp.ClientResponseError():
                message = f"the proxy {proxy.url} answered with what is no HTTP"
            case _:
                message = f"the proxy {proxy.url} closed the connection before it was one to {self._host}"
        return Failure(FailureKind.CONNECTION_ERROR, "connection_error", message)

    def _refused_by_proxy(self, proxy: Proxy, status: int) -> Failure:
        """What a proxy says itself. A no is one to the whole run; of a server that it cannot reach, or of haste, it may pass."""
        if status == _PROXY_AUTHENTICATION_REQUIRED:
            no = "the user and password of its variable" if proxy.authorization else "to serve without a user"
            return Failure(
                FailureKind.MISDIRECTED,
                "proxy_refused",
                f"the proxy {proxy.url} refuses {no} (HTTP {status})",
            )
        message = f"the proxy {proxy.url} does not connect to {self._host} (HTTP {status})"
        if 400 <= status < 500 and status not in (408, 429):
            return Failure(FailureKind.MISDIRECTED, "proxy_refused", message)
        return Failure(FailureKind.CONNECTION_ERROR, "connection_error", message)


class _Stage(Enum):
    """How an attempt came by its connection, which tells whether a byte of it can have been sent."""

    REUSED = 1
    CONNECTING = 2
    CONNECTED = 3


_stage: ContextVar[_Stage] = ContextVar("_stage", default=_Stage.REUSED)
"""The stage of the attempt that runs in this context; aiohttp connects in the task that asks for it."""


class _Connector(aiohttp.TCPConnector):
    """Tells an attempt its stage, and looks before a kept connection is used whether the server has left it."""

    def __init__(self, *, connected: Callable[[], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._connected = connected

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[AiohttpTrace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            if _stage.get() is not _Stage.REUSED or is_silent(fileno(connection.transport)):
                return connection
            connection.close()

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[AiohttpTrace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> ResponseHandler:
        _stage.set(_Stage.CONNECTING)
        protocol = await super()._create_connection(req, traces, timeout)
        if (closed := protocol.closed) is not None:
            closed.add_done_callback(_acknowledge)
        _stage.set(_Stage.CONNECTED)
        self._connected()
        return protocol


async def _read(response: aiohttp.ClientResponse, pieces: list[bytes]) -> None:
    """The body as it travels, in `pieces` up to the bound; what came of one that is cut is in them too."""
    length = response.content_length
    if length is not None and length > bounds.BODY_BYTES:
        raise TooLarge
    content = response.content
    if content.is_eof():
        pieces.append(await content.readany())
        return

    def give_up(_: object) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection is gone"))

    # aiohttp forgets to wake the reader when a chunk's length is broken: it would wait for its deadline.
    closed = _closed(response)
    if closed is None:
        give_up(None)
    else:
        closed.add_done_callback(give_up)
    size = 0
    try:
        while piece := await content.readany():
            pieces.append(piece)
            size += len(piece)
            if size > bounds.BODY_BYTES:
                raise TooLarge
    finally:
        if closed is not None:
            closed.remove_done_callback(give_up)


def _closed(response: aiohttp.ClientResponse) -> asyncio.Future[None] | None:
    """What is done when the connection of `response` is lost; None if it already is."""
    connection = response.connection
    protocol = None if connection is None else connection.protocol
    return None if protocol is None else protocol.closed


def _acknowledge(closed: asyncio.Future[None]) -> None:
    """Looks at how a connection was lost, or asyncio complains that nobody did."""
    if not closed.cancelled():
        closed.exception()


def _why_not_verified(error: aiohttp.ClientConnectorCertificateError) -> str:
    reason = error.certificate_error
    return (
        reason.verify_message if isinstance(reason, ssl.SSLCertVerificationError) else type(reason).__name__
    )
