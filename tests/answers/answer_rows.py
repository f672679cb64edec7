"""The table of answers as data: what a server does with each attempt, and what stands in the output for it.

`docs/answers.md` tells the same to users. A row is one request; what it `sends` is a list of the attempts on it, and no
further attempt follows. Unless the row is about a first answer, the endpoint has proven itself before.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field

import orjson
from scripted_server import (
    CHUNKED,
    Sends,
    dripping,
    endless,
    hanging,
    http,
    resetting,
    stalling,
    then_closing,
)

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def completion(**changes: object) -> bytes:
    return orjson.dumps({"id": "c-1", "model": "m-1", "choices": [CHOICE], "usage": USAGE, **changes})


def error(**fields: object) -> bytes:
    return orjson.dumps({"error": fields})


BODY = completion()
GOOD = http(200, BODY, "x-request-id: r-1")


@dataclass(frozen=True)
class Result:
    """A line in the results, with the body as it was sent; `flags` stand beside it."""

    status: int = 200
    body: bytes = BODY
    flags: tuple[str, ...] = ()
    unknown_usage: bool = False


@dataclass(frozen=True)
class Failed:
    """A line among the errors. `body` is the JSON that is kept of the answer; without a status no answer came."""

    code: str
    reason: str
    status: int | None = None
    body: bytes | None = None


@dataclass(frozen=True)
class Stopped:
    """The run ends with this reason, and the request stays open for the next run."""

    reason: str


@dataclass(frozen=True)
class Row:
    """`retries` says why attempts were repeated; `maybe_billed` counts those without an answer that may cost all the same.

    `waits` marks rows with waits of seconds: they run on a clock that nobody waits for.
    """

    says: str
    sends: tuple[Sends, ...]
    stands: Result | Failed | Stopped
    retries: dict[str, int] = field(default_factory=dict)
    maybe_billed: int = 0
    gateway_retries: int = 0
    proven_by: Sends | None = GOOD
    timeout: float = 10.0
    waits: bool = False


# --- results -------------------------------------------------------------------------------------------------------

TOOLS = completion(
    choices=[{"message": {"content": None, "tool_calls": [{"id": "t"}]}, "finish_reason": "tool_calls"}]
)
CUT_SHORT = completion(choices=[{**CHOICE, "finish_reason": "length"}])
NO_USAGE = orjson.dumps({"id": "c-1", "choices": [CHOICE]})
DEFLATED = zlib.compressobj(wbits=-15)

RESULTS = [
    Row("a completion is a result", (GOOD,), Result()),
    Row("a call of tools is a result", (http(200, TOOLS),), Result(body=TOOLS)),
    Row(
        "an answer that ran into its length limit is a result, marked: asking again would only bill again",
        (http(200, CUT_SHORT),),
        Result(body=CUT_SHORT, flags=("truncated",)),
    ),
    Row(
        "246, a completion that a guardrail objected to, was paid for and is a result, marked",
        (http(246, BODY),),
        Result(status=246, flags=("guardrail",)),
    ),
    Row(
        "an answer out of the gateway's cache is a result, marked",
        (http(200, BODY, "x-portkey-cache-status: HIT"),),
        Result(flags=("from_cache",)),
    ),
    Row(
        "a completion without usage is a result of unknown cost",
        (http(200, NO_USAGE),),
        Result(body=NO_USAGE, unknown_usage=True),
    ),
    Row(
        "usage that cannot be believed is unknown",
        (http(200, completion(usage={"prompt_tokens": -1, "completion_tokens": 2})),),
        Result(body=completion(usage={"prompt_tokens": -1, "completion_tokens": 2}), unknown_usage=True),
    ),
    Row(
        "a gateway's retries before a good answer are counted",
        (http(200, BODY, "x-portkey-retry-attempt-count: 2"),),
        Result(),
        gateway_retries=2,
    ),
    Row(
        "chunks are put together",
        (CHUNKED + b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n\r\n",),
        Result(),
    ),
    Row("gzip is unpacked", (http(200, gzip.compress(BODY), "Content-Encoding: gzip"),), Result()),
    Row(
        "deflate without a frame is unpacked",
        (http(200, DEFLATED.compress(BODY) + DEFLATED.flush(), "Content-Encoding: deflate"),),
        Result(),
    ),
    Row(
        "a gateway that unpacked the body and left the header standing is understood",
        (http(200, BODY, "Content-Encoding: gzip"),),
        Result(),
    ),
    Row(
        "a body that ends with its connection is whole",
        (then_closing(b"HTTP/1.1 200 OK\r\n\r\n" + BODY),),
        Result(),
    ),
    Row("a 100 before the answer is skipped", (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,), Result()),
    Row(
        "a pretty-printed body is kept on one line",
        (http(200, BODY.replace(b",", b",\r\n  ")),),
        Result(body=BODY.replace(b",", b",  ")),
    ),
    Row(
        "half a character does not cost the answer",
        (http(200, BODY.replace(b'"Hi"', rb'"\ud83d"')),),
        Result(body=BODY.replace(b'"Hi"', rb'"\ufffd"')),
    ),
    Row(
        "a kept connection that the server has closed meanwhile costs no attempt",
        (GOOD,),
        Result(),
        proven_by=then_closing(GOOD),
    ),
]

# --- 200 without a completion --------------------------------------------------------------------------------------

HTML = b"<html>please sign in</html>"
HTML_KEPT = orjson.dumps(HTML.decode())
EMPTY = completion(choices=[])
FILTERED = completion(choices=[{**CHOICE, "finish_reason": "content_filter"}])
ODD = [
    ("choices missing", orjson.dumps({"id": "c-1"})),
    ("choices null", completion(choices=None)),
    ("a choice without a message", completion(choices=[{"index": 0}])),
]
NO_API = [
    ("HTML", HTML),
    ("plain text", b"ok"),
    ("nothing at all", b""),
    ("a list", b"[]"),
    ("a page that a gateway wrapped", orjson.dumps({"html-message": "<html>"})),
]

USELESS = [
    Row(
        "a filtered completion is a failure at once, and what it cost is kept",
        (http(200, FILTERED),),
        Failed("content_filter", "content_filter", 200, FILTERED),
    ),
    Row(
        "a completion without choices is asked again twice, and kept",
        (http(200, EMPTY),) * 3,
        Failed("invalid_response", "invalid_response", 200, EMPTY),
        retries={"invalid_response": 2},
    ),
    *(
        Row(
            f"{what}: asked again, and good the second time",
            (http(200, body), GOOD),
            Result(),
            retries={"invalid_response": 1},
        )
        for what, body in ODD
    ),
    Row(
        "HTML with 200 is asked again three times, and kept",
        (http(200, HTML),) * 4,
        Failed("not_an_api", "not_an_api", 200, HTML_KEPT),
        retries={"not_an_api": 3},
    ),
    *(
        Row(
            f"{what} with 200, asked again, and good the second time",
            (http(200, body), GOOD),
            Result(),
            retries={"not_an_api": 1},
        )
        for what, body in NO_API
    ),
    *(
        Row(
            f"{what} as the very first answer ends the run: this is no API",
            (http(200, body),),
            Stopped("not_an_api"),
            proven_by=None,
        )
        for what, body in NO_API
    ),
    Row(
        "204 is no answer",
        (b"HTTP/1.1 204 No Content\r\n\r\n", GOOD),
        Result(),
        retries={"not_an_api": 1},
    ),
    Row(
        "JSON that breaks off within its length may have been billed, and is kept",
        (http(200, BODY[:40]),) * 4,
        Failed("broken_json", "not_an_api", 200, orjson.dumps(BODY[:40].decode())),
        retries={"not_an_api": 3},
        maybe_billed=4,
    ),
    Row(
        "an unpacked body over 32 MiB is not read to its end",
        (http(200, gzip.compress(bytes(40 << 20), 1), "Content-Encoding: gzip"), GOOD),
        Result(),
        retries={"invalid_response": 1},
        maybe_billed=1,
    ),
    Row(
        "nor is an endless one",
        (endless, GOOD),
        Result(),
        retries={"invalid_response": 1},
        maybe_billed=1,
    ),
    Row(
        "a compression that was not asked for is a failure after two more attempts",
        (http(200, b"\0\0", "Content-Encoding: br"),) * 3,
        Failed("unreadable_encoding", "invalid_response", 200),
        retries={"invalid_response": 2},
        maybe_billed=3,
    ),
    Row(
        "what is no HTTP is asked again",
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", GOOD),
        Result(),
        retries={"invalid_response": 1},
        maybe_billed=1,
    ),
]

INSIDE = [
    ("a broken server", error(type="server_error"), "server_error"),
    ("an error without a word for itself", error(message="?"), "server_error"),
    ("a number as its code", error(code="502"), "server_error"),
    ("Portkey's failure", orjson.dumps({"status": "failure", "message": "no"}), "server_error"),
]
USELESS += [
    Row(f"200 with {what} inside counts as that", (http(200, body), GOOD), Result(), retries={reason: 1})
    for what, body, reason in INSIDE
]
USELESS += [
    Row(
        "200 with a refused request inside is a failure at once",
        (http(200, error(type="invalid_request_error")),),
        Failed("invalid_request_error", "invalid_request", 200, error(type="invalid_request_error")),
    ),
    Row(
        "200 with a used-up quota inside ends the run",
        (http(200, error(code="insufficient_quota")),),
        Stopped("insufficient_quota"),
    ),
    Row(
        "200 with a rate limit inside is one",
        (http(200, error(code="rate_limit_exceeded")), GOOD),
        Result(),
        retries={"rate_limited": 1},
        waits=True,
    ),
]

LARGE_HEADERS = [
    Row("headers of 60 KB are normal", (http(200, BODY, "x-large: " + "h" * 60_000),), Result()),
    Row(
        "a header over 64 KB is no HTTP to us",
        (http(200, BODY, "x-huge: " + "h" * 70_000),) * 3,
        Failed("malformed_http", "invalid_response"),
        retries={"invalid_response": 2},
        maybe_billed=3,
    ),
]

# --- broken on the way ---------------------------------------------------------------------------------------------

BROKEN: list[tuple[str, Sends]] = [
    (
        "a connection that ends before its Content-Length",
        then_closing(http(200, BODY[:30], length=len(BODY))),
    ),
    ("a chunk that is cut", then_closing(CHUNKED + b"ff\r\n{")),
    ("chunks without their end", then_closing(CHUNKED + b"5\r\n" + BODY[:5] + b"\r\n")),
    ("gzip that is cut", http(200, gzip.compress(BODY)[:-9], "Content-Encoding: gzip")),
    ("a reset after sending", resetting),
    ("a close instead of an answer", then_closing(b"")),
    ("half a status line", then_closing(b"HTTP/1.1 200 O")),
]
SLOW: list[tuple[str, Sends]] = [
    ("no answer at all", hanging),
    ("an answer that stops in the middle", stalling(http(200, BODY[:30], length=len(BODY)))),
    ("headers and nothing more", stalling(http(200, length=100))),
    ("one byte now and then", dripping),
]

LOST = [
    *(
        Row(
            f"{what} is asked again, and may have been billed",
            (sends, GOOD),
            Result(),
            retries={"connection_error": 1},
            maybe_billed=1,
        )
        for what, sends in BROKEN
    ),
    Row(
        "an answer that is cut six times is a failure",
        (BROKEN[0][1],) * 6,
        Failed("answer_cut", "connection_error", 200, orjson.dumps(BODY[:30].decode())),
        retries={"connection_error": 5},
        maybe_billed=6,
    ),
    Row(
        "a connection that is reset six times is a failure",
        (resetting,) * 6,
        Failed("connection_error", "connection_error"),
        retries={"connection_error": 5},
        maybe_billed=6,
    ),
    *(
        Row(
            f"{what} within the timeout is asked again, and may have been billed",
            (sends, GOOD),
            Result(),
            retries={"timeout": 1},
            maybe_billed=1,
            timeout=0.3,
        )
        for what, sends in SLOW
    ),
    Row(
        "a server that never answers fails the request after six attempts",
        (hanging,) * 6,
        Failed("timeout", "timeout"),
        retries={"timeout": 5},
        maybe_billed=6,
        timeout=0.3,
    ),
]

# --- statuses ------------------------------------------------------------------------------------------------------

AGAIN = {409: 0, 425: 0, 500: 0, 502: 0, 503: 0, 504: 1, 520: 0, 521: 0, 522: 0, 523: 0, 524: 1, 599: 0}
"""Statuses of a server that may do better the next time, and whether the provider may have worked behind it."""
FOR_GOOD = [
    (400, error(code="context_length_exceeded"), "context_length_exceeded", "invalid_request"),
    (400, error(type="invalid_request_error"), "invalid_request_error", "invalid_request"),
    (400, error(code="unsupported_parameter"), "unsupported_parameter", "invalid_request"),
    (400, error(code="content_policy_violation"), "content_policy_violation", "content_filter"),
    (400, error(code="content_filter"), "content_filter", "content_filter"),
    (404, error(code="model_not_found", message="no such model"), "model_not_found", "not_found"),
    (405, error(message="no"), "invalid_request", "invalid_request"),
    (413, error(type="request_too_large"), "request_too_large", "invalid_request"),
    (418, error(message="no"), "invalid_request", "invalid_request"),
    (422, orjson.dumps({"detail": [{"loc": ["body"]}]}), "invalid_request", "invalid_request"),
    (431, error(message="headers"), "invalid_request", "invalid_request"),
    (446, orjson.dumps({"error": {"type": "hooks_failed"}, "hook_results": {}}), "guardrail_denied", "invalid_request"),
    (501, error(message="not here"), "invalid_request", "invalid_request"),
    (505, error(message="which HTTP?"), "invalid_request", "invalid_request"),
    (429, error(code="rate_limit_exceeded", message="Request too large for m"), "request_too_large", "invalid_request"),
]  # fmt: skip
ENDS_AFTER_SUCCESS = [
    (402, error(message="pay"), "quota_exhausted"),
    (412, error(message="budget"), "quota_exhausted"),
    (400, error(message="Your credit balance is too low"), "credit_balance_too_low"),
    *((status, b"", "redirected") for status in (301, 302, 303, 307, 308)),
    *(
        (429, error(code=code, type="requests"), code)
        for code in (
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "billing_hard_limit_reached",
            "enforced_spend_limit_reached",
        )
    ),
    (429, error(type="insufficient_quota"), "insufficient_quota"),
]
ENDS_AT_FIRST = [
    (401, error(code="invalid_api_key"), "invalid_api_key"),
    (403, error(message="no"), "key_refused"),
    (404, HTML, "not_found"),
]
SLOWER = [
    (429, b"", "rate_limited"),
    (429, error(code="rate_limit_exceeded", type="tokens"), "rate_limited"),
    (429, error(code=429, status="RESOURCE_EXHAUSTED"), "rate_limited"),
    (503, error(code="slow_down"), "overloaded"),
    (503, error(message="The model is overloaded"), "overloaded"),
    (529, error(type="overloaded_error"), "overloaded"),
]


def words(body: bytes) -> str:
    """What an error's body says first."""
    if not body or body is HTML:
        return "with a page" if body else "without a word"
    said = orjson.loads(body).get("error", {"type": "a detail"})
    word = said.get("code") or ("type" in said and f"the type {said['type']}")
    return f"with {word or repr(said['message'])}"


