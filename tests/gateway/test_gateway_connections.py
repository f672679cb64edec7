"""How far the gateway's HTTP goes: headers it takes, connections it keeps."""

import socket
import time
from dataclasses import replace

import pytest

from batchkit.endpoint import KEEPALIVE_S, open_endpoint
from batchkit.formats.headers import HEADER_BYTES, attempt_headers
from batchkit.records import FailureKind, PortkeyFields, Reply, Request, Trace

BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"What is 1?"}]}'
TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
LONGEST_S = 10


def fits(address, fields):
    try:
        attempt_headers(address, fields, TRACE)
    except ValueError:
        return False
    return True


async def ask(address, fields=None):
    async with open_endpoint(address, timeout=LONGEST_S) as endpoint:
        return await endpoint.attempt(Request(0, "a", BODY, portkey=fields), TRACE)


async def test_the_longest_headers_that_batchkit_sends_get_through(address, record):
    upstream = record()
    named = [PortkeyFields(span_name="s" * size) for size in range(HEADER_BYTES)]
    longest = next(fields for fields in reversed(named) if fits(address(upstream), fields))
    assert len(longest.span_name) > HEADER_BYTES - 1024
    assert isinstance(await ask(address(upstream), longest), Reply)

    longer = PortkeyFields(span_name=longest.span_name + "s")
    refused = await ask(address(upstream), longer)
    assert refused.code == "invalid_header"
    assert len(upstream.received) == 1


async def test_431_for_headers_that_are_too_long_is_a_failure_for_good(address, record):
    upstream = record()
    crowded = address(upstream)
    crowded = replace(crowded, headers={**crowded.headers, "x-long": "x" * 16 * 1024})
    failure = await ask(crowded)
    assert (failure.status, failure.kind) == (431, FailureKind.INVALID_REQUEST)
    assert not upstream.received


def connected(gateway):
    """A connection that has had one answer and is idle from now on, with the head of that answer."""
    connection = socket.create_connection(("127.0.0.1", gateway.port), LONGEST_S)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    received = b""
    while b"AI Gateway" not in received:
        received += connection.recv(4096)
    return connection, received.lower()


def test_idle_connections_are_given_up_before_the_gateway_says_it_will(gateway):
    connection, head = connected(gateway)
    with connection:
        assert b"keep-alive: timeout=5\r\n" in head
    assert KEEPALIVE_S < 5


@pytest.mark.slow
def test_idle_connections_are_given_up_before_the_gateway_closes_them(gateway):
    connection, _ = connected(gateway)
    with connection:
        idle_since = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - idle_since > KEEPALIVE_S
