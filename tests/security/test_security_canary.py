"""A marked key in the environment, everything goes wrong, and not one byte that is produced contains it.

The servers repeat all that they were sent wherever an answer has room for it: in bodies, headers, status lines.
"""

import gzip
import json
import os
import signal
import socket
from pathlib import Path

import forked_command
import pytest
from echoes import COMPLETION, error, http, keys_of

from batchkit.cli.main import main

command = forked_command.command


def escaped(text):
    return "".join(f"\\u{ord(char):04x}" for char in text)


def compressed(received):
    body = gzip.compress(json.dumps({**COMPLETION, "echo": received.head}).encode())
    return http(200, body, "Content-Encoding: gzip")


# Answers after which the run goes on, by what the request asks for.
ECHOES = {
    "400": lambda it: error(it, 400),
    "404 later": lambda it: error(it, 404),
    "422 with the key for its code": lambda it: error(it, 422, code=" ".join(keys_of(it))),
    "500": lambda it: error(it, 500),
    "503": lambda it: error(it, 503),
    "408": lambda it: error(it, 408),
    "431": lambda it: http(431, b""),
    "446": lambda it: http(446, {"error": {"type": "hooks_failed"}, "hook_results": it.head}),
    "500 in plain words": lambda it: http(500, it.head.encode()),
    "502 as a page": lambda it: http(502, f"<html><pre>{it.head}</pre></html>".encode()),
    "400 with a key at the end of a message": lambda it: error(it, 400, padding=990),
    "400 with a key at the end of an excerpt": lambda it: http(
        400, b"y" * 190 + " ".join(keys_of(it)).encode()
    ),
    "400 with a key at the end of a text": lambda it: http(
        400, b"z" * (64 * 1024 - 10) + " ".join(keys_of(it)).encode() + b"z" * 300_000
    ),
    "400 with escaped slashes": lambda it: http(
        400, json.dumps({"error": {"message": it.head}}).replace("/", "\\/").encode()
    ),
    "400 with everything escaped": lambda it: http(
        400, f'{{"error":{{"message":"{escaped(" ".join(keys_of(it)))}"}}}}'.encode()
    ),
    "200 with an error": lambda it: http(200, {"error": {"message": it.head, "code": 400}}),
    "200 without choices": lambda it: http(200, {"message": it.head}),
    "200 as a page": lambda it: http(200, f"<html><pre>{it.head}</pre></html>".encode()),
    "200 that is cut": lambda it: http(200, json.dumps({**COMPLETION, "echo": it.head}).encode()[:-9]),
    "200": lambda it: http(
        200, {**COMPLETION, "model": keys_of(it)[0], "id": it.head, "echo": [it.head, *keys_of(it)]}
    ),
    "200 in capitals": lambda it: http(200, {**COMPLETION, it.head: keys_of(it)}),
    "200 compressed": compressed,
    "headers": lambda it: http(
        200, COMPLETION, *[f"x-echo-{at}: {key}" for at, key in enumerate(keys_of(it))], *lines_of(it)
    ),
    "a name for the answer": lambda it: http(200, COMPLETION, f"x-request-id: {keys_of(it)[0]}"),
    "a long name for the answer": lambda it: http(
        500, {"error": {"message": "no"}}, "x-request-id: " + "i" * 190 + " ".join(keys_of(it))
    ),
    "a wait": lambda it: http(500, b"{}", f"retry-after: {keys_of(it)[0]}"),
    "a status line": lambda it: http(500, b"{}", reason=" ".join(keys_of(it))),
    "no status line": lambda it: f"{keys_of(it)[0]} {it.head}\r\n\r\n".encode(),
    "a header that is none": lambda it: http(200, COMPLETION, keys_of(it)[0]),
    "a chunk's length": lambda it: (
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{keys_of(it)[0]}\r\n".encode()
    ),
    "a body that ends early": lambda it: (
        f"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{it.head}".encode()
    ),
    "an unknown encoding": lambda it: http(200, it.head.encode(), f"Content-Encoding: {keys_of(it)[0]}"),
    "a broken gzip": lambda it: http(200, it.head.encode(), "Content-Encoding: gzip"),
}
STOPS = {
    "401": lambda it: error(it, 401, code="invalid_api_key"),
    "402": lambda it: error(it, 402, code=" ".join(keys_of(it))),
    "404": lambda it: error(it, 404, code="model_not_found"),
    "a first page": lambda it: http(200, f"<html><pre>{it.head}</pre></html>".encode()),
    "a redirect": lambda it: http(
        307, it.head.encode(), f"Location: http://{keys_of(it)[0]}@localhost/{keys_of(it)[1]}"
    ),
    "a redirect to a host": lambda it: http(302, b"", f"Location: https://{keys_of(it)[2]}.example/"),
    "a redirect to a key": lambda it: http(
        308, b"", f"Location: https://{keys_of(it)[2]}/?k={keys_of(it)[0]}"
    ),
}


