"""What the answer to a chat completion request means.

`read_answer` is a judgement by tables: a word of the provider's (`error.code`, then `error.type`) outranks the status, and
the message is looked at only where both leave a question open. A status of 200 proves nothing; only a completion in
`choices` does.

The shapes are those of https://platform.openai.com/docs/api-reference/chat and https://portkey.ai/docs/api-reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from batchkit.records import Answer, Failure, FailureKind, Reply, Usage

__all__ = ["RETRY_AFTER_CAP_S", "read_answer", "read_request_id", "text_body"]

RETRY_AFTER_CAP_S = 300.0
"""Longest wait a server is granted; what asks for more reads as exactly this."""

_LINE_FEED, _CARRIAGE_RETURN = b"\n\r"
_TEXT_CHARS = 64 * 1024
_MESSAGE_CHARS = 1000
_WORD_CHARS = 200


def read_answer(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """What an answer that came whole means.

    `headers` are looked up by lower-case names. `now` is Unix time in seconds, for a Retry-After that is a date. A valid
    JSON body is kept as it came but for line breaks between its tokens, and for characters that are none (half of a
    surrogate pair, bytes that are no UTF-8), which become U+FFFD: a paid answer is not lost to a broken emoji.
    """
    document: Any
    try:
        document, is_json = orjson.loads(body), True
    except orjson.JSONDecodeError:
        body = _mended(body)
        try:
            document, is_json = orjson.loads(body), True
        except orjson.JSONDecodeError:
            document, is_json = None, False
    if is_json and (_LINE_FEED in body or _CARRIAGE_RETURN in body):
        # A line break within a JSON string is always escaped, so these only stand between tokens.
        body = body.translate(None, b"\r\n")

    if 200 <= status < 300 and is_json and type(document) is dict:
        finish_reason = _finish_reason(document)
        if finish_reason is not None and not document.get("error"):
            model = document.get("model")
            if type(model) is not str:
                model = ""
            usage = _read_usage(document.get("usage"))
            request_id = read_request_id(headers)
            if finish_reason not in _FILTERED:
                return Reply(
                    status,
                    request_id,
                    body,
                    model,
                    usage,
                    finish_reason or None,
                    _read_gateway_retries(headers) if _GATEWAY_RETRIES in headers else 0,
                    "x-portkey-cache-status" in headers
                    and headers["x-portkey-cache-status"].partition(",")[0] in _CACHE_HITS,
                )
            return Failure(
                FailureKind.CONTENT_FILTER,
                "content_filter",
                "the provider's filter withheld the answer",
                status=status,
                request_id=request_id,
                body=body,
                model=model,
                usage=usage,
                gateway_retries=_read_gateway_retries(headers),
            )
    return _read_failure(status, headers, document, body, is_json=is_json, now=now)


_FILTERED = frozenset({"content_filter", "safety", "SAFETY"})


def _finish_reason(document: dict[str, Any]) -> str | None:
    """Why the completion ended ("" if it does not say), or None if there is no completion.

    Of several choices the first speaks for all, unless it was filtered and another was not.
    """
    choices = document.get("choices")
    if type(choices) is not list:
        return None
    reason: str | None = None
    for choice in choices:
        if type(choice) is not dict or type(choice.get("message")) is not dict:
            return None
        reason = choice.get("finish_reason")
        if type(reason) is not str:
            return ""
        if reason not in _FILTERED:
            break
    return reason


_MOST_TOKENS = 10**12


def _read_usage(usage: Any) -> Usage | None:
    """The tokens, or None if they are missing or cannot be believed: unknown is not zero."""
    if type(usage) is not dict:
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (type(prompt) is type(completion) is int and 0 <= prompt <= _MOST_TOKENS >= completion >= 0):
        return None
    total = usage.get("total_tokens")
    if not (type(total) is int and 0 <= total <= _MOST_TOKENS):
        total = prompt + completion
    of_prompt, of_completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    if of_prompt is of_completion is None:
        return Usage(prompt, completion, total)
    return Usage(
        prompt,
        completion,
        total,
        # A sum cannot tell whose cached tokens were too many, and would take them off the price of other prompts.
        min(prompt, _detail(of_prompt, "cached_tokens")),
        _detail(of_completion, "reasoning_tokens"),
    )


def _detail(details: Any, name: str) -> int:
    count = details.get(name) if type(details) is dict else None
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else 0


_CACHE_HITS = frozenset({"HIT", "SEMANTIC HIT"})


_GATEWAY_RETRIES = "x-portkey-retry-attempt-count"


def _read_gateway_retries(headers: Mapping[str, str]) -> int:
    # A header that came twice is joined: "1, 1".
    text = headers.get(_GATEWAY_RETRIES)
    if not text:
        return 0
    text = text.partition(",")[0].strip()
    return int(text) if _SMALL_NUMBER.fullmatch(text) else 0


_SMALL_NUMBER = re.compile(r"-1|[0-9]{1,3}")

_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid", "cf-ray")


def read_request_id(headers: Mapping[str, str]) -> str:
    """The provider's name for the answer, "" if it gave none."""
    for name in _REQUEST_ID_HEADERS:
        if name in headers and (value := headers[name]):
            return _ascii(value[:_WORD_CHARS])
    return ""


