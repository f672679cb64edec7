"""Either kind of endpoint does all of this. Every answer here is really sent, byte by byte, by a server on loopback."""

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from time import time

import orjson
import pytest
from scripted_server import (
    CHUNKED,
    ScriptedServer,
    Sends,
    dripping,
    hanging,
    http,
    resetting,
    silent_host,
    then_closing,
)

from batchkit.endpoint import BODY_BYTES, bounds
from batchkit.endpoint.http1 import Http1Endpoint
from batchkit.endpoint.session import SessionEndpoint
from batchkit.formats.headers import EndpointAddress, endpoint_address
from batchkit.records import Answer, Failure, FailureKind as Kind, PortkeyFields, Reply, Request, Trace, Usage

CANARY = "sk-canary-0123456789abcdef"
TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
REQUEST = Request(0, "a", b'{"model":"gpt-4o","messages":[{"role":"user","content":"h\xc3\xa9"}]}')
GOOD = orjson.dumps(
    {
        "id": "c-1",
        "model": "gpt-4o-2024",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
)
GOOD_REPLY = Reply(200, "", GOOD, "gpt-4o-2024", Usage(3, 2, 5), "stop")


Endpoint: type[Http1Endpoint | SessionEndpoint] = Http1Endpoint
"""Each test is run with the one and with the other."""


@pytest.fixture(params=[Http1Endpoint, SessionEndpoint], ids=["http1", "session"], autouse=True)
def kind(request, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Endpoint", request.param)


async def breaking_a_chunk(writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED + b"5\r\n{    \r\n")
    for _ in range(20):
        await asyncio.sleep(0)  # the client reads that much
    writer.write(b"not hex\r\n")


def plain_address(base_url: str) -> EndpointAddress:
    return endpoint_address(base_url, version="0", timeout=10)


async def ask(*script: Sends, timeout: float = 10, request: Request = REQUEST) -> Answer:
    """One attempt at a server of that script."""
    async with (
        ScriptedServer(*script).listening() as url,
        Endpoint(plain_address(url), timeout=timeout) as endpoint,
    ):
        return await endpoint.attempt(request, TRACE)


# --- what is sent --------------------------------------------------------------------------------------------------

EVERY_TIME = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "user-agent": "batchkit/1.2",
    "content-length": str(len(REQUEST.body)),
}
W3C = {
    "traceparent": f"00-{TRACE.trace_id}-{TRACE.span_id}-01",
    "x-client-request-id": f"{TRACE.trace_id}-{TRACE.span_id}",
}
PORTKEY = {
    "x-portkey-trace-id": TRACE.trace_id,
    "x-portkey-span-id": TRACE.span_id,
    "x-portkey-request-timeout": "9500",
}


@pytest.mark.parametrize(
    ("given", "portkey", "expected"),
    [
        pytest.param({}, None, W3C, id="a local server gets no key"),
        pytest.param(
            {"openai_api_key": CANARY},
            None,
            {**W3C, "authorization": f"Bearer {CANARY}"},
            id="OpenAI gets its key",
        ),
        pytest.param(
            {"portkey_api_key": "pk", "portkey_virtual_key": "vk", "openai_api_key": CANARY},
            None,
            {**PORTKEY, "x-portkey-api-key": "pk", "x-portkey-virtual-key": "vk"},
            id="Portkey does not get OpenAI's key",
        ),
        pytest.param(
            {"portkey_api_key": "pk", "portkey_provider": "openai", "openai_api_key": CANARY},
            None,
            {
                **PORTKEY,
                "x-portkey-api-key": "pk",
                "x-portkey-provider": "openai",
                "authorization": f"Bearer {CANARY}",
            },
            id="Portkey gets the key of the provider that was named",
        ),
        pytest.param(
            {
                "portkey_api_key": "pk",
                "portkey_config": "pc-1",
                "portkey_metadata": {"team": "a", "job": "x"},
                "cache_namespace": "run",
                "cache_force_refresh": True,
            },
            PortkeyFields(
                trace_id=TRACE.trace_id, span_name="step", metadata={"team": "로"}, cache_namespace="record"
            ),
            {
                **PORTKEY,
                "x-portkey-api-key": "pk",
                "x-portkey-config": "pc-1",
                "x-portkey-span-name": "step",
                "x-portkey-metadata": '{"team":"\\ub85c","job":"x"}',
                "x-portkey-cache-namespace": "record",
                "x-portkey-cache-force-refresh": "true",
            },
            id="a record's own fields win over the run's",
        ),
    ],
)
async def test_exactly_these_headers_and_bytes_arrive(given, portkey, expected):
    server = ScriptedServer(http(200, GOOD))
    request = Request(0, "a", REQUEST.body, portkey=portkey)
    async with server.listening() as url:
        address = endpoint_address(url, version="1.2", timeout=10, **given)
        async with Endpoint(address, timeout=60) as endpoint:
            assert await endpoint.attempt(request, TRACE) == GOOD_REPLY
    host = url.removeprefix("http://").removesuffix("/v1")
    assert server.heads[0][0] == "POST /v1/chat/completions HTTP/1.1"
    assert server.headers == {**EVERY_TIME, **expected, "host": host}
    assert server.bodies == [REQUEST.body]


@pytest.mark.parametrize("portkey", [None, PortkeyFields()])
async def test_an_attempts_own_headers_win_over_those_of_every_request(portkey):
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url:
        address = plain_address(url)
        address = replace(address, headers={**address.headers, "traceparent": "another"})
        async with Endpoint(address, timeout=60) as endpoint:
            await endpoint.attempt(Request(0, "a", REQUEST.body, portkey=portkey), TRACE)
    assert server.heads[0].count(f"traceparent: 00-{TRACE.trace_id}-{TRACE.span_id}-01") == 1
    assert "another" not in "".join(server.heads[0])


async def test_a_body_of_many_megabytes_arrives_as_it_is():
    server = ScriptedServer(http(200, GOOD))
    body = b'{"messages":"' + b"x" * 3_000_000 + b'"}'
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        assert await endpoint.attempt(Request(0, "a", body), TRACE) == GOOD_REPLY
    assert server.bodies == [body]
    assert "transfer-encoding" not in server.headers


async def test_a_header_that_cannot_be_sent_fails_the_request_before_it_is_sent():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        answer = await endpoint.attempt(REQUEST, Trace("a\r\nb: c", "d"))
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.maybe_billed) == (Kind.INVALID_REQUEST, "invalid_header", False)
    assert server.heads == []


