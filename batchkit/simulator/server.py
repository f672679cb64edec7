"""The simulator's server: it carries requests to the rules beside it and their answers back, and counts.

One handler under aiohttp's low-level server, without a router, for speed. Nothing here grows with the number of
requests: what is kept is a handful of counters and the bodies that are being failed at the moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import orjson
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from batchkit.errors import UsageError
from batchkit.rules.tokens import count_prompt, count_text
from batchkit.simulator import wire
from batchkit.simulator.behaviour import Behaviour, Plan
from batchkit.simulator.limits import Limits, Refusal
from batchkit.simulator.settings import FaultKind, SimulatorSettings

__all__ = ["Simulator", "Stats"]

_LARGEST_BODY = 72 * 1024 * 1024
_LARGEST_HEADER = 64 * 1024
_BACKLOG = 4096
_MOST_FAILING = 100_000
"""Bodies whose faults are remembered; of more, the oldest are forgotten, and may suffer theirs again."""

_SERVER_ERROR = wire.error(
    "The server had an error while processing your request. Sorry about that!", "server_error"
)
_OVERLOADED = wire.error("The engine is currently overloaded, please try again later.", "service_unavailable")
_BUSY = Refusal("requests", "Rate limit reached on requests per min (RPM).", retry_after_s=1)
_PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"


@dataclass(slots=True)
class Stats:
    """What a simulator has counted: chat requests, and tokens billed for them.

    `received` is `answered` (with a good answer), `refused` (with a 4xx: limits, key, quota, no chat request),
    `faulted` (a fault that was asked for), what is in flight and what went away before its answer. `max_in_flight` is
    the most that were worked on at one moment.
    """

    received: int = 0
    answered: int = 0
    refused: int = 0
    faulted: int = 0
    billed_prompt_tokens: int = 0
    billed_completion_tokens: int = 0
    in_flight: int = 0
    max_in_flight: int = 0


class Simulator:
    """A provider inside the running event loop: `async with Simulator(settings) as simulator: simulator.base_url`.

    Entering takes a moment the first time in a process, for the tokenizer's tables. Raises `UsageError` where the
    address or the ledger cannot be had. Leaving ends all connections at once.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings if settings is not None else SimulatorSettings()
        self.stats = Stats()
        self.base_url = ""
        """The part before `/chat/completions`, known once it is entered."""
        self._behaviour = Behaviour(self.settings)
        self._limits = Limits(self.settings)
        self._billed = 0
        # Unlike any other simulator's, and cheaper than a random one for each request.
        prefix = uuid4().hex[:16]
        self._identifiers = (f"{prefix}{number:016x}" for number in count())
        self._failing: OrderedDict[bytes, int] = OrderedDict()
        self._closing = contextlib.AsyncExitStack()
        self._ledger: FileIO | None = None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as opened:
            if self.settings.ledger is not None:
                self._ledger = opened.enter_context(_open_ledger(self.settings.ledger))
            carrier = web.Server(
                self._handle,
                request_factory=_make_request,
                handler_cancellation=True,
                access_log=None,
                max_line_size=_LARGEST_HEADER,
                max_field_size=_LARGEST_HEADER,
            )
            opened.push_async_callback(carrier.shutdown, 0.01)
            try:
                server = await asyncio.get_running_loop().create_server(
                    carrier, self.settings.host, self.settings.port, backlog=_BACKLOG
                )
            except OSError as cause:
                raise UsageError(
                    f"The simulator cannot listen on {self.settings.host}, port {self.settings.port}: {cause}. "
                    "Choose another port, or 0 for any free one."
                ) from cause
            opened.callback(server.close)
            host, port = server.sockets[0].getsockname()[:2]
            self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
            # Now, not while the first request waits.
            count_text("The tokenizer reads its tables.")
            self._closing = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method == "POST" and path.endswith("/chat/completions"):
            self.stats.received += 1
            return await self._complete(request)
        if request.method == "GET" and path.endswith("/models"):
            return _json(200, wire.model_list())
        if request.method == "GET" and path == "/simulator/stats":
            return _json(200, orjson.dumps(asdict(self.stats)))
        message = f"Invalid URL ({request.method} {path})"
        return _json(404, wire.error(message, "invalid_request_error", code="unknown_url"))

    async def _complete(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        identifier = next(self._identifiers)
        headers = wire.portkey_headers(request.headers)
        headers["x-request-id"] = f"req_{identifier}"
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            message = "The request body is too large."
            return self._refuse(413, wire.error(message, "invalid_request_error"), headers)
        settings = self.settings
        if settings.refuse_key:
            refusal = wire.error(
                "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key"
            )
            return self._refuse(401, refusal, headers)
        try:
            asked = wire.read_request(body)
        except wire.InvalidRequest as cause:
            refusal = wire.error(str(cause), "invalid_request_error", param=cause.param)
            return self._refuse(400, refusal, headers)
        if settings.quota is not None and self._billed >= settings.quota:
            refusal = wire.error(
                "You exceeded your current quota, please check your plan and billing details.",
                "insufficient_quota",
                code="insufficient_quota",
            )
            return self._refuse(429, refusal, headers)
        prompt_tokens = count_prompt(asked.body).tokens
        most_tokens = prompt_tokens + asked.choices * (asked.max_tokens or round(settings.output_tokens))
        over = self._limits.admit(started, tokens=most_tokens, in_flight=self.stats.in_flight)
        headers.update(wire.rate_limit_headers(self._limits.standings(started)))
        if over is not None:
            return self._refuse(429, _rate_limited(over), headers | wire.retry_headers(over))

        # From here on it is worked on.
        identity = self._behaviour.identify(body)
        plan = self._behaviour.plan(identity, max_tokens=asked.max_tokens, choices=asked.choices)
        fault = self._fault(identity, plan)
        self.stats.in_flight += 1
        self.stats.max_in_flight = max(self.stats.max_in_flight, self.stats.in_flight)
        try:
            answered = fault is None or fault is FaultKind.CUT
            if answered:
                self._bill(request, body, fault, prompt_tokens, plan.completion_tokens)
            elif fault is FaultKind.EMPTY:
                self._bill(request, body, fault, prompt_tokens, 0)
            wait_s = settings.lived(plan.latency_s if answered else plan.first_token_s)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            headers["openai-processing-ms"] = str(round((time.monotonic() - started) * 1_000))
            if fault is not None and fault is not FaultKind.CUT:
                return await self._fail(request, fault, headers, asked.model, prompt_tokens)
            answer = wire.completion(
                identifier=identifier,
                created=int(time.time()),
                model=asked.model,
                prompt_tokens=prompt_tokens,
                choices=plan.choices,
            )
            if fault is FaultKind.CUT:
                return await _cut(request, answer, headers)
            self.stats.answered += 1
            return _json(200, answer, headers)
        finally:
            self.stats.in_flight -= 1

    def _fault(self, identity: bytes, plan: Plan) -> FaultKind | None:
        """The fault that this body suffers now, if any: its first `fault_times` attempts do, the next one does not."""
        if plan.fault is None:
            return None
        suffered = self._failing.pop(identity, 0)
        if suffered >= self.settings.fault_times:
            return None
        self._failing[identity] = suffered + 1
        if len(self._failing) > _MOST_FAILING:
            self._failing.popitem(last=False)
        self.stats.faulted += 1
        return plan.fault

    def _bill(
        self, request: web.BaseRequest, body: bytes, fault: FaultKind | None, prompt: int, completion: int
    ) -> None:
        """Charge for an answer, as work on it begins: a client that goes away later pays all the same."""
        self._billed += 1
        self.stats.billed_prompt_tokens += prompt
        self.stats.billed_completion_tokens += completion
        if self._ledger is not None:
            line = {
                "trace_id": request.headers.get("x-portkey-trace-id"),
                "client_request_id": request.headers.get("x-client-request-id"),
                "traceparent": request.headers.get("traceparent"),
                "body_sha256": hashlib.sha256(body).hexdigest(),
                "fault": fault,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
            }
            self._ledger.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def _refuse(self, status: int, body: bytes, headers: dict[str, str]) -> web.Response:
        self.stats.refused += 1
        return _json(status, body, headers)

    async def _fail(
        self,
        request: web.BaseRequest,
        fault: FaultKind,
        headers: dict[str, str],
        model: str,
        prompt_tokens: int,
    ) -> web.StreamResponse:
        match fault:
            case FaultKind.SERVER_ERROR:
                return _json(500, _SERVER_ERROR, headers)
            case FaultKind.UNAVAILABLE:
                return _json(503, _OVERLOADED, headers)
            case FaultKind.RATE_LIMITED:
                return _json(429, _rate_limited(_BUSY), headers | wire.retry_headers(_BUSY))
            case FaultKind.ERROR_200:
                return _json(200, _SERVER_ERROR, headers)
            case FaultKind.EMPTY:
                answer = wire.completion(
                    identifier=next(self._identifiers),
                    created=int(time.time()),
                    model=model,
                    prompt_tokens=prompt_tokens,
                    choices=(),
                )
                return _json(200, answer, headers)
            case FaultKind.HTML:
                return web.Response(body=_PAGE, headers=headers, content_type="text/html", charset="utf-8")
            case FaultKind.RESET:
                _reset(request)
        return await _never()


def _make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: Any,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST_BODY)


def _open_ledger(path: str) -> FileIO:
    try:
        # Unbuffered: a line is in the file before its answer is on the way, whoever is killed next.
        return Path(path).open("ab", buffering=0)
    except OSError as cause:
        raise UsageError(f"The ledger cannot be written: {cause}.") from cause


def _json(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def _rate_limited(refusal: Refusal) -> bytes:
    return wire.error(refusal.message, refusal.limit, code="rate_limit_exceeded")


def _reset(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is not None:
        # Lingering for 0 seconds is how a close is made a reset.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        transport.abort()


async def _cut(request: web.BaseRequest, answer: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={**headers, "content-type": "application/json"})
    response.content_length = len(answer)
    await response.prepare(request)
    await response.write(answer[: len(answer) // 2])
    if request.transport is not None:
        request.transport.close()
    return await _never()


async def _never() -> web.StreamResponse:
    """Wait until the connection ends, which cancels whoever waits here."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError  # the future is never set