def _ascii(header: str) -> str:
    """Header bytes that are no UTF-8 arrive as lone surrogates, which no JSON line can hold."""
    return header if header.isascii() else header.encode("ascii", "replace").decode()


# Any escape in a JSON string: a surrogate pair is matched as one, so that what is left of group 2 is half of one.
_ESCAPE = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


def _mended(body: bytes) -> bytes:
    """The body without a byte order mark, and with U+FFFD for what is no character."""
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").encode()
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found[2] else found[0], text)


# --- failures ------------------------------------------------------------------------------------------------------

_KIND_BY_WORD: Mapping[str, FailureKind] = {
    word: kind
    for kind, words in {
        FailureKind.QUOTA_EXHAUSTED: (
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "billing_hard_limit_reached",
            "enforced_spend_limit_reached",
            "billing_not_active",
            "billing_error",
        ),
        FailureKind.KEY_REFUSED: ("invalid_api_key", "authentication_error", "permission_error"),
        FailureKind.RATE_LIMITED: (
            "rate_limit_exceeded",
            "rate_limit_error",
            "too_many_requests",
            "resource_exhausted",
            "throttlingexception",
        ),
        FailureKind.OVERLOADED: ("slow_down", "overloaded", "overloaded_error", "engine_overloaded"),
        FailureKind.SERVER_ERROR: ("server_error", "internal_error", "internal_server_error"),
        FailureKind.TIMEOUT: ("timeout_error", "request_timeout", "deadline_exceeded"),
        FailureKind.NOT_FOUND: ("model_not_found", "deploymentnotfound"),
        FailureKind.CONTENT_FILTER: (
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "data_inspection_failed",
        ),
        FailureKind.INVALID_REQUEST: (
            "context_length_exceeded",
            "request_too_large",
            "string_above_max_length",
            "unsupported_parameter",
            "unsupported_value",
            "unknown_parameter",
            "missing_required_parameter",
            "invalid_value",
            "invalid_type",
            "invalid_prompt",
            "hooks_failed",
        ),
    }.items()
    for word in words
}
"""What a provider's own word means, whatever the status. In lower case."""

_KIND_BY_VAGUE_WORD: Mapping[str, FailureKind] = {
    "invalid_request_error": FailureKind.INVALID_REQUEST,
    "badrequesterror": FailureKind.INVALID_REQUEST,
    "not_found_error": FailureKind.NOT_FOUND,
    "requests": FailureKind.RATE_LIMITED,
    "tokens": FailureKind.RATE_LIMITED,
}
"""Words that say less than most statuses do (OpenAI's 401, 404 and 400 all are `invalid_request_error`): they count
where a success's status says nothing at all."""

_KIND_BY_STATUS: Mapping[int, FailureKind] = {
    401: FailureKind.KEY_REFUSED,
    402: FailureKind.QUOTA_EXHAUSTED,
    403: FailureKind.KEY_REFUSED,
    404: FailureKind.NOT_FOUND,
    408: FailureKind.TIMEOUT,
    409: FailureKind.SERVER_ERROR,
    412: FailureKind.QUOTA_EXHAUSTED,  # Portkey's budget
    425: FailureKind.SERVER_ERROR,
    429: FailureKind.RATE_LIMITED,
    501: FailureKind.INVALID_REQUEST,
    505: FailureKind.INVALID_REQUEST,
    529: FailureKind.OVERLOADED,
}
_KIND_BY_HUNDRED: Mapping[int, FailureKind] = {
    3: FailureKind.MISDIRECTED,
    4: FailureKind.INVALID_REQUEST,
    5: FailureKind.SERVER_ERROR,
}

_GATEWAY_TIMEOUTS = frozenset({504, 524})
"""Statuses behind which the provider may still be at work."""

_TOO_LARGE = re.compile(r"request too large|reduce your message size", re.IGNORECASE)
_NO_CREDIT = re.compile(r"credit balance is too low", re.IGNORECASE)
_OVERLOAD = re.compile(r"overload|(?:over|at) capacity|slow[ _]down", re.IGNORECASE)