# --- what comes back -----------------------------------------------------------------------------------------------

RAW_DEFLATE = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(http(200, GOOD), id="plain"),
        pytest.param(
            CHUNKED + b"5\r\n" + GOOD[:5] + b"\r\n%x\r\n" % len(GOOD[5:]) + GOOD[5:] + b"\r\n0\r\n\r\n",
            id="chunked",
        ),
        pytest.param(http(200, gzip.compress(GOOD), "Content-Encoding: gzip"), id="gzip"),
        pytest.param(http(200, zlib.compress(GOOD), "Content-Encoding: deflate"), id="deflate"),
        pytest.param(
            http(200, RAW_DEFLATE.compress(GOOD) + RAW_DEFLATE.flush(), "content-encoding: Deflate"),
            id="raw deflate",
        ),
        pytest.param(http(200, GOOD, "Content-Encoding: identity"), id="identity"),
        pytest.param(
            http(200, GOOD, "Content-Encoding: gzip"), id="unpacked by a gateway that kept the header"
        ),
        pytest.param(http(200, GOOD, "x-large: " + "h" * 60_000), id="a header of 60 KB"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + http(200, GOOD), id="after a 100"),
    ],
)
async def test_a_completion_is_read_however_it_travels(sent):
    assert await ask(sent) == GOOD_REPLY


async def test_a_body_that_ends_with_the_connection_is_read_to_its_end():
    assert await ask(then_closing(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)) == GOOD_REPLY


async def test_246_is_a_success_with_its_status():
    assert await ask(http(246, GOOD, "x-request-id: r-1")) == Reply(
        246, "r-1", GOOD, "gpt-4o-2024", Usage(3, 2, 5), "stop"
    )


def error(**fields: object) -> bytes:
    return orjson.dumps({"error": fields})


