"""One attempt over HTTP: a request out, its answer in. The one place that knows aiohttp, outside the simulator.

What goes wrong out there is data: `Endpoint.attempt` returns a `Failure` for whatever the network or the server does,
and raises only what is ours, cancellation first of all. What an answer means is not judged here but in
`formats.completions`; here it is made sure that there is one, whole, within the deadline and within bounds.

One session serves the run and is stripped of what a batch does not need and each request would pay for: cookies, proxy
variables, redirects, aiohttp's own timeouts and decompression. A proxy is one that the address names, found once.
"""

from __future__ import annotations

import asyncio
import io
import select
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from enum import Enum
from time import time
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace as AiohttpTrace
from yarl import URL

from batchkit.formats.completions import read_answer, read_request_id, text_body
from batchkit.formats.headers import EndpointAddress, attempt_headers
from batchkit.formats.proxies import Proxy
from batchkit.records import Answer, Failure, FailureKind, Request, Trace

__all__ = ["BODY_BYTES", "HEADER_FIELD_BYTES", "KEEPALIVE_S", "Endpoint"]

BODY_BYTES = 32 * 1024 * 1024
"""Longest answer that is read, after decompression."""

HEADER_FIELD_BYTES = 64 * 1024
"""Longest header of an answer; gateways do send tens of kilobytes."""

KEEPALIVE_S = 4.0
"""Idle connections are dropped this early because common gateways drop them at 5 or 6 s."""

_CONNECT_S = 30.0
"""A host that drops every packet says nothing for minutes; one that is there answers in a second."""

_DNS_TTL_S = 60
_LARGE_BODY_BYTES = 1024 * 1024
_STALL_S = 1.0
"""A timer that comes later than this found an event loop that stood still."""
_KEY_SHOWN = b"[key]"
_PROXY_AUTHENTICATION_REQUIRED = 407
_TLS_ERRORS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)
"""They are the endpoint's, also where a proxy leads to it."""