class _Said(NamedTuple):
    """An error in the provider's words; "" and None for what it left out. `is_error` tells that it calls itself one."""

    code: str = ""
    type: str = ""
    message: str = ""
    status: int | None = None
    is_error: bool = False


def _read_failure(
    status: int, headers: Mapping[str, str], document: Any, body: bytes, *, is_json: bool, now: float
) -> Failure:
    said = _find_error(document) if is_json else _Said(message=_plain_text(body))
    model = document.get("model") if type(document) is dict else None
    maybe_billed = False
    if 200 <= status < 300 and not is_json:
        kind = FailureKind.NOT_AN_API
        # What begins as an object is an answer that broke on its way rather than a page from elsewhere.
        maybe_billed = body.lstrip().startswith(b"{")
        code = "broken_json" if maybe_billed else kind.value
        message = f"HTTP {status} with a body that is no JSON: {_excerpt(body)}"
    elif 200 <= status < 300 and type(document) is not dict:
        kind, code, message = FailureKind.NOT_AN_API, "", f"HTTP {status} with JSON that is no object"
    elif 200 <= status < 300 and "html-message" in document:
        kind, code = FailureKind.NOT_AN_API, ""
        message = (
            f"HTTP {status} with a page that a gateway wrapped in JSON: {_excerpt(said.message.encode())}"
        )
    elif 200 <= status < 300 and not said.is_error:
        kind, code = FailureKind.INVALID_RESPONSE, ""
        message = f"HTTP {status} without a completion" + (f": {said.message}" if said.message else "")
    else:
        kind, code = _judge(status, said)
        maybe_billed = (
            kind is FailureKind.TIMEOUT
            or status in _GATEWAY_TIMEOUTS
            or _is_lost_behind_gateway(headers, document)
            or _is_denied_when_answered(status, document)
        )
        message = said.message or _describe(status, headers, body, is_json=is_json)
    asked_s = _read_retry_after(headers, now)
    message = message[:_MESSAGE_CHARS]
    if asked_s is not None and asked_s > RETRY_AFTER_CAP_S:
        message += f" (it asks for a wait of {asked_s:.0f} s, and gets {RETRY_AFTER_CAP_S:.0f} s)"
    return Failure(
        kind,
        (code or kind.value)[:_WORD_CHARS],
        message,
        status=status,
        request_id=read_request_id(headers),
        body=body if is_json else text_body(body),
        model=model if type(model) is str else "",
        usage=_read_usage(document.get("usage")) if type(document) is dict else None,
        retry_after=None if asked_s is None else min(asked_s, RETRY_AFTER_CAP_S),
        should_retry=_SHOULD_RETRY.get(headers.get("x-should-retry", "").lower()),
        maybe_billed=maybe_billed,
        gateway_retries=_read_gateway_retries(headers),
    )


def _is_lost_behind_gateway(headers: Mapping[str, str], document: Any) -> bool:
    """Whether Portkey's gateway speaks of itself, which it does when a provider's answer broke on its way to it."""
    return headers.get("x-portkey-gateway-exception") == "true" or (
        type(document) is dict and "html-message" in document
    )


def _is_denied_when_answered(status: int, document: Any) -> bool:
    """Whether Portkey's guardrail denied what the provider had answered, and billed: those on the request ask nobody."""
    results = document.get("hook_results") if type(document) is dict else None
    return status == 446 and type(results) is dict and bool(results.get("after_request_hooks"))


_SHOULD_RETRY: Mapping[str, bool] = {"true": True, "false": False}