STATUSES = [
    *(
        Row(
            f"{status} is asked again",
            (http(status, error(message="no")), GOOD),
            Result(),
            retries={"server_error": 1},
            maybe_billed=billed,
        )
        for status, billed in AGAIN.items()
    ),
    Row(
        "408, a timeout of the gateway's, is asked again and may have been billed",
        (http(408, error(type="timeout_error")), GOOD),
        Result(),
        retries={"timeout": 1},
        maybe_billed=1,
    ),
    Row(
        "500 six times is a failure that keeps the last body",
        (http(500, error(message="no")),) * 6,
        Failed("server_error", "server_error", 500, error(message="no")),
        retries={"server_error": 5},
    ),
    Row(
        "a page with 502 is kept as text",
        (http(502, HTML),) * 6,
        Failed("server_error", "server_error", 502, HTML_KEPT),
        retries={"server_error": 5},
    ),
    *(
        Row(
            f"{status} {words(body)} is a failure at once, and its body is kept",
            (http(status, body),),
            Failed(code, reason, status, body),
        )
        for status, body, code, reason in FOR_GOOD
    ),
    *(
        Row(
            f"{status} {words(body)} ends the run, also after a success", (http(status, body),), Stopped(code)
        )
        for status, body, code in ENDS_AFTER_SUCCESS
    ),
    *(
        Row(
            f"{status} {words(body)} as the first answer ends the run",
            (http(status, body),),
            Stopped(code),
            proven_by=None,
        )
        for status, body, code in ENDS_AT_FIRST
    ),
    Row(
        "401 once after a success is a hiccup of the gateway's",
        (http(401, error(code="invalid_api_key")), GOOD),
        Result(),
        retries={"key_refused": 1},
    ),
    Row(
        "401 or 403 three times in a minute is none",
        (http(401), http(403), http(401, error(code="invalid_api_key"))),
        Stopped("invalid_api_key"),
    ),
    *(
        Row(
            f"{status} {words(body)} slows the run down and costs no attempt",
            (*[http(status, body)] * 10, GOOD),
            Result(),
            retries={reason: 10},
            waits=True,
        )
        for status, body, reason in SLOWER
    ),
]