def lines_of(received):
    return [f"x-{line}" for line in received.head.split("\r\n")[1:-2]]


def as_asked(received):
    """The answer that the request's own words ask for."""
    said = json.loads(received.body)["messages"][0]["content"]
    return http(200, COMPLETION) if said == "first" else {**ECHOES, **STOPS}[said](received)


@pytest.fixture
def questions(tmp_path):
    def write(*texts):
        path = tmp_path / "requests.jsonl"
        records = [
            {"custom_id": f"q{at}", "body": {"model": "m", "messages": [{"role": "user", "content": text}]}}
            for at, text in enumerate(texts)
        ]
        path.write_text("".join(json.dumps(each) + "\n" for each in records))
        return path

    return write


@pytest.fixture
def keyed(command, canary):
    """The command, with all the keys in variables, and a provider for them all to be sent."""
    command.environ |= canary.variables | {"BATCHKIT_PORTKEY_PROVIDER": "openai"}
    return command


@pytest.mark.parametrize("by", ["variables", "files"])
@pytest.mark.parametrize("progress", ["log", "bar"])
def test_no_answer_gets_a_key_out(by, progress, command, canary, serve, questions, files, on_terminal):
    server = serve(as_asked)
    command.environ |= canary.variables if by == "variables" else canary.in_files()
    words = ["run", questions("first", *ECHOES), "-o", files.results_path, "--base-url", server.base_url]
    words += ["--portkey-provider", "openai", "--concurrency", 8, "--max-attempts", 2, "--progress", progress]
    if progress == "bar":
        code, shown = on_terminal(*words)
        assert code == 1, shown
        more = command("report", files.results_path)
        canary.assert_unseen(command.folder, shown, more.out, more.err)
        assert b"first server_error" in shown
    else:
        ran = command(*words, code=1)
        canary.assert_unseen(command.folder, ran.out, ran.err)
        assert "first server_error" in ran.err
    for received in server.received:
        assert set(keys_of(received)) == set(canary.variables.values()), "the keys were not even sent"
    files.assert_summary_is_a_fold(files.summary, len(ECHOES) + 1)
    assert b"[key]" in files.results_path.read_bytes()
    assert b"[key]" in files.errors_path.read_bytes()


@pytest.mark.parametrize("stop", STOPS)
def test_no_answer_that_ends_a_run_gets_a_key_out(stop, keyed, canary, serve, questions, files):
    server = serve(as_asked)
    words = ["run", questions(stop, "first"), "-o", files.results_path, "--base-url", server.base_url]
    ran = keyed(*words, "--json", code=3)
    assert ran.json["stop_reason"]
    canary.assert_unseen(keyed.folder, ran.out, ran.err)
    assert len(keys_of(server.received[0])) == 3