def _judge(status: int, said: _Said) -> tuple[FailureKind, str]:
    """The kind of an error, and the code to file it under ("" if the provider has no word for it)."""
    code = said.code or said.type
    words = (said.code.lower(), said.type.lower())
    telling = status
    if 200 <= status < 300:
        telling = said.status or 0
    kind = _KIND_BY_WORD.get(words[0]) or _KIND_BY_WORD.get(words[1])
    if kind is None and not telling:
        kind = _KIND_BY_VAGUE_WORD.get(words[0]) or _KIND_BY_VAGUE_WORD.get(words[1])
    if kind is None:
        kind = _KIND_BY_STATUS.get(telling) or _KIND_BY_HUNDRED.get(telling // 100, FailureKind.SERVER_ERROR)

    if kind is FailureKind.RATE_LIMITED and (telling == 413 or _TOO_LARGE.search(said.message)):
        # It will be as large the next time: no waiting makes it fit.
        return FailureKind.INVALID_REQUEST, "request_too_large"
    if kind in _MAY_MEAN_NO_CREDIT and _NO_CREDIT.search(said.message):
        return FailureKind.QUOTA_EXHAUSTED, "credit_balance_too_low"
    if kind is FailureKind.SERVER_ERROR and _OVERLOAD.search(said.message):
        return FailureKind.OVERLOADED, code
    if status == 446 and code in ("", "hooks_failed"):
        return kind, "guardrail_denied"
    if kind is FailureKind.MISDIRECTED:
        return kind, "redirected"
    return kind, code


_MAY_MEAN_NO_CREDIT = frozenset(
    {FailureKind.INVALID_REQUEST, FailureKind.KEY_REFUSED, FailureKind.RATE_LIMITED}
)


def _find_error(document: Any) -> _Said:
    """The words of an error, wherever a provider or a gateway keeps them.

    Known: `{"error": {…}}` and `{"error": "…"}`, the same in a list (Gemini), `{"errors": [{…}]}` (Cloudflare),
    `{"status": "failure", "message"}`, `{"success": false, "data": {"message", "errorCode"}}` and `{"html-message"}`
    (Portkey), `{"object": "error", "message", "type", "code"}` (vLLM), `{"detail": …}` (FastAPI).
    """
    if type(document) is list and document:
        document = document[0]
    if type(document) is not dict:
        return _Said(message=document if type(document) is str else "")
    error = document.get("error") or document.get("errors")
    if type(error) is list:
        error = error[0] if error else None
    failed = (
        bool(error)
        or document.get("status") == "failure"
        or document.get("success") is False
        or "error" in (document.get("object"), document.get("type"))
    )
    inner = (
        error if type(error) is dict else document.get("data") if document.get("success") is False else None
    )
    if type(inner) is not dict:
        inner = document
    code = _word(inner.get("code")) or _word(inner.get("errorCode"))
    kind = _word(inner.get("type")) or _word(inner.get("error_type")) or _word(inner.get("status"))
    number = int(code) if len(code) == 3 and code.isascii() and code.isdigit() else None
    return _Said(
        "" if code.isdigit() else code,
        "" if kind.isdigit() else kind,
        _message(inner) or (error if type(error) is str else _message(document)),
        number if number is not None and 400 <= number < 600 else None,
        failed,
    )


def _word(value: Any) -> str:
    if type(value) is int:
        return str(value)
    return value if type(value) is str and value not in _EMPTY_WORDS else ""


_EMPTY_WORDS = frozenset({"error", "failure"})
"""They say that something failed, not what."""


def _message(document: dict[str, Any]) -> str:
    for name in ("message", "html-message", "detail"):
        value = document.get(name)
        if value:
            return value if type(value) is str else orjson.dumps(value).decode()
    return ""


def _describe(status: int, headers: Mapping[str, str], body: bytes, *, is_json: bool) -> str:
    if 300 <= status < 400:
        try:
            host = urlsplit(_ascii(headers.get("location", ""))).hostname
        except ValueError:
            host = None
        return f"HTTP {status}: a redirect{f' to {host}' if host else ''}, and redirects are not followed"
    return f"HTTP {status}" + ("" if is_json else f": {_excerpt(body)}")


def _excerpt(body: bytes) -> str:
    return " ".join(body[:400].decode("utf-8", "replace").split())[:200] or "an empty body"


def _plain_text(body: bytes) -> str:
    """What a body that is no JSON says in plain words: a proxy's one-line error, but no web page."""
    return "" if body.lstrip()[:1] in (b"", b"<") else _excerpt(body)


def text_body(body: bytes) -> bytes:
    """What is kept of a body that is no JSON: the JSON string of its first 64 K characters."""
    text = body[: 4 * _TEXT_CHARS].decode("utf-8", "replace")
    if len(body) > _TEXT_CHARS and (len(text) > _TEXT_CHARS or len(body) > 4 * _TEXT_CHARS):
        text = f"{text[:_TEXT_CHARS]}… [cut here; {len(body)} bytes in all]"
    return orjson.dumps(text)


def _read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that was asked for, in seconds from 0 on; None if there is none that makes sense."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return max(milliseconds / 1000, 0.0)
    text = headers.get("retry-after", "")[:_WORD_CHARS].strip()
    if not text:
        return None
    seconds = _number(text)
    if seconds is None:
        try:
            when = parsedate_to_datetime(text)
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            # A gateway joins a header that came twice: "5, 5".
            seconds = _number(text.partition(",")[0])
    return None if seconds is None else max(seconds, 0.0)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number
