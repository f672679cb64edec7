"""What only the endpoint that speaks HTTP itself has to get right: where the bytes of an answer begin and end."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache
from itertools import pairwise
from typing import Any

import orjson
import pytest
import uvloop
from hypothesis import given, strategies as st
from scripted_server import CHUNKED, ScriptedServer, Sends, hanging, http, silent_host, then_closing

from batchkit.endpoint import bounds, http1
from batchkit.endpoint.connection import Connection
from batchkit.endpoint.deadlines import Ending
from batchkit.endpoint.http1 import Http1Endpoint
from batchkit.endpoint.judging import Head
from batchkit.endpoint.pool import Pool
from batchkit.endpoint.reading import End
from batchkit.endpoint.silence import is_silent
from batchkit.formats.headers import endpoint_address
from batchkit.records import Answer, Failure, FailureKind as Kind, Reply, Request, Trace, Usage

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
REQUEST = Request(0, "a", b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]}')
GOOD = orjson.dumps(
    {
        "model": "m",
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
)
LARGE = Request(0, "a", b'{"messages":"' + bytes(8 * 1024 * 1024) + b'"}')


def reply(status: int = 200, request_id: str = "") -> Reply:
    return Reply(status, request_id, GOOD, "m", Usage(3, 2, 5), "stop")


def endpoint_at(url: str, timeout: float = 10.0, **words: Any) -> Http1Endpoint:
    return Http1Endpoint(endpoint_address(url, version="0", timeout=timeout, **words), timeout=timeout)


async def ask(*script: Sends, times: int = 1, timeout: float = 10.0) -> tuple[list[Answer], int]:
    """So many attempts one after the other, and how many connections they took."""
    server = ScriptedServer(*script)
    async with server.listening() as url, endpoint_at(url, timeout) as endpoint:
        return [await endpoint.attempt(REQUEST, TRACE) for _ in range(times)], server.connections


@asynccontextmanager
async def accepting(
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The base URL of a server that does this with each connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await accept(reader, writer)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks)


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


# --- an answer in pieces -------------------------------------------------------------------------------------------


class _Ear(asyncio.Transport):
    """Nothing but what a connection asks of its transport."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


@cache
def _endpoint() -> Http1Endpoint:
    return endpoint_at("http://127.0.0.1/v1")


def heard(pieces: list[bytes], *, leaves: bool) -> tuple[Answer | None, bool]:
    """What an answer in these pieces comes to, None while more is waited for; and whether its connection is kept."""
    loop = asyncio.new_event_loop()
    try:
        pool = Pool(loop, _endpoint()._judged)
        connection = Connection(loop, pool)
        transport = _Ear()
        connection.connection_made(transport)
        waiter = connection.exchange(b"", b"")
        connection.send(set())
        for piece in pieces:
            if not transport.closing:
                connection.data_received(piece)
        if leaves and not transport.closing:
            connection.eof_received()
        pool._tell()
        return (waiter.result() if waiter.done() else None), connection.reusable
    finally:
        loop.close()


INTERIM = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nx-request-id: no\r\n\r\n"
)
PLAIN = http(200, GOOD, "x-request-id: r-1", "x-empty:", "x-request-id: r-2")
IN_CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-request-id: r-1\r\n\r\n"
    + chunked(GOOD, 7)
    + b"0\r\nx-request-id: no\r\nx-trailer: t\r\n\r\n"
)
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\nx-request-id: r-1\r\n\r\n" + GOOD
STREAMS = {
    "plain": (PLAIN, False, reply(request_id="r-1"), True),
    "in chunks, with trailers": (IN_CHUNKS, False, reply(request_id="r-1"), True),
    "after interim answers": (INTERIM + PLAIN, False, reply(request_id="r-1"), True),
    "to the end of the connection": (UNTIL_THE_END, True, reply(request_id="r-1"), False),
    "of an old server": (PLAIN.replace(b"1.1", b"1.0"), False, reply(request_id="r-1"), False),
    "with its last word": (
        http(200, GOOD, "x-request-id: r-1", "Connection: close"),
        False,
        reply(request_id="r-1"),
        False,
    ),
    "with folded headers and bare line feeds": (
        b"HTTP/1.1 200 OK\nx-other: one\n two\nx-request-id: r-1\nContent-Length: %d\n\n%b"
        % (len(GOOD), GOOD),
        False,
        reply(request_id="r-1"),
        True,
    ),
    "with more behind it": (PLAIN + PLAIN, False, reply(request_id="r-1"), False),
    "with rubbish behind it": (IN_CHUNKS + b"rubbish", False, reply(request_id="r-1"), False),
}


