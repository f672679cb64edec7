"""Nothing in a record changes where a request goes, or as whom: the request that left is looked at, byte for byte."""

import json

import forked_command
import pytest

command = forked_command.command

KEYS = {
    "PORTKEY_API_KEY": "pk-own-0123456789",
    "PORTKEY_VIRTUAL_KEY": "vk-own-0123456789",
    "OPENAI_API_KEY": "sk-own-0123456789",
}
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
ELSEWHERE = "http://127.0.0.2:9/v1"
HEADERS = {
    "Authorization": "Bearer other",
    "x-portkey-api-key": "other",
    "Host": "elsewhere",
    "Cookie": "a=b",
}

# What clients of this API, and the gateways behind it, take for an address or a key.
ATTEMPTS = {
    "base_url": ELSEWHERE,
    "api_base": ELSEWHERE,
    "api_key": "other",
    "organization": "other",
    "authorization": "Bearer other",
    "headers": HEADERS,
    "extra_headers": HEADERS,
    "default_headers": HEADERS,
    "extra_query": {"a": "b"},
    "extra_body": {"api_key": "other"},
    "endpoint": ELSEWHERE,
    "host": "elsewhere",
    "path": "/v1/other",
    "proxy": ELSEWHERE,
    "timeout": 0.001,
    "config": "pc-other",
    "provider": "other",
    "virtual_key": "other",
    "custom_host": ELSEWHERE,
    "x-portkey-api-key": "other",
    "x-portkey-custom-host": ELSEWHERE,
}
OF_AN_ATTEMPT = (
    "traceparent",
    "x-client-request-id",
    "x-portkey-trace-id",
    "x-portkey-span-id",
    "content-length",
)
GOOD = b'{"choices":[{"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(GOOD) + GOOD


@pytest.fixture
def send(command, serve, files, tmp_path):
    """Runs records; what left for the endpoint, in order."""

    def run(records, *words, code=0):
        server = serve(lambda _: ANSWER)
        path = tmp_path / "requests.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        argv = ["run", path, "-o", files.results_path, "--base-url", server.base_url, "--concurrency", 1]
        command(*argv, *words, code=code)
        return server.received

    return run


def constant(received):
    """What is the same for all requests of a run."""
    return received.first_line, {
        name: value
        for name, value in received.headers.items()
        if name not in OF_AN_ATTEMPT and name != "host"
    }


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, []),
        ({"OPENAI_API_KEY": KEYS["OPENAI_API_KEY"]}, []),
        (KEYS, ["--portkey-provider", "openai", "--portkey-config", "pc-own", "--cache-namespace", "own"]),
    ],
    ids=["no key", "OpenAI", "Portkey"],
)
def test_what_leaves_is_the_same_whatever_a_record_says(environ, words, command, send):
    command.environ |= environ
    plain = {"body": BODY}
    beside = [{"body": BODY, name: value} for name, value in ATTEMPTS.items()]
    inside = [{"body": {**BODY, name: value}} for name, value in ATTEMPTS.items()]
    bare = [{**BODY, name: value} for name, value in ATTEMPTS.items()]
    bare += [{**BODY, "method": "GET", "url": f"{ELSEWHERE}/chat/completions"}]
    metadata = [{"body": {**BODY, "metadata": {"api_key": "other"}, "user": "a\r\nAuthorization: other"}}]
    first, *others = send([plain, *beside, *inside, *bare, *metadata], *words)
    assert len(others) == 3 * len(ATTEMPTS) + 2
    assert first.first_line == "POST /v1/chat/completions HTTP/1.1"
    for received in others:
        assert constant(received) == constant(first)
        assert received.headers["host"] == first.headers["host"]
    # A body is the record's own, and what it names is said to the endpoint; to us it means nothing.
    bodies = [json.loads(received.body) for received in [first, *others]]
    assert bodies[: len(beside) + 1] == [BODY] * (len(beside) + 1)
    assert bodies[len(beside) + 1 :][: len(inside)] == [record["body"] for record in inside]
    assert bodies[-len(bare) - 1 : -1] == bare


REFUSED = [
    *(
        {"body": BODY, "url": url}
        for url in (ELSEWHERE, "//evil/v1/chat/completions", "/v1/../chat/completions")
    ),
    *({"body": BODY, "url": url} for url in ("/v1/chat/completions?key=1", "/v1/chat/completions#", "", 5)),
    *({"body": BODY, "method": method} for method in ("GET", "POST /evil HTTP/1.1\r\n", None)),
    *({"body": BODY, "portkey": {name: value}} for name, value in ATTEMPTS.items()),
    *(
        {"body": BODY, "portkey": {name: f"a{mark}Authorization: Bearer other"}}
        for name in ("trace_id", "span_id", "parent_span_id", "span_name", "cache_namespace")
        for mark in ("\r\n", "\n", "\r", "\0", "\x85", "\u2028", "é")
    ),
    {"body": BODY, "portkey": {"metadata": "a\r\nb: c"}},
    {"body": BODY, "portkey": {"cache_force_refresh": "true\r\nb: c"}},
]


def test_a_record_that_asks_for_another_address_or_key_fails_and_is_not_sent(command, send, files):
    command.environ |= KEYS
    received = send([{"body": BODY}, *REFUSED], code=1)
    assert len(received) == 1
    assert [line["error"]["code"] for line in files.errors] == ["invalid_request_line"] * len(REFUSED)
    assert {line["batchkit"]["attempts"] for line in files.errors} == {0}
    assert not any("Bearer other" in line["error"]["message"] for line in files.errors)


def test_what_metadata_say_stays_within_their_header(command, send):
    command.environ |= KEYS
    metadata = {"a\r\nAuthorization: other": "b\r\nHost: evil\0\u2028é😀", "_user": "x"}
    plain, received = send([{"body": BODY}, {"body": BODY, "portkey": {"metadata": metadata}}])
    own = received.headers["x-portkey-metadata"]
    assert json.loads(own) == metadata
    assert own.isascii()
    assert own.isprintable()
    assert received.headers.keys() == plain.headers.keys() | {"x-portkey-metadata"}