@pytest.mark.parametrize(
    ("sent", "kind", "code", "status"),
    [
        (
            http(400, error(code="context_length_exceeded")),
            Kind.INVALID_REQUEST,
            "context_length_exceeded",
            400,
        ),
        (http(401, error(code="invalid_api_key")), Kind.KEY_REFUSED, "invalid_api_key", 401),
        (http(404, error(code="model_not_found")), Kind.NOT_FOUND, "model_not_found", 404),
        (http(429), Kind.RATE_LIMITED, "rate_limited", 429),
        (http(500, b"oops"), Kind.SERVER_ERROR, "server_error", 500),
        (http(200, b"<html>welcome</html>"), Kind.NOT_AN_API, "not_an_api", 200),
        (http(200), Kind.NOT_AN_API, "not_an_api", 200),
        (http(204), Kind.NOT_AN_API, "not_an_api", 204),
        (http(200, GOOD[:50]), Kind.NOT_AN_API, "broken_json", 200),
        (http(200, error(type="server_error")), Kind.SERVER_ERROR, "server_error", 200),
        (http(200, b'{"choices":[]}'), Kind.INVALID_RESPONSE, "invalid_response", 200),
        (
            http(200, b"\0garbage", "Content-Encoding: gzip"),
            Kind.INVALID_RESPONSE,
            "unreadable_encoding",
            200,
        ),
        (http(200, b"\0garbage", "Content-Encoding: br"), Kind.INVALID_RESPONSE, "unreadable_encoding", 200),
        (
            http(200, gzip.compress(GOOD)[:-9], "Content-Encoding: gzip"),
            Kind.CONNECTION_ERROR,
            "answer_cut",
            None,
        ),
        (http(200, b"", length=BODY_BYTES + 1), Kind.INVALID_RESPONSE, "response_too_large", 200),
        (http(200, GOOD, "x-huge: " + "h" * 70_000), Kind.INVALID_RESPONSE, "malformed_http", None),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", Kind.INVALID_RESPONSE, "malformed_http", None),
        (then_closing(http(200, GOOD[:9], length=99)), Kind.CONNECTION_ERROR, "answer_cut", 200),
        (then_closing(CHUNKED + b"ff\r\n{"), Kind.CONNECTION_ERROR, "answer_cut", 200),
        (CHUNKED + b"not hex\r\n", Kind.INVALID_RESPONSE, "malformed_http", None),
        (breaking_a_chunk, Kind.CONNECTION_ERROR, "answer_cut", 200),
        (then_closing(b"HTTP/1.1 200 O"), Kind.CONNECTION_ERROR, "connection_error", None),
        (then_closing(b""), Kind.CONNECTION_ERROR, "connection_error", None),
        (resetting, Kind.CONNECTION_ERROR, "connection_error", None),
    ],
)
async def test_what_is_no_completion_is_a_failure_that_says_why(sent, kind, code, status):
    answer = await ask(sent)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.status) == (kind, code, status)
    assert answer.message
    cut = status is None or code in ("answer_cut", "broken_json", "unreadable_encoding", "response_too_large")
    assert answer.maybe_billed == cut


async def test_what_came_of_a_cut_answer_is_kept():
    answer = await ask(then_closing(http(200, b'{"choices": [{"mess', length=99)))
    assert isinstance(answer, Failure)
    assert answer.body is not None
    assert (answer.code, json.loads(answer.body)) == ("answer_cut", '{"choices": [{"mess')


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["Retry-After: 7"], 7),
        (["Retry-After: 0.25"], 0.25),
        (["Retry-After: 9", "Retry-After-Ms: 1500"], 1.5),
        (["Retry-After: nan"], None),
        (["Retry-After: -3"], 0),
        (["Retry-After: 99999999999999999999"], 300),
        (["Retry-After: 6m0s"], None),
        (["Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"], 0),
        ([], None),
    ],
)
async def test_fault_29_an_odd_retry_after_is_no_wait_or_a_bounded_one(headers, seconds):
    answer = await ask(http(429, b"", *headers))
    assert isinstance(answer, Failure)
    assert answer.retry_after == seconds


async def test_a_date_in_retry_after_is_measured_from_now():
    answer = await ask(http(503, b"", f"Retry-After: {formatdate(time() + 100, usegmt=True)}"))
    assert isinstance(answer, Failure)
    assert answer.retry_after == pytest.approx(100, abs=5)