@pytest.mark.parametrize(("stream", "leaves", "answer", "kept"), STREAMS.values(), ids=STREAMS)
def test_an_answer_is_the_same_wherever_it_is_cut_in_two(stream, leaves, answer, kept):
    for at in range(len(stream) + 1):
        pieces = [piece for piece in (stream[:at], stream[at:]) if piece]
        assert heard(pieces, leaves=leaves) == (answer, kept), at


@pytest.mark.parametrize(("stream", "leaves", "answer", "kept"), STREAMS.values(), ids=STREAMS)
@given(data=st.data())
def test_an_answer_is_the_same_in_any_pieces(stream, leaves, answer, kept, data):
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=40))
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges) if end > start]
    assert heard(pieces, leaves=leaves) == (answer, kept)


def test_an_answer_byte_by_byte_is_the_same():
    for stream, leaves, answer, kept in STREAMS.values():
        assert heard([bytes([byte]) for byte in stream], leaves=leaves) == (answer, kept)


def test_a_chunked_answer_that_ends_at_any_byte_too_early_is_a_loss_that_keeps_what_came():
    head = IN_CHUNKS.index(b"\r\n\r\n") + 4
    for at in range(len(IN_CHUNKS)):
        assert heard([IN_CHUNKS[:at]], leaves=False) == (None, False)
        answer, kept = heard([IN_CHUNKS[:at]], leaves=True)
        assert isinstance(answer, Failure)
        assert answer.code == ("connection_error" if at < head else "answer_cut")
        assert (answer.kind, answer.maybe_billed, kept) == (Kind.CONNECTION_ERROR, True, False)
        assert (answer.body is not None) == (answer.status == 200)
        if answer.body is not None:
            assert GOOD.startswith(orjson.loads(answer.body).encode())


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", CHUNKED, b"HTTP/1.1 200 OK\r\n", UNTIL_THE_END]),
    st.booleans(),
)
def test_no_bytes_at_all_are_more_than_an_answer(rubbish, begun, leaves):
    answer, _ = heard([begun + rubbish], leaves=leaves)
    assert isinstance(answer, Reply | Failure | None)
    assert answer is not None or not leaves


REFUSED = {
    "a length beside chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"0\r\n\r\n",
    "two lengths": http(200, GOOD, f"Content-Length: {len(GOOD)}"),
    "two lengths in one": http(200, GOOD).replace(b"Length: ", b"Length: 1, "),
    "a negative length": http(200, GOOD, length=-1),
    "a length beyond counting": http(200, GOOD, length=10**30),
    "a zero byte in a header": http(200, GOOD, "x-zero: a\0b"),
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "another protocol": b"HTTP/3.7 200 OK\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 300_000,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 40_000,
    "interim answers without end": INTERIM * 4_000,
}


@pytest.mark.parametrize("stream", REFUSED.values(), ids=REFUSED)
def test_what_can_be_read_in_two_ways_or_in_none_is_not_read(stream):
    pieces = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    answer, kept = heard(pieces, leaves=False)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, kept) == (Kind.INVALID_RESPONSE, "malformed_http", False)