def test_no_fault_of_a_provider_gets_a_key_out(keyed, canary, simulate, files, write_requests):
    kinds = ("500", "reset", "cut", "hang", "html", "error200", "empty")
    # What slows a run down is there, and seldom.
    simulator = simulate(faults={**dict.fromkeys(kinds, 0.12), "503": 0.05, "429": 0.05})
    words = ["run", write_requests(40), "-o", files.results_path, "--base-url", simulator.base_url]
    ran = keyed(*words, "--timeout", 1, "--progress", "log", "--max-attempts", 2, code=None)
    assert ran.code in (0, 1, 3), ran
    canary.assert_unseen(keyed.folder, ran.out, ran.err)


def test_a_key_in_a_portkey_config_is_a_key(command, canary, serve, questions, files):
    config = {"targets": [{"provider": "openai", "api_key": canary.openai}, {"api_key": canary.virtual}]}
    command.environ |= {"BATCHKIT_PORTKEY_CONFIG": json.dumps(config, indent=1)}
    server = serve(lambda it: http(200, {**COMPLETION, "echo": it.head}))
    words = ["run", questions("first"), "-o", files.results_path, "--base-url", server.base_url]
    ran = command(*words)
    assert json.loads(server.received[0].headers["x-portkey-config"]) == config
    canary.assert_unseen(command.folder, ran.out, ran.err)


def test_an_answer_that_ends_a_run_does_not_steer_the_terminal(keyed, serve, questions, files):
    message = "no\x1b[2J\x07\u202e key\nbatchkit: all is well"
    server = serve(lambda _: http(401, {"error": {"message": message, "code": "invalid_api_key"}}))
    words = ["run", questions("first"), "-o", files.results_path, "--base-url", server.base_url]
    ran = keyed(*words, "--progress", "log", code=3)
    assert r"no\x1b[2J\x07\u202e key" in ran.err
    assert not {"\x1b", "\x07", "\u202e"} & set(ran.out + ran.err)
    assert not any(line == "batchkit: all is well" for line in ran.err.splitlines())


# --- no server at all ----------------------------------------------------------------------------------------------


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield taken.getsockname()[1]


def test_a_refused_connection_and_a_signal_show_no_key(keyed, canary, closed_port, questions, files):
    words = ["run", questions("first"), "-o", files.results_path, "--progress", "log"]
    process = keyed.fork(*words, "--base-url", f"http://127.0.0.1:{closed_port}/v1")
    shown = process.stderr.readline()
    assert "cannot connect" in shown
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    canary.assert_unseen(keyed.folder, shown, out, err)


def test_tls_to_a_port_that_speaks_none_shows_no_key(keyed, canary, record, questions, files):
    server = record()
    words = ["run", questions("first"), "-o", files.results_path, "--max-attempts", 1]
    base_url = server.base_url.replace("http:", "https:")
    ran = keyed(*words, "--base-url", base_url, code=3, patch=forked_command.PROBED_AT_ONCE)
    assert "no TLS connection" in ran.err
    canary.assert_unseen(keyed.folder, ran.out, ran.err)


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_in_mid_run_shows_no_key(times, keyed, canary, serve, questions, files, until):
    server = serve(lambda it: http(200, {**COMPLETION, "echo": it.head}) if b'"first"' in it.body else None)
    words = ["run", questions("first", "hang"), "-o", files.results_path, "--base-url", server.base_url]
    process = keyed.fork(*words, "--progress", "log", "--timeout", 2, "--max-attempts", 1)
    until(lambda: len(server.received) == 2, process)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode in (128 + signal.SIGTERM, 1)
    canary.assert_unseen(keyed.folder, out, err)


# --- wrong words ---------------------------------------------------------------------------------------------------