# --- the server's own word -----------------------------------------------------------------------------------------

YES, NO = "x-should-retry: true", "x-should-retry: false"
SAID = [
    Row(
        "x-should-retry: false makes an end of a 500",
        (http(500, error(message="no"), NO),),
        Failed("server_error", "server_error", 500, error(message="no")),
    ),
    Row(
        "x-should-retry: true asks a 400 again",
        (http(400, error(message="no"), YES), GOOD),
        Result(),
        retries={"invalid_request": 1},
    ),
    Row(
        "but not without an end",
        (http(400, error(message="no"), YES),) * 6,
        Failed("invalid_request", "invalid_request", 400, error(message="no")),
        retries={"invalid_request": 5},
    ),
    Row(
        "x-should-retry: true does not bring back a used-up quota",
        (http(429, error(code="insufficient_quota"), YES),),
        Stopped("insufficient_quota"),
    ),
    Row(
        "x-should-retry: false makes no failure of a rate limit",
        (http(429, b"", NO), GOOD),
        Result(),
        retries={"rate_limited": 1},
        waits=True,
    ),
    Row(
        "a gateway that has spent its own retries is asked once more, not five times",
        (http(502, error(message="no"), "x-portkey-retry-attempt-count: -1"),) * 2,
        Failed("server_error", "server_error", 502, error(message="no")),
        retries={"server_error": 1},
        gateway_retries=2,
    ),
]

OTHERS = RESULTS + STATUSES + SAID
ROWS = OTHERS + USELESS + LARGE_HEADERS + LOST