def test_a_trailer_without_end_is_cut_off_at_the_bound(monkeypatch):
    monkeypatch.setattr(bounds, "BODY_BYTES", 100_000)
    answer, kept = heard([IN_CHUNKS[:-2] + b"x-long: ", *[b"x" * 50_000] * 10], leaves=False)
    assert isinstance(answer, Failure)
    assert (answer.code, kept) == ("response_too_large", False)


def test_header_bytes_that_are_no_text_do_no_harm():
    sent = b"HTTP/1.1 200 OK\r\nx-odd: \xff\xfe\r\nx-request-id: r\xff\r\nContent-Length: %d\r\n\r\n%b"
    answer, kept = heard([sent % (len(GOOD), GOOD)], leaves=False)
    assert (answer, kept) == (reply(request_id="r?"), True)


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none_whatever_its_headers_say(status):
    answer, kept = heard([b"HTTP/1.1 %d No\r\nContent-Length: 99\r\n\r\n" % status], leaves=False)
    assert isinstance(answer, Failure)
    assert (answer.status, kept) == (status, True)


def test_a_protocol_that_nobody_asked_for_is_an_answer_and_the_end():
    sent = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nrubbish"
    answer, kept = heard([sent], leaves=False)
    assert isinstance(answer, Failure)
    assert (answer.status, kept) == (101, False)


def test_the_encoding_is_unpacked_behind_the_chunks():
    packed = gzip.compress(GOOD)
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    assert heard([head + chunked(packed, 3) + b"0\r\n\r\n"], leaves=False) == (reply(), True)


# --- connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "connections"),
    [
        (http(200, GOOD), 1),
        (CHUNKED + chunked(GOOD, 99) + b"0\r\n\r\n", 1),
        (http(429), 1),
        (http(200, GOOD, "Connection: close"), 3),
        (http(200, GOOD).replace(b"1.1", b"1.0"), 3),
        (http(200, GOOD, "Connection: keep-alive").replace(b"1.1", b"1.0"), 1),
        (http(200, GOOD) + http(200, b"never asked for"), 3),
        (then_closing(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD), 3),
    ],
)
async def test_a_connection_is_kept_after_a_whole_answer_and_silence(sent, connections):
    answers, taken = await ask(sent, times=3)
    assert len(set(map(repr, answers))) == 1
    assert taken == connections


async def test_a_server_that_speaks_unasked_is_not_asked_again():
    """What comes between two requests would be taken for the answer to the second."""
    said = asyncio.Event()

    async def answering_twice(writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, GOOD))
        await writer.drain()
        await asyncio.sleep(0)
        await said.wait()
        writer.write(http(408, b"you were idle"))
        await writer.drain()

    server = ScriptedServer(answering_twice, http(200, GOOD, "x-request-id: second"))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
        (connection,) = endpoint._pool._idle
        said.set()
        while connection in endpoint._pool._idle:
            await asyncio.sleep(0)
        assert await endpoint.attempt(REQUEST, TRACE) == reply(request_id="second")
    assert server.connections == 2


async def test_what_waits_in_the_socket_unread_is_noticed_before_the_next_request():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
        (connection,) = endpoint._pool._idle
        assert is_silent(connection.fileno)
        (task,) = server._tasks
        task.cancel()  # closes the connection, on the server's side
        while is_silent(connection.fileno):
            await asyncio.sleep(0)
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
    assert server.connections == 2


def all_stirred(connections: Iterable[int]) -> set[int]:
    """Something stands to be read in every socket that is asked."""
    return set(connections)


async def test_a_server_that_leaves_before_a_request_is_written_gets_it_over_a_new_connection(monkeypatch):
    """What is sent in a turn of the event loop leaves at its end, and until then the server may have left."""
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(2)))
        monkeypatch.setattr("batchkit.endpoint.pool.stirred", all_stirred)
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
        assert not endpoint._pool._open - set(endpoint._pool._idle)
    assert server.connections == 3


