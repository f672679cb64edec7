"""The environment names proxies and passwords for other programs; only with --trust-env does a request pass a proxy.

The proxy is a real one, on loopback. It knows the way to hosts that nobody else knows, so what arrives there came through it.
"""

import asyncio
import json
import shutil
import ssl
import subprocess
from base64 import b64encode
from contextlib import ExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
from acceptance.conftest import elsewhere
from forked_command import PROBED_AT_ONCE, SIMULATED_AT_ONCE
from scripted_server import ScriptedServer, http

HOST = "endpoint.test"
PASSWORD = "proxy-password-0123456789"
BASIC = "Basic " + b64encode(f"user:{PASSWORD}".encode()).decode()
COMPLETION = {
    "id": "c-1",
    "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
BUILT = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Proxy:
    """Leads every name to the one `origin`, by CONNECT or by passing the request on. With `says` it says that instead."""

    def __init__(self, origin=None, says=None):
        self._origin = origin
        self._says = says
        self._tasks = set()
        self.heads = []
        self.url = ""

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if self._says is not None:
                # With what it was sent, as some do.
                length = f"Content-Length: {len(head)}\r\nConnection: close\r\n\r\n"
                writer.write(self._says + length.encode() + head.encode() if self._says else b"")
            else:
                origin = urlsplit(self._origin)
                there = await asyncio.open_connection(origin.hostname, origin.port)
                method, target, rest = head.split(" ", 2)
                if method == "CONNECT":
                    writer.write(BUILT)
                else:
                    there[1].write(f"{method} {urlsplit(target).path} {rest}".encode())
                await asyncio.gather(carried(reader, there[1]), carried(there[0], writer))
        writer.close()


async def carried(reader, writer):
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@pytest.fixture
def proxy():
    """Starts proxies."""
    with ExitStack() as running:
        yield lambda *origin, **words: running.enter_context(elsewhere(Proxy(*origin, **words).listening()))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """For the host: the path to trust, and the server's side."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    argv = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", folder / "key", "-out", folder / "cert", "-subj", f"/CN={HOST}", "-days", "1"]
    subprocess.run([*argv, "-addext", f"subjectAltName=DNS:{HOST}"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return folder / "cert", context


@pytest.fixture
def origin():
    """An endpoint that repeats what it was sent, over TLS if a context is given: the server and its URL."""
    with ExitStack() as running:

        def start(tls=None):
            async def echo(writer):
                said = "\r\n".join(server.heads[-1])
                writer.write(
                    http(200, json.dumps({**COMPLETION, "echo": said}).encode(), f"x-request-id: {BASIC}")
                )

            server = ScriptedServer(echo)
            return server, running.enter_context(elsewhere(server.listening(tls=tls)))

        yield start


@pytest.fixture
def runs(canary, files, write_requests):
    """How a command runs three requests in an environment with keys, and with these variables; nothing of it has a key."""

    def by(command):
        def run(base_url, *words, code=0, **environ):
            command.environ |= canary.variables | {"BATCHKIT_PORTKEY_PROVIDER": "openai"} | environ
            words = ["run", write_requests(3), "-o", files.results_path, "--base-url", base_url, *words]
            ran = command(*words, "--allow-http", "--progress", "log", code=code)
            canary.assert_unseen(command.folder, ran.out, ran.err)
            left = [path.read_text() for path in command.folder.iterdir() if path.is_file()]
            for text in (ran.out, ran.err, *left):
                assert PASSWORD not in text
                assert BASIC.removeprefix("Basic ") not in text
            return ran

        return run

    return by


@pytest.fixture
def run(runs, forked):
    forked.patch = PROBED_AT_ONCE
    return runs(forked)


def with_password(url):
    return url.replace("http://", f"http://user:{PASSWORD}@")


def names(head):
    return {line.partition(":")[0].lower() for line in head.split("\r\n")[1:-2]}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_proxy_and_no_password_file_of_the_environment_is_heeded(
    scheme, forked, serve, record, files, write_requests, netrc
):
    proxy = serve(lambda _: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    endpoint = record()
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "FTP_PROXY")
    for name in names:
        forked.environ |= {name: f"http://{proxy.origin}", name.lower(): f"http://{proxy.origin}"}
    forked.environ |= {"NO_PROXY": "", "no_proxy": "", **netrc}
    base_url = endpoint.base_url.replace("http:", f"{scheme}:")
    words = ["run", write_requests(3), "-o", files.results_path, "--base-url", base_url, "--max-attempts", 1]
    ran = forked(*words, code=3 if scheme == "https" else 0, patch=PROBED_AT_ONCE)
    assert proxy.connections == 0
    assert len(endpoint.received) == (3 if scheme == "http" else 0)
    assert not any("authorization" in headers for headers, _ in endpoint.received)
    if scheme == "https":
        assert "no TLS connection to 127.0.0.1" in ran.err  # it speaks none, and said so itself


@pytest.fixture
def netrc(tmp_path_factory):
    """Variables that lead to a .netrc with a password for every host."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("netrc", ".netrc"):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text("default login someone password netrc-password-1\n")
    return {"NETRC": str(folder / "netrc"), "HOME": str(folder)}


def test_an_https_endpoint_is_reached_by_connect_and_the_proxy_sees_its_name_and_no_key(
    runs, command, proxy, origin, certificate, canary, netrc
):
    path, context = certificate
    run = runs(command)  # started anew, for Python reads whom to trust as it starts
    server, url = origin(context)
    between = proxy(url)
    environ = {"HTTPS_PROXY": with_password(between.url), "HTTP_PROXY": "http://127.0.0.1:1", **netrc}
    run(f"https://{HOST}/v1", "--trust-env", SSL_CERT_FILE=str(path), **environ)
    assert server.received == 3
    assert 1 <= len(between.heads) <= 3
    for head in between.heads:
        assert head.startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
        assert f"Proxy-Authorization: {BASIC}\r\n" in head
        assert names(head) <= {"host", "user-agent", "proxy-authorization", "accept", "accept-encoding"}
        assert not any(key in head for key in canary.variables.values())
    for head in server.heads:
        assert f"x-portkey-api-key: {canary.portkey}" in head
        assert not {"proxy-authorization", "proxy-connection"} & {
            line.partition(":")[0].lower() for line in head
        }
        assert "netrc" not in "".join(head)


def test_an_http_request_itself_passes_the_proxy_with_all_that_is_in_it(run, proxy, origin, canary, netrc):
    server, url = origin()
    between = proxy(url)
    run(f"http://{HOST}/v1", "--trust-env", http_proxy=with_password(between.url), **netrc)
    assert server.received == 3
    assert between.heads
    for head in between.heads:
        assert head.startswith(f"POST http://{HOST}/v1/chat/completions HTTP/1.1\r\n")
        assert f"Proxy-Authorization: {BASIC}\r\n" in head
        assert f"x-portkey-api-key: {canary.portkey}\r\n" in head
        assert f"Authorization: Bearer {canary.openai}\r\n" in head


@pytest.mark.parametrize("by", ["NO_PROXY", "without the flag"])
def test_what_is_exempt_is_reached_without_a_proxy(by, run, proxy):
    between = proxy(says=b"HTTP/1.1 500 No\r\n")
    environ = {"ALL_PROXY": between.url, "NO_PROXY": "other.org, test" if by == "NO_PROXY" else ""}
    words = ["--trust-env"] if by == "NO_PROXY" else []
    # The name is known to the proxy alone.
    assert f"the name {HOST} is not known" in run(f"http://{HOST}/v1", *words, code=3, **environ).err
    assert between.heads == []


def test_this_machine_is_reached_without_a_proxy(run, proxy, record):
    endpoint, between = record(), proxy(says=b"HTTP/1.1 500 No\r\n")
    run(endpoint.base_url, "--trust-env", ALL_PROXY=between.url)
    assert (len(endpoint.received), between.heads) == (3, [])


def test_a_simulated_run_takes_no_proxy(forked, proxy, files, write_requests):
    between = proxy(says=b"HTTP/1.1 500 No\r\n")
    forked.environ |= {"ALL_PROXY": between.url, "BATCHKIT_TRUST_ENV": "true"}
    forked("run", write_requests(3), "-o", files.results_path, "--simulate", patch=SIMULATED_AT_ONCE)
    assert between.heads == []


REFUSALS = {
    "407": (
        b"HTTP/1.1 407 Proxy Authentication Required\r\n",
        "refuses the user and password of its variable (HTTP 407)",
    ),
    "403": (b"HTTP/1.1 403 Not from here\r\n", f"does not connect to {HOST} (HTTP 403)"),
    "502": (b"HTTP/1.1 502 No such host\r\n", f"does not connect to {HOST} (HTTP 502)"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9\r\n", "answered with what is no HTTP"),
    "nothing": (b"", "closed the connection before it was one to"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_proxy_that_refuses_to_connect_is_named_as_the_one_that_did(refusal, run, proxy, files):
    says, told = REFUSALS[refusal]
    between = proxy(says=says)
    environ = {"https_proxy": with_password(between.url)}
    ran = run(f"https://{HOST}/v1", "--trust-env", "--json", code=3, **environ)
    assert f"the proxy {between.url} {told}" in ran.err
    assert ran.json["stop_reason"] == ("proxy_refused" if refusal in ("407", "403") else "unreachable")
    assert ran.json["attempts"]["maybe_billed"] == 0
    assert len(between.heads) >= (3 if refusal in ("407", "403") else 6) - 2
    assert files.indexes == []


def test_a_407_to_an_http_request_is_the_proxys(run, proxy):
    between = proxy(says=b"HTTP/1.1 407 Proxy Authentication Required\r\n")
    ran = run(f"http://{HOST}/v1", "--trust-env", code=3, HTTP_PROXY=between.url)
    assert f"the proxy {between.url} refuses to serve without a user (HTTP 407)" in ran.err


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named(scheme, run):
    words = ["--trust-env", "--max-attempts", 1]
    ran = run(f"{scheme}://{HOST}/v1", *words, code=3, ALL_PROXY=with_password("http://127.0.0.1:1"))
    assert "cannot connect to the proxy http://127.0.0.1:1: " in ran.err
    ran = run(f"{scheme}://{HOST}/v1", *words, code=3, ALL_PROXY=with_password("http://proxy.test:1"))
    assert "the name of the proxy http://proxy.test:1 is not known" in ran.err


def test_a_certificate_behind_a_proxy_is_the_endpoints_own(run, proxy, origin, certificate):
    server, url = origin(certificate[1])
    between = proxy(url)
    ran = run(
        f"https://{HOST}/v1", "--trust-env", code=3, HTTPS_PROXY=between.url
    )  # which nobody vouches for
    assert f"the certificate of {HOST} does not verify" in ran.err
    assert server.received == 0


@pytest.mark.parametrize(
    "value", [f"socks5://user:{PASSWORD}@127.0.0.1:1", f"http://user:{PASSWORD}@127.0.0.1:port"]
)
def test_what_is_no_http_proxy_is_wrong_usage_before_anything_is_sent(value, run, files):
    ran = run(f"https://{HOST}/v1", "--trust-env", code=2, HTTPS_PROXY=value)
    assert ran.err.startswith("batchkit: HTTPS_PROXY ")
    assert not files.results_path.exists()


def test_a_proxys_password_where_none_belongs_is_wrong_usage_that_does_not_repeat_it(run):
    value = with_password("http://127.0.0.1:1")
    run(f"https://{HOST}/v1", "--trust-env", "--model", PASSWORD, code=2, HTTPS_PROXY=value)
    # What is printed hides it also where the proxy is not heeded.
    run(f"https://{HOST}/v1", "--rpm", PASSWORD, code=2, HTTPS_PROXY=value)