async def test_fault_34_a_gzip_bomb_is_refused_before_it_unfolds(monkeypatch):
    monkeypatch.setattr(bounds, "BODY_BYTES", 1024 * 1024)
    bomb = gzip.compress(bytes(32 * 1024 * 1024))
    assert len(bomb) < 40_000
    tracemalloc.start()
    try:
        answer = await ask(http(200, bomb, "Content-Encoding: gzip"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code) == (Kind.INVALID_RESPONSE, "response_too_large")
    assert peak < 8 * 1024 * 1024


async def test_an_endless_body_is_cut_off_at_the_bound(monkeypatch):
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            await writer.drain()

    monkeypatch.setattr(bounds, "BODY_BYTES", 1024 * 1024)
    answer = await ask(endless)
    assert isinstance(answer, Failure)
    assert answer.code == "response_too_large"


# --- where it goes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_fault_35_a_redirect_is_not_followed_and_no_key_leaves_the_origin(status):
    elsewhere, here = ScriptedServer(http(200, GOOD)), ScriptedServer()
    async with elsewhere.listening() as other, here.listening() as url:
        here.script = [http(status, b"", f"Location: {other}/chat/completions")]
        address = endpoint_address(url, version="0", timeout=10, openai_api_key=CANARY)
        async with Endpoint(address, timeout=60) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.status) == (Kind.MISDIRECTED, "redirected", status)
    assert (elsewhere.connections, len(here.heads)) == (0, 1)


async def test_cookies_are_not_kept():
    server = ScriptedServer(http(200, GOOD, "Set-Cookie: a=b; Path=/"))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        for _ in range(2):
            await endpoint.attempt(REQUEST, TRACE)
    assert "cookie" not in server.headers


async def test_proxy_variables_are_not_heeded(monkeypatch):
    proxy = ScriptedServer(http(200, GOOD))
    async with proxy.listening() as url:
        monkeypatch.setenv("http_proxy", url)
        assert await ask(http(200, GOOD)) == GOOD_REPLY
    assert proxy.connections == 0


async def test_nobody_listening_is_a_connection_error_that_cost_nothing():
    async with ScriptedServer(http(200, GOOD)).listening() as url:
        pass
    async with Endpoint(plain_address(url), timeout=60) as endpoint:
        answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.maybe_billed) == (
        Kind.CONNECTION_ERROR,
        "connection_error",
        False,
    )
    assert answer.message.startswith("cannot connect to 127.0.0.1: ")


async def test_a_name_nobody_knows_is_a_wrong_address():
    async with Endpoint(plain_address("http://nobody.invalid/v1"), timeout=60) as endpoint:
        answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code) == (Kind.MISDIRECTED, "host_unknown")
    assert "nobody.invalid" in answer.message