async def test_of_many_that_leave_together_those_are_sent_anew_that_the_server_has_left():
    """It leaves when the requests are handed over, and they are written in that very turn of the event loop."""
    many = 40
    at_the_server: list[socket.socket] = []

    async def answering(writer: asyncio.StreamWriter) -> None:
        at_the_server.append(writer.get_extra_info("socket"))
        writer.write(http(200, GOOD))

    def leave_some() -> None:
        while left:
            left.pop().shutdown(socket.SHUT_WR)

    server = ScriptedServer(answering)
    async with server.listening() as url, endpoint_at(url) as endpoint:
        await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(many)))
        assert server.connections == many
        left = at_the_server[::3]
        anew = len(left)
        endpoint.sending = leave_some
        answers = await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(many)))
    assert answers == [reply()] * many
    assert server.received == 2 * many
    assert server.connections == many + anew


async def test_an_error_of_ours_while_an_answer_is_judged_is_raised_by_its_own_attempt_alone(monkeypatch):
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        whole, judged = endpoint._judge.whole, 0

        def failing_once(head: Head, body: bytes) -> Answer:
            nonlocal judged
            judged += 1
            return whole(head, body) if judged != 2 else 1 // 0

        monkeypatch.setattr(endpoint._judge, "whole", failing_once)
        tasks = [asyncio.create_task(endpoint.attempt(REQUEST, TRACE)) for _ in range(3)]
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(isinstance(answer, ZeroDivisionError) for answer in answers) == [False, False, True]
        assert answers.count(reply()) == 2
        assert not endpoint._deadlines._running


async def test_a_second_try_has_what_the_first_left_of_the_time(monkeypatch):
    server = ScriptedServer(http(200, GOOD), hanging)
    async with server.listening() as url, endpoint_at(url) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
        monkeypatch.setattr("batchkit.endpoint.pool.stirred", all_stirred)
        dues: list[float] = []
        start = endpoint._deadlines.start

        def started(ending: Ending, due: float) -> None:
            dues.append(due)
            start(ending, due)

        monkeypatch.setattr(endpoint._deadlines, "start", started)
        task = asyncio.create_task(endpoint.attempt(REQUEST, TRACE))
        while len(server.heads) < 2:
            await asyncio.sleep(0)
        assert len(endpoint._deadlines._running) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(dues) == 3  # on the kept connection, on the way to a new one, on that
    assert len(set(dues)) == 1


async def test_the_time_it_takes_until_a_connection_may_be_opened_counts(monkeypatch):
    monkeypatch.setattr(http1, "_CONNECTING_AT_ONCE", 0)
    async with endpoint_at("http://127.0.0.1:1/v1", timeout=0.01) as endpoint:
        answer = await endpoint.attempt(REQUEST, TRACE)
        assert not endpoint._deadlines._running
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.maybe_billed) == (Kind.TIMEOUT, False)
    assert answer.message == "no connection to 127.0.0.1 within 0.01 s"


async def test_what_is_overdue_before_it_has_left_is_not_sent():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == reply()

        def come_due() -> None:
            (ending,) = endpoint._deadlines._running
            ending.overdue()

        asyncio.get_running_loop().call_soon(come_due)
        answer = await endpoint.attempt(REQUEST, TRACE)
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
    assert isinstance(answer, Failure)
    assert answer.kind is Kind.TIMEOUT
    assert (len(server.heads), server.connections) == (2, 2)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]], ids=["one", "two"])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_attempt_that_is_given_up_at_any_moment_of_connecting_leaves_nothing_to_wait_for(
    new_loop, addresses, monkeypatch
):
    async def scene() -> None:
        server = ScriptedServer(http(200, GOOD))
        async with asyncio.timeout(30), server.listening() as url:
            answers_of_getaddrinfo(monkeypatch, *addresses)
            for turns in range(1, 20):
                async with endpoint_at(url.replace("127.0.0.1", "model.example")) as endpoint:
                    attempts = [asyncio.ensure_future(endpoint.attempt(REQUEST, TRACE)) for _ in range(3)]
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    for attempt in attempts:
                        attempt.cancel()
                    await asyncio.wait(attempts)
                assert not endpoint._pool._open

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_attempt_that_is_given_up_as_its_connection_comes_about_leaves_nothing_to_wait_for(
    new_loop, monkeypatch
):
    made = Connection.connection_made

    async def scene() -> None:
        server = ScriptedServer(http(200, GOOD))
        async with asyncio.timeout(30), server.listening() as url, endpoint_at(url) as endpoint:
            attempt = asyncio.ensure_future(endpoint.attempt(REQUEST, TRACE))

            def connection_made(connection, transport) -> None:
                made(connection, transport)
                attempt.cancel()

            monkeypatch.setattr(Connection, "connection_made", connection_made)
            with pytest.raises(asyncio.CancelledError):
                await attempt

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())