class Endpoint:
    """Sends the requests of one run to one address.

    An async context manager: connections live from entering to leaving. How many attempts are under way is up to the
    caller; `timeout` is for each, in seconds from its start to the last byte.
    """

    def __init__(self, address: EndpointAddress, *, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._url = URL(address.url)
        self._host = self._url.host or ""
        self._proxy = address.proxy
        self._session: aiohttp.ClientSession | None = None
        self.connected: Callable[[], None] = lambda: None
        """Called when a connection has come about, long before anything is answered over it."""

    async def __aenter__(self) -> Self:
        self._deadlines = _Deadlines(asyncio.get_running_loop(), self._timeout)
        proxy = self._proxy
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                connected=self._tell_connected,
                limit=0,
                keepalive_timeout=KEEPALIVE_S,
                ttl_dns_cache=_DNS_TTL_S,
                # The system's own resolver sees what every other program does: hosts file, VPN, mDNS.
                resolver=aiohttp.ThreadedResolver(),
            ),
            # A session's own headers would go to the proxy too, with a CONNECT, and keys are among them.
            headers=self._address.headers if proxy is None else None,
            proxy=None if proxy is None else proxy.url,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_S, sock_read=None),
            trust_env=False,
            auto_decompress=False,
            max_line_size=HEADER_FIELD_BYTES,
            max_field_size=HEADER_FIELD_BYTES,
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
        task = asyncio.current_task()
        assert task is not None
        _stage.set(_Stage.REUSED)
        # What asyncio.timeout does, for less: the deadline cancels the task, and whoever finds the cancellation to be the
        # deadline's alone turns it into an answer. An outer one, also at the same moment, leaves `cancelling` raised and
        # goes on its way.
        cancelling = task.cancelling()
        deadline = self._deadlines.start(task)
        try:
            return await self._exchange(self._session, request, trace)
        except asyncio.CancelledError:
            if not deadline.passed:
                raise
            deadline.passed = False
            if task.uncancel() > cancelling:
                raise
            return self._overdue()
        finally:
            self._deadlines.end(deadline)
            if deadline.passed:
                task.uncancel()

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
            return Failure(
                FailureKind.INVALID_REQUEST, "invalid_header", f"the request cannot be sent: {error}"
            )
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
        headers = self._headers(response)
        encoding = response.headers.get("Content-Encoding")
        pieces: list[bytes] = []
        try:
            await _read(response, pieces)
            body = b"".join(pieces)
            if encoding:
                body = _decompressed(body, encoding)
        except _TooLarge:
            return Failure(
                FailureKind.INVALID_RESPONSE,
                "response_too_large",
                f"{self._host} answered with more than {BODY_BYTES >> 20} MiB",
                status=response.status,
                request_id=read_request_id(headers),
                maybe_billed=True,
            )
        except (zlib.error, _UnknownEncoding):
            return Failure(
                FailureKind.INVALID_RESPONSE,
                "unreadable_encoding",
                f"{self._host} compressed its answer in a way that cannot be read",
                status=response.status,
                request_id=read_request_id(headers),
                maybe_billed=True,
            )
        except (aiohttp.ClientError, OSError, EOFError):
            return Failure(
                FailureKind.CONNECTION_ERROR,
                "answer_cut",
                f"{self._host} broke off in the middle of its answer (HTTP {response.status})",
                # What came of it was paid for.
                status=response.status if pieces and not encoding else None,
                request_id=read_request_id(headers),
                body=text_body(self._redacted(b"".join(pieces))) if pieces and not encoding else None,
                maybe_billed=True,
            )
        answer = read_answer(response.status, headers, self._redacted(body), time())
        if isinstance(answer, Failure):
            # A key may have been spelled with escapes until the words were read.
            code, message = (
                self._redacted(text.encode(errors="replace")).decode()
                for text in (answer.code, answer.message)
            )
            if (code, message) != (answer.code, answer.message):
                answer = replace(answer, code=code, message=message)
        return answer

    def _headers(self, response: aiohttp.ClientResponse) -> Mapping[str, str]:
        """Those of the answer, without our keys where it repeats them."""
        said = b"\n".join([value for _, value in response.raw_headers])
        if not any(secret in said for secret in self._address.secrets):
            return response.headers
        return {
            # The first of several counts, as in what aiohttp makes of them.
            name.lower().decode(errors="surrogateescape"): self._redacted(value).decode(
                errors="surrogateescape"
            )
            for name, value in reversed(response.raw_headers)
        }

    def _redacted(self, said: bytes) -> bytes:
        """What an answer says, with `[key]` where it repeats a key of ours: it goes into files that others read."""
        for secret in self._address.secrets:
            said = said.replace(secret, _KEY_SHOWN)
        return said

    def _overdue(self) -> Failure:
        if _stage.get() is _Stage.CONNECTING:
            by = "" if self._proxy is None else f" through the proxy {self._proxy.url}"
            return Failure(
                FailureKind.TIMEOUT,
                "timeout",
                f"no connection to {self._host}{by} within {self._timeout:g} s",
            )
        return Failure(
            FailureKind.TIMEOUT,
            "timeout",
            f"{self._host} gave no whole answer within {self._timeout:g} s",
            maybe_billed=True,
        )

    def _unanswered(self, error: Exception) -> Failure:
        """The failure of an attempt that brought no status. Says nothing of the error's own text, which may quote headers."""
        if (
            self._proxy is not None
            and _stage.get() is _Stage.CONNECTING
            and not isinstance(error, _TLS_ERRORS)
        ):
            return self._not_let_through(self._proxy, error)
        match error:
            case aiohttp.ClientConnectorCertificateError():
                return Failure(
                    FailureKind.MISDIRECTED,
                    "tls_not_verified",
                    f"the certificate of {self._host} does not verify: {_why_not_verified(error)}",
                )
            case aiohttp.ClientConnectorDNSError():
                return Failure(FailureKind.MISDIRECTED, "host_unknown", f"the name {self._host} is not known")
            case aiohttp.ClientConnectorSSLError():
                return Failure(
                    FailureKind.CONNECTION_ERROR,
                    "tls_failed",
                    f"no TLS connection to {self._host} came about",
                )
            case aiohttp.ConnectionTimeoutError():
                return Failure(
                    FailureKind.CONNECTION_ERROR,
                    "connection_error",
                    f"cannot connect to {self._host}: no answer within {_CONNECT_S:g} s",
                )
            case aiohttp.ClientConnectorError():
                reason = error.os_error.strerror or type(error.os_error).__name__
                return Failure(
                    FailureKind.CONNECTION_ERROR,
                    "connection_error",
                    f"cannot connect to {self._host}: {reason}",
                )
            case aiohttp.ClientResponseError():
                return Failure(
                    FailureKind.INVALID_RESPONSE,
                    "malformed_http",
                    f"{self._host} answered with what is no HTTP, or a header over {HEADER_FIELD_BYTES >> 10} KB",
                    maybe_billed=True,
                )
            case _:
                sent = _stage.get() is not _Stage.CONNECTING
                return Failure(
                    FailureKind.CONNECTION_ERROR,
                    "connection_error",
                    f"{self._host} closed the connection before it answered",
                    maybe_billed=sent,
                )

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
                message = f"no connection through the proxy {proxy.url} within {_CONNECT_S:g} s"
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
    """Tells an attempt its stage, and looks before a kept connection is used whether the server has left it.

    A server that has closed an idle connection is seen in the socket at once, but by the event loop only at its next
    turn; what is sent in between is lost, and nobody can tell afterwards whether it was read. Asking the socket costs
    a microsecond and makes that window as short as the way to the server. A loss within it is a plain connection error:
    to send again unasked would be to guess that nothing was billed.
    """

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
            if _stage.get() is not _Stage.REUSED or not _left_by_server(connection):
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