@pytest.fixture
def words_of(monkeypatch, capfd, tmp_path):
    """The command within this process, which is all that wrong words need: its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PORTKEY_", "OPENAI_", "BATCHKIT_")):
            monkeypatch.delenv(name)

    def run(*words, **environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        try:
            code = main([*map(str, words)])
        except SystemExit as wrong:
            code = wrong.code
        return code, "".join(capfd.readouterr())

    return run


@pytest.mark.parametrize(
    "url",
    [
        "{key}",
        "https://user:{key}@127.0.0.1/v1",
        "https://{key}@127.0.0.1/v1",
        "https://127.0.0.1/v1?api_key={key}",
        "https://127.0.0.1/v1#{key}",
        "https://127.0.0.1:{key}/v1",
        "ftp://{key}/v1",
        "https://a:{key}@ho\N{ACCOUNT OF}st/v1",
        "https://[{key}]/v1",
        # That these are keys is seen only where the key is known.
        "https://127.0.0.1/{known}/v1",
        "http://{known}/v1",
    ],
)
@pytest.mark.parametrize("by", ["--base-url", "OPENAI_BASE_URL", "BATCHKIT_BASE_URL"])
def test_a_key_in_the_url_is_wrong_usage_that_does_not_repeat_it(url, by, words_of, canary, questions, files):
    run = ["run", questions("first"), "-o", files.results_path]
    for key in (canary.openai, canary.virtual):
        wrong = url.format(key=key, known=canary.openai)
        environ = {"OPENAI_API_KEY": canary.openai} | ({} if by.startswith("--") else {by: wrong})
        code, shown = words_of(*run, *([by, wrong] if by.startswith("--") else []), **environ)
        assert code == 2, shown
        assert shown.count("\n") == 1
        canary.assert_unseen(files.results_path.parent, shown)


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "{key}"],
        ["--api-key={key}"],
        ["--openai-api-key", "{key}"],
        ["-k", "{key}"],
        ["-k{key}"],
        ["--portkey-config", '{{"api_key": "{key}"}}'],
        ["--portkey-config", '{{"targets": [{{"aws_secret_access_key": "{key}"}}]}}'],
        ["--settings", "settings.toml"],
    ],
)
def test_a_key_given_to_a_flag_or_in_the_settings_is_wrong_usage_that_does_not_repeat_it(
    words, words_of, canary, record, questions, files, tmp_path
):
    endpoint = record()
    (tmp_path / "settings.toml").write_text(f'portkey_config = \'{{"api_key": "{canary.openai}"}}\'\n')
    run = ["run", questions("first"), "-o", files.results_path, "--base-url", endpoint.base_url]
    code, shown = words_of(*run, *[word.format(key=canary.openai) for word in words])
    assert code == 2, shown
    (tmp_path / "settings.toml").unlink()
    canary.assert_unseen(tmp_path, shown)
    assert not endpoint.received
    assert not files.results_path.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "{key}"],
        ["--set", 'user="{key}"'],
        ["--set", "user={key}"],
        ["--set", "{key}"],
        ["--rpm", "{key}"],
        ["--progress", "{key}"],
        ["--job-id", "{key}"],
        ["--cache-namespace", "{key}"],
        ["--portkey-metadata", "key={key}"],
        ["--portkey-provider", "{key}"],
        ["--portkey={key}"],
        ["{key}"],
        ["--limit", "{key}", "--json"],
    ],
)
@pytest.mark.parametrize("by", ["variables", "files"])
def test_a_known_key_where_none_belongs_is_wrong_usage_that_does_not_repeat_it(
    words, by, words_of, canary, record, questions, files
):
    endpoint = record()
    environ = canary.variables if by == "variables" else canary.in_files()
    run = ["run", questions("first"), "-o", files.results_path, "--base-url", endpoint.base_url]
    code, shown = words_of(*run, *[word.format(key=canary.openai) for word in words], **environ)
    assert code == 2, shown
    canary.assert_unseen(files.results_path.parent, shown)
    assert not endpoint.received
    assert not files.results_path.exists()


# --- bugs and disks ------------------------------------------------------------------------------------------------

BUGS = {
    "an attempt": (
        """
from batchkit.endpoint.http1 import Http1Endpoint as Endpoint
async def attempt(self, request, trace):
    raise RuntimeError(dict(self._head._address.headers))
Endpoint.attempt = attempt
""",
        "RuntimeError",
    ),
    "an observer": (
        """