async def test_a_server_that_speaks_first_is_not_sent_anything():
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()

    async with accepting(greet) as url, endpoint_at(url) as endpoint:
        answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert answer.kind in (Kind.CONNECTION_ERROR, Kind.INVALID_RESPONSE)


async def test_idle_connections_are_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(bounds, "KEEPALIVE_S", 0.01)
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(3)))
        while endpoint._pool._open:
            await asyncio.sleep(0)
        assert not endpoint._pool._idle
        assert endpoint._pool._sweeper is None


async def test_a_connection_that_was_idle_for_too_long_is_not_used_though_nobody_has_closed_it_yet(
    monkeypatch,
):
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        for _ in range(2):
            assert await endpoint.attempt(REQUEST, TRACE) == reply()
        assert server.connections == 1
        (connection,) = endpoint._pool._idle
        endpoint._pool._idle[connection] -= bounds.KEEPALIVE_S + 1
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
    assert server.connections == 2


async def test_an_idle_connection_holds_nothing_of_its_last_answer():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
        (kept,), (reader,) = endpoint._pool._idle, endpoint._pool.readers
        assert kept.reader is None
        assert (reader.head, reader.body()) == (None, b"")


async def test_an_attempt_that_is_cancelled_takes_its_connection_with_it():
    server = ScriptedServer(hanging)
    async with server.listening() as url, endpoint_at(url) as endpoint:
        task = asyncio.create_task(endpoint.attempt(REQUEST, TRACE))
        while not server.heads:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while endpoint._pool._open:
            await asyncio.sleep(0)
        assert not endpoint._pool._idle
        assert not endpoint._deadlines._running


async def test_what_all_attempts_of_a_turn_send_leaves_together_and_only_if_it_is_still_wanted():
    loop = asyncio.get_running_loop()
    connections = [Connection(loop, pool) for pool in [Pool(loop, _endpoint()._judged)] * 4]
    ears = [_Ear() for _ in connections]
    for connection, ear in zip(connections, ears, strict=True):
        connection.connection_made(ear)
        connection.exchange(b"head;", b"body")
    first, given_up, left, asked_nothing = connections
    given_up.abort()
    ears[2].closing = True
    asked_nothing.data_received(PLAIN)
    assert [ear.written for ear in ears] == [b""] * 4
    await asyncio.sleep(0)
    assert [ear.written for ear in ears] == [b"head;body", b"", b"", b""]
    assert [connection.sent for connection in connections] == [True, False, False, False]
    assert (left.end, asked_nothing.end) == (End.LOST, End.LOST)
    assert not first.reusable


async def test_leaving_while_an_attempt_is_under_way_ends_it():
    server = ScriptedServer(hanging)
    async with server.listening() as url:
        async with endpoint_at(url) as endpoint:
            task = asyncio.create_task(endpoint.attempt(REQUEST, TRACE))
            while not server.heads:
                await asyncio.sleep(0)
        answer = await task
    assert isinstance(answer, Failure)
    assert answer.code == "connection_error"


