"""One attempt over HTTP: a request out, its answer in. There are two ways out, and a caller need not know which it has.

What goes wrong out there is data: `Endpoint.attempt` returns a `Failure` for whatever the network or the server does,
and raises only what is ours, cancellation first of all. What an answer means is not judged here but in
`formats.completions`; here it is made sure that there is one, whole, within the deadline and within bounds.

`http1` speaks HTTP/1.1 itself, straight to the endpoint, and costs a fraction of a general client; `session` is aiohttp,
which also finds its way through a proxy. Both use the same deadlines, the same decoding and the same words for what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from batchkit.endpoint.bounds import BODY_BYTES, HEADER_FIELD_BYTES, KEEPALIVE_S
from batchkit.endpoint.http1 import Http1Endpoint
from batchkit.endpoint.room import Room
from batchkit.formats.headers import EndpointAddress
from batchkit.records import Answer, Request, Trace

__all__ = ["BODY_BYTES", "HEADER_FIELD_BYTES", "KEEPALIVE_S", "Endpoint", "Room", "open_endpoint"]


class Endpoint(Protocol):
    """Sends the requests of one run to one address.

    An async context manager: connections live from entering to leaving. How many attempts are under way is up to the
    caller. An attempt's time runs from its start to the last byte of the answer.
    """

    connected: Callable[[], None]
    """Called when a connection has come about, long before anything is answered over it."""
    sending: Callable[[], Room | None]
    """Called before requests are sent, once for all that leave together. None lets them; a `Room` is waited for first."""

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        """One HTTP call for `request`. The answer is `Failure` for all that the network or the server does wrong."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_endpoint(address: EndpointAddress, *, timeout: float) -> Endpoint:
    """The endpoint at `address`, to be entered; `timeout` is for each attempt, in seconds."""
    if address.proxy is not None:
        # Seldom needed, and slow to import.
        from batchkit.endpoint.session import SessionEndpoint  # noqa: PLC0415

        return SessionEndpoint(address, timeout=timeout)
    return Http1Endpoint(address, timeout=timeout)