import os
from batchkit.observers.progress import ProgressLog
def tick(self, gauges):
    raise RuntimeError(dict(os.environ))
ProgressLog.tick = tick
""",
        "completed",  # without the observer there is nobody to tell
    ),
    "the report": (
        """
import os
from batchkit.formats import report
def render(summary):
    raise RuntimeError(dict(os.environ))
report.render_html = render
""",
        "could not be written",
    ),
    "a task nobody waits for": (
        """
import asyncio, os
from batchkit.endpoint.http1 import Http1Endpoint as Endpoint
attempt = Endpoint.attempt
async def fail(headers):
    raise RuntimeError(dict(headers))
async def broken(self, request, trace):
    asyncio.ensure_future(fail(self._head._address.headers))
    return await attempt(self, request, trace)
Endpoint.attempt = broken
""",
        "never retrieved",
    ),
    "a thread": (
        """
import os, threading
from batchkit.endpoint.http1 import Http1Endpoint as Endpoint
attempt = Endpoint.attempt
def fail():
    raise RuntimeError(dict(os.environ))
async def broken(self, request, trace):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return await attempt(self, request, trace)
Endpoint.attempt = broken
""",
        "Exception in thread",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_shows_no_key(bug, keyed, canary, record, questions, files):
    endpoint = record()
    patch, told = BUGS[bug]
    words = ["run", questions("first"), "-o", files.results_path, "--base-url", endpoint.base_url]
    out, err = keyed.fork(*words, "--progress", "log", patch=patch).communicate()
    assert told in out + err
    canary.assert_unseen(keyed.folder, out, err)


@pytest.mark.parametrize("output", ["requests.jsonl/results.jsonl", "/dev/full", "/proc/results.jsonl"])
def test_an_output_that_cannot_be_written_shows_no_key(output, keyed, canary, record, questions):
    endpoint = record()
    ran = keyed("run", questions("first"), "-o", output, "--base-url", endpoint.base_url, code=None)
    assert ran.code in (2, 4), ran
    canary.assert_unseen(keyed.folder, ran.out, ran.err)


def test_a_closed_terminal_shows_no_key(keyed, canary, serve, questions, files):
    server = serve(as_asked)
    words = ["run", questions("first", "400", "200"), "-o", files.results_path, "--base-url", server.base_url]
    process = keyed.start(*words, "--progress", "log")
    process.stdout.close()
    shown = process.stderr.read()
    process.wait()
    canary.assert_unseen(keyed.folder, shown)


# --- files that hold keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["mode", "lines", "bytes", "both", "missing"])
def test_a_key_file_that_is_refused_shows_no_key(wrong, words_of, canary, record, questions, files):
    endpoint = record()
    environ = canary.in_files()
    path = Path(environ["PORTKEY_API_KEY_FILE"])
    match wrong:
        case "mode":
            path.chmod(0o640)
        case "lines" | "bytes":
            path.write_bytes(path.read_bytes() + (b"another line\n" if wrong == "lines" else b"\xff\x00"))
        case "both":
            environ["PORTKEY_API_KEY"] = canary.portkey
        case "missing":
            path.unlink()
    run = ["run", questions("first"), "-o", files.results_path, "--base-url", endpoint.base_url]
    for more in ([], ["--json"]):
        code, shown = words_of(*run, *more, **environ)
        assert code == 2
        assert "PORTKEY_API_KEY_FILE" in shown
        assert (f"chmod 600 {path}" in shown) == (wrong == "mode")
        canary.assert_unseen(files.results_path.parent, shown)
    assert not endpoint.received


def test_a_simulated_run_asks_for_no_key_file(command, canary, questions, files):
    command.environ |= canary.in_files() | canary.variables
    words = ["run", questions("first"), "-o", files.results_path, "--simulate"]
    ran = command(*words, patch=forked_command.SIMULATED_AT_ONCE)
    canary.assert_unseen(command.folder, ran.out, ran.err)