async def test_a_connection_that_comes_about_after_leaving_carries_nothing(monkeypatch):
    """The way there takes until the endpoint is left."""
    loop, way = asyncio.get_running_loop(), asyncio.Event()
    connect = loop.create_connection

    async def delayed(*words: Any, **named: Any) -> Any:
        await way.wait()
        return await connect(*words, **named)

    monkeypatch.setattr(loop, "create_connection", delayed)
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url:
        async with endpoint_at(url) as endpoint:
            task = asyncio.create_task(endpoint.attempt(REQUEST, TRACE))
            while not endpoint._connector._addresses._known:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        way.set()
        answer = await task
        while endpoint._pool._open:
            await asyncio.sleep(0)
    assert isinstance(answer, Failure)
    assert (answer.code, answer.maybe_billed) == ("connection_error", False)
    assert server.heads == []


# --- requests ------------------------------------------------------------------------------------------------------


async def test_a_body_of_64_mebibytes_passes():
    server = ScriptedServer(http(200, GOOD))
    body = b'{"messages":"' + bytes(64 * 1024 * 1024) + b'"}'
    async with server.listening() as url, endpoint_at(url, 60.0) as endpoint:
        for _ in range(2):
            assert await endpoint.attempt(Request(0, "a", body), TRACE) == reply()
        assert server.bodies[0] == server.bodies[1] == body
    assert server.connections == 1


async def refusing_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(http(413, b'{"error":{"message":"too large","code":"request_too_large"}}'))
    await writer.drain()
    writer.write_eof()
    while await reader.read(1 << 20):
        pass
    writer.close()


async def test_an_answer_that_comes_before_the_request_is_all_written_counts_and_ends_the_connection():
    connections = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await refusing_early(reader, writer)

    async with accepting(accept) as url, endpoint_at(url) as endpoint:
        answers = [await endpoint.attempt(LARGE, TRACE) for _ in range(2)]
    for answer in answers:
        assert isinstance(answer, Failure)
        assert (answer.status, answer.code) == (413, "request_too_large")
    assert connections == 2


async def test_a_server_that_stops_reading_and_leaves_is_a_connection_error():
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async with accepting(accept) as url, endpoint_at(url) as endpoint:
        answer = await endpoint.attempt(LARGE, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.maybe_billed) == (Kind.CONNECTION_ERROR, True)


async def test_a_deadline_in_the_middle_of_a_large_body_leaves_nothing_behind():
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        await asyncio.get_running_loop().create_future()

    async with accepting(accept) as url, endpoint_at(url, 0.1) as endpoint:
        answer = await endpoint.attempt(LARGE, TRACE)
        while endpoint._pool._open:
            await asyncio.sleep(0)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.maybe_billed) == (Kind.TIMEOUT, True)


# --- the way there -------------------------------------------------------------------------------------------------


def answers_of_getaddrinfo(monkeypatch, *addresses: str) -> list[str]:
    """Any name that is asked for has these addresses; the names that were asked for."""
    asked: list[str] = []
    looked_up = asyncio.get_running_loop().getaddrinfo

    async def getaddrinfo(host: str, port: int, **words: Any) -> list[Any]:
        if host in addresses:
            return await looked_up(host, port, **words)
        asked.append(host)
        await asyncio.sleep(0)
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (each, port))
            for family, each in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_one_lookup_serves_all_who_wait_for_it_and_those_who_come_later(monkeypatch):
    server = ScriptedServer(http(200, GOOD, "Connection: close"))
    async with server.listening() as url:
        asked = answers_of_getaddrinfo(monkeypatch, "127.0.0.1")
        async with endpoint_at(url.replace("127.0.0.1", "model.example")) as endpoint:
            for _ in range(2):
                answers = await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(5)))
                assert answers == [reply()] * 5
            assert server.headers["host"].startswith("model.example:")
            endpoint._connector._addresses._known_until = 0.0
            await endpoint.attempt(REQUEST, TRACE)
    assert asked == ["model.example"] * 2
    assert server.connections == 11