AUTHORITY = """
[ca]
default_ca = here
[here]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = {name}
"""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Callable[..., tuple[Path, ssl.SSLContext]]:
    """Makes certificates for a name, signed by themselves and good for some years: the path, and the server's side."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")

    def make(name: str, since: int, until: int) -> tuple[Path, ssl.SSLContext]:
        folder = tmp_path_factory.mktemp("tls")
        (folder / "index").touch()
        (folder / "authority").write_text(AUTHORITY.format(folder=folder, name=name))
        key, request, certificate = folder / "key", folder / "request", folder / "certificate"
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
        years = ("-startdate", f"{since}0101000000Z", "-enddate", f"{until}0101000000Z")
        signing = ("-selfsign", "-batch", "-notext", "-config", folder / "authority", "-keyfile", key)
        for argv in (
            (openssl, "req", *new_key, "-out", request, "-subj", "/CN=endpoint"),
            (openssl, "ca", *signing, *years, "-in", request, "-out", certificate),
        ):
            subprocess.run(argv, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return certificate, context

    return make


@pytest.mark.parametrize(
    ("name", "until", "trusted", "reason"),
    [
        ("IP:127.0.0.1", 2100, False, "self-signed"),
        ("IP:127.0.0.1", 2021, True, "expired"),
        ("DNS:endpoint.test", 2100, True, "not valid for '127.0.0.1'"),
        ("IP:127.0.0.1", 2100, True, None),
    ],
)
async def test_fault_38_a_certificate_that_is_expired_self_signed_or_of_another_host_gets_no_request(
    name, until, trusted, reason, certificates, monkeypatch
):
    path, context = certificates(name, 2020, until)
    if trusted:
        # aiohttp makes it when it is imported, out of what the machine trusts.
        trust = ssl.create_default_context(cafile=path)
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trust)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    server = ScriptedServer(http(200, GOOD))
    async with server.listening(tls=context) as url:
        address = endpoint_address(url, version="0", timeout=10, openai_api_key=CANARY)
        async with Endpoint(address, timeout=60) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    if reason is None:  # so that it is the reason that the others get none for
        assert answer == GOOD_REPLY
        return
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.maybe_billed) == (Kind.MISDIRECTED, "tls_not_verified", False)
    assert reason in answer.message.replace("self signed", "self-signed")
    assert server.heads == []


async def test_https_to_a_server_that_hangs_up_is_a_connection_error():
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Endpoint(plain_address(f"https://127.0.0.1:{port}/v1"), timeout=60) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.maybe_billed) == (Kind.CONNECTION_ERROR, False)


async def test_https_to_a_server_without_it_is_a_connection_error():
    async def answer_plainly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400))
        writer.close()

    async with await asyncio.start_server(answer_plainly, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Endpoint(plain_address(f"https://127.0.0.1:{port}/v1"), timeout=60) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.maybe_billed) == (Kind.CONNECTION_ERROR, "tls_failed", False)


# --- connections ---------------------------------------------------------------------------------------------------


async def test_one_connection_serves_one_attempt_after_another():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        assert [await endpoint.attempt(REQUEST, TRACE) for _ in range(5)] == [GOOD_REPLY] * 5
    assert server.connections == 1


async def test_nothing_is_sent_before_there_is_room_for_the_answer():
    """Who waits for it meets no deadline, and keeps the connection."""
    server, room, waited = ScriptedServer(http(200, GOOD)), asyncio.Event(), 0

    async def until_room() -> bool:
        nonlocal waited
        waited += 1
        await room.wait()
        return True

    async with server.listening() as url, Endpoint(plain_address(url), timeout=10) as endpoint:
        assert await endpoint.attempt(REQUEST, TRACE) == GOOD_REPLY
        endpoint.sending = lambda: None if room.is_set() else until_room
        attempt = asyncio.ensure_future(endpoint.attempt(REQUEST, TRACE))
        while not waited:
            await asyncio.sleep(0)
        assert len(server.heads) == 1
        room.set()
        assert await attempt == GOOD_REPLY
    assert len(server.heads) == 2
    assert server.connections == 1


async def test_attempts_of_one_turn_of_the_event_loop_are_asked_about_together():
    """What ended before is written then, and many answers take less work than one after the other."""
    asked = 0

    def sending() -> None:
        nonlocal asked
        asked += 1

    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=10) as endpoint:
        await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(20)))
        endpoint.sending = sending
        await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(20)))
    assert asked == 1
    assert len(server.heads) == 40


async def test_an_attempt_that_is_given_up_before_it_is_sent_holds_up_no_other():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=10) as endpoint:
        await asyncio.gather(*(endpoint.attempt(REQUEST, TRACE) for _ in range(3)))
        attempts = [asyncio.ensure_future(endpoint.attempt(REQUEST, TRACE)) for _ in range(3)]
        await asyncio.sleep(0)
        attempts[1].cancel()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    assert answers == [GOOD_REPLY] * 2


async def test_where_there_is_no_room_any_more_nothing_is_sent_nor_billed():
    async def none_any_more() -> bool:
        return False

    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=10) as endpoint:
        endpoint.sending = lambda: none_any_more
        answer = await endpoint.attempt(REQUEST, TRACE)
        assert isinstance(answer, Failure)
        assert (answer.kind, answer.maybe_billed) == (Kind.CONNECTION_ERROR, False)
    assert not server.heads


async def test_fault_37_a_kept_connection_that_the_server_closed_costs_no_attempt():
    """The server closes after each answer without a word; the next attempt begins in the very moment the answer is in."""
    server = ScriptedServer(then_closing(http(200, GOOD)))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        answers = [await endpoint.attempt(REQUEST, TRACE) for _ in range(50)]
    assert answers == [GOOD_REPLY] * 50
    assert server.connections == 50


async def test_a_connection_lost_after_sending_is_not_sent_again_unasked():
    """Whether the lost request was billed is not known, so to repeat it is not for the endpoint to decide."""
    server = ScriptedServer(http(200, GOOD), resetting, http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        answers = [await endpoint.attempt(REQUEST, TRACE) for _ in range(3)]
    assert isinstance(answers[1], Failure)
    assert (answers[1].kind, answers[1].maybe_billed) == (Kind.CONNECTION_ERROR, True)
    assert (answers[0], answers[2], len(server.heads)) == (GOOD_REPLY, GOOD_REPLY, 3)


async def test_a_broken_answer_does_not_leak_into_the_next():
    server = ScriptedServer(http(200, GOOD, length=len(GOOD) + 5), http(200, GOOD))
    async with server.listening() as url, Endpoint(plain_address(url), timeout=0.05) as endpoint:
        first = await endpoint.attempt(REQUEST, TRACE)
        second = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(first, Failure)
    assert first.kind is Kind.TIMEOUT
    assert second == GOOD_REPLY
    assert server.connections == 2


async def test_leaving_the_endpoint_closes_its_connections():
    server = ScriptedServer(http(200, GOOD))
    async with server.listening() as url:
        async with Endpoint(plain_address(url), timeout=60) as endpoint:
            await endpoint.attempt(REQUEST, TRACE)
        with pytest.raises(RuntimeError, match="async with"):
            await endpoint.attempt(REQUEST, TRACE)


# --- the deadline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [hanging, dripping, http(200, GOOD[:9], length=99)])
async def test_fault_33_a_server_that_never_answers_or_sends_now_and_then_a_byte_meets_the_deadline(server):
    answer = await ask(server, timeout=0.05)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code, answer.maybe_billed) == (Kind.TIMEOUT, "timeout", True)
    assert answer.message == "127.0.0.1 gave no whole answer within 0.05 s"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_connection_that_never_comes_about_was_not_billed():
    with silent_host() as url:
        async with Endpoint(plain_address(url), timeout=0.01) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.maybe_billed) == (Kind.TIMEOUT, False)
    assert answer.message == "no connection to 127.0.0.1 within 0.01 s"


async def test_an_outer_cancellation_passes_through():
    server = ScriptedServer(hanging)
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        task = asyncio.create_task(endpoint.attempt(REQUEST, TRACE))
        while not server.heads:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


@pytest.mark.parametrize("outer_first", [True, False])
async def test_an_outer_cancellation_wins_over_a_deadline_at_the_same_moment(outer_first):
    server = ScriptedServer(hanging)
    async with server.listening() as url, Endpoint(plain_address(url), timeout=60) as endpoint:
        task = asyncio.create_task(endpoint.attempt(REQUEST, TRACE))
        while not server.heads:
            await asyncio.sleep(0)
        (ending,) = endpoint._deadlines._running
        endpoint._deadlines._running[ending] = 0
        for act in (task.cancel, endpoint._deadlines._sweep)[:: 1 if outer_first else -1]:
            act()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1


async def test_each_of_many_attempts_has_a_deadline_of_its_own():
    """Attempts that begin while others are under way are given up in their turn, and answered ones not at all."""
    server = ScriptedServer(http(200, GOOD), hanging)
    async with server.listening() as url, Endpoint(plain_address(url), timeout=0.05) as endpoint:
        loop = asyncio.get_running_loop()

        async def timed() -> tuple[Answer, float]:
            begun = loop.time()
            return await endpoint.attempt(REQUEST, TRACE), loop.time() - begun

        first = asyncio.create_task(timed())
        while not server.heads:
            await asyncio.sleep(0)
        rest = []
        for _ in range(3):
            rest.append(asyncio.create_task(timed()))
            await asyncio.sleep(0.01)
        assert (await first)[0] == GOOD_REPLY
        for answer, seconds in await asyncio.gather(*rest):
            assert isinstance(answer, Failure)
            assert answer.kind is Kind.TIMEOUT
            assert seconds >= 0.049


async def test_a_deadline_does_not_outlive_its_attempt():
    async with (
        ScriptedServer(http(200, GOOD)).listening() as url,
        Endpoint(plain_address(url), timeout=60) as endpoint,
    ):
        assert await endpoint.attempt(REQUEST, TRACE) == GOOD_REPLY
        assert not endpoint._deadlines._running


# --- secrets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        http(401, error(message=f"Incorrect API key provided: {CANARY}", code="invalid_api_key")),
        http(500, f"no good: {CANARY}".encode()),
        http(400, f"<html>{CANARY}</html>".encode(), f"x-echo: {CANARY}"),
        then_closing(f"HTTP/1.1 {CANARY}\r\n\r\n".encode()),
        then_closing(http(200, CANARY.encode(), f"x-echo: {CANARY}", length=99)),
        resetting,
    ],
)
async def test_a_key_shows_nowhere(sent, caplog, capsys):
    async with ScriptedServer(sent).listening() as url:
        address = endpoint_address(url, version="0", timeout=10, openai_api_key=CANARY)
        async with Endpoint(address, timeout=60) as endpoint:
            answer = await endpoint.attempt(REQUEST, TRACE)
            shown = repr((answer, address, endpoint, vars(endpoint)))
    assert isinstance(answer, Failure)
    captured = capsys.readouterr()
    assert CANARY not in shown + captured.out + captured.err + caplog.text