_POLL_LEFT = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def _left_by_server(connection: Connection) -> bool:
    transport = connection.transport
    sock: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), _POLL_LEFT)
    return bool(poll.poll(0))


class _Deadline:
    """When an attempt's time is up, in the loop's time, and whether it was the deadline that cancelled the task."""

    __slots__ = ("passed", "task", "when")

    def __init__(self, task: asyncio.Task[object], when: float) -> None:
        self.task = task
        self.when = when
        self.passed = False


class _Deadlines:
    """The deadlines of all attempts, under one timer: each is as long as the next, so they come due in order.

    A timer for each attempt would cost it some 10 µs on uvloop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._running: dict[_Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self, task: asyncio.Task[object]) -> _Deadline:
        """The deadline of an attempt that begins now in `task`."""
        deadline = _Deadline(task, self._loop.time() + self._timeout)
        self._running[deadline] = None
        if self._timer is None:
            self._set_timer(deadline.when)
        return deadline

    def end(self, deadline: _Deadline) -> None:
        """The attempt is over; its deadline cancels nothing any more."""
        self._running.pop(deadline, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now - self._due > _STALL_S:
            # The loop stood still (a slow disk, a machine asleep), and with it the reading of what has long arrived:
            # that comes first.
            self._set_timer(now + _STALL_S)
            return
        for deadline in list(self._running):
            if deadline.when > now:
                self._set_timer(deadline.when)
                return
            del self._running[deadline]
            deadline.passed = True
            deadline.task.cancel()

    def _set_timer(self, when: float) -> None:
        self._due = when
        self._timer = self._loop.call_at(when, self._sweep)


class _TooLarge(Exception):
    """The body passes the bound."""


class _UnknownEncoding(Exception):
    """The body is compressed in a way that was not asked for."""


async def _read(response: aiohttp.ClientResponse, pieces: list[bytes]) -> None:
    """The body as it travels, in `pieces` up to the bound; what came of one that is cut is in them too."""
    length = response.content_length
    if length is not None and length > BODY_BYTES:
        raise _TooLarge
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
            if size > BODY_BYTES:
                raise _TooLarge
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


_GZIP, _ZLIB, _DEFLATE = 31, 15, -15
"""The `wbits` of zlib's three framings."""


def _decompressed(body: bytes, encoding: str) -> bytes:
    """The body as it was before its Content-Encoding, up to the bound. Raises EOFError if it ends too early."""
    encoding = encoding.strip().lower()
    if encoding == "identity" or not body:
        return body
    if encoding in ("gzip", "x-gzip"):
        if body.startswith(b"{"):
            return body  # unpacked by a gateway that left the header standing
        framing = _GZIP
    elif encoding == "deflate":
        # Meant is zlib's framing, but some servers send none.
        framing = _ZLIB if body[0] & 0x0F == zlib.DEFLATED else _DEFLATE
    else:
        raise _UnknownEncoding
    inflater = zlib.decompressobj(framing)
    plain = inflater.decompress(body, BODY_BYTES + 1)
    if len(plain) > BODY_BYTES:
        raise _TooLarge
    if not inflater.eof:
        raise EOFError
    return plain


def _why_not_verified(error: aiohttp.ClientConnectorCertificateError) -> str:
    reason = error.certificate_error
    return (
        reason.verify_message if isinstance(reason, ssl.SSLCertVerificationError) else type(reason).__name__
    )