async def test_who_waits_to_connect_takes_a_connection_that_has_become_idle(monkeypatch):
    monkeypatch.setattr(http1, "_CONNECTING_AT_ONCE", 1)
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, endpoint_at(url) as endpoint:
        answers = await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(50)))
    assert answers == [reply()] * 50
    assert server.connections < 50


async def test_an_address_where_nobody_is_gives_way_to_the_next(monkeypatch):
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url:
        answers_of_getaddrinfo(monkeypatch, "127.0.0.2", "127.0.0.1")
        async with endpoint_at(url.replace("127.0.0.1", "model.example")) as endpoint:
            assert await endpoint.attempt(REQUEST, TRACE) == reply()


async def test_a_lookup_goes_on_for_the_others_when_one_gives_up(monkeypatch):
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url:
        answers_of_getaddrinfo(monkeypatch, "127.0.0.1")
        async with endpoint_at(url.replace("127.0.0.1", "model.example")) as endpoint:
            tasks = [asyncio.create_task(endpoint.attempt(REQUEST, TRACE)) for _ in range(2)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            assert await tasks[1] == reply()


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]], ids=["one", "two"])
async def test_a_host_that_says_nothing_is_given_up_before_the_deadline(addresses, monkeypatch):
    monkeypatch.setattr(bounds, "CONNECT_S", 0.01)
    answers_of_getaddrinfo(monkeypatch, *addresses)
    with silent_host() as url:
        async with endpoint_at(url.replace("127.0.0.1", "model.example")) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.code, answer.maybe_billed) == ("connection_error", False)
    assert answer.message == "cannot connect to model.example: no answer within 0.01 s"


async def test_the_address_may_be_one_of_ipv6():
    server = ScriptedServer(http(200, GOOD))
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 on this machine")
    async with server.listening(host="::1") as url, endpoint_at(url) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == reply()
    host = url.removeprefix("http://").removesuffix("/v1")
    assert host.startswith("[::1]:")
    assert server.headers["host"] == host


@pytest.mark.parametrize("body", [REQUEST.body, LARGE.body], ids=["small", "large"])
async def test_over_tls_connections_are_kept_and_the_name_is_told(certified, body, monkeypatch):
    told: list[str | None] = []
    certified.sni_callback = lambda _, name, __: told.append(name)
    server = ScriptedServer(http(200, GOOD))
    async with server.listening(tls=certified) as url:
        answers_of_getaddrinfo(monkeypatch, "127.0.0.1")
        async with endpoint_at(url.replace("127.0.0.1", "localhost")) as endpoint:
            for _ in range(3):
                assert await endpoint.attempt(Request(0, "a", body), TRACE) == reply()
    assert server.bodies == [body] * 3
    assert (server.connections, told) == (1, ["localhost"])


async def test_over_tls_another_name_than_the_certificates_gets_no_request(certified, monkeypatch):
    server = ScriptedServer(http(200, GOOD))
    async with server.listening(tls=certified) as url:
        answers_of_getaddrinfo(monkeypatch, "127.0.0.1")
        async with endpoint_at(url.replace("127.0.0.1", "other.example")) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code) == (Kind.MISDIRECTED, "tls_not_verified")
    assert "other.example" in answer.message
    assert server.heads == []


async def test_over_tls_a_server_that_leaves_is_noticed(certified):
    server = ScriptedServer(then_closing(http(200, GOOD)))
    async with server.listening(tls=certified) as url, endpoint_at(url) as endpoint:
        for _ in range(5):
            assert await endpoint.attempt(REQUEST, TRACE) == reply()
    assert server.connections == 5


@pytest.fixture
def certified(certificate, monkeypatch) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for localhost and 127.0.0.1 that verifies."""
    folder = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context
