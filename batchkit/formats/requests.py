"""Input lines to requests. Three shapes, mixed freely:

    {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}     OpenAI Batch
    {"messages": […], …}                                                                 the body itself
    {"custom_id": …, "body": {…}, "portkey": {…}}                                         with fields for Portkey

A line that cannot become a request is a `BadLine`, never an exception: it fails with its number and the run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import orjson

from batchkit.formats.headers import EndpointAddress, attempt_headers
from batchkit.records import METADATA_VALUE_CHARS, BadLine, Line, PortkeyFields, Request, Trace

__all__ = [
    "BAD_LINE_CODE",
    "HEADER_TEXT_CHARS",
    "MAX_LINE_BYTES",
    "METADATA_KEYS",
    "METADATA_KEY_CHARS",
    "METADATA_TEXT_CHARS",
    "is_header_text",
    "parse_line",
    "parse_record",
    "read_body",
    "sent_body",
]

MAX_LINE_BYTES = 64 * 1024 * 1024
BAD_LINE_CODE = "invalid_request_line"
HEADER_TEXT_CHARS = 512
"""Longest text that a record, or a run, gives to one header."""
METADATA_KEYS = 64
METADATA_KEY_CHARS = 128
METADATA_TEXT_CHARS = 512
"""What of a record's metadata stands in its line: so many keys, none longer than this, with values cut after that."""

_PATHS = frozenset({"/v1/chat/completions", "/chat/completions"})
_HEADER_SAFE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PORTKEY_STRINGS = ("trace_id", "span_id", "parent_span_id", "span_name", "cache_namespace")
_PORTKEY_FIELDS = frozenset({*_PORTKEY_STRINGS, "metadata", "cache_force_refresh"})
_ANY_GATEWAY = EndpointAddress("", portkey=True)
"""Stands for the endpoint while it is not known: whatever else it is sent, a record's own headers must get through."""


class _Bad(Exception):
    pass


def is_header_text(text: str) -> bool:
    """Whether a header carries it as it is, through every server in between: printable ASCII, no space at its ends."""
    return len(text) <= HEADER_TEXT_CHARS and _HEADER_SAFE.fullmatch(text) is not None


def parse_line(
    line: Line, defaults: Mapping[str, Any], address: EndpointAddress = _ANY_GATEWAY
) -> Request | BadLine:
    """Read one input line; `defaults` are body fields to fill in where the record has none.

    `address` is where it is to be sent, whose headers and the record's must get through together; without one the record's
    are looked at alone.
    """
    raw = line.raw
    if raw is None:
        return BadLine(
            line.index,
            _line_id(line.index),
            BAD_LINE_CODE,
            f"the line is longer than {MAX_LINE_BYTES >> 20} MiB",
        )
    checksum = crc32(raw)
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        message = f"not valid JSON: {error}{_what_else(raw)}"
        return BadLine(line.index, _line_id(line.index), BAD_LINE_CODE, message, checksum)
    return parse_record(record, line.index, defaults, checksum, address)


def parse_record(
    record: Any,
    index: int,
    defaults: Mapping[str, Any],
    input_crc32: int = 0,
    address: EndpointAddress = _ANY_GATEWAY,
) -> Request | BadLine:
    """Read one record, as decoded from JSON or as a Python caller gives it."""
    custom_id: str | None = None
    metadata: Mapping[str, str] = {}
    try:
        if type(record) is not dict and not isinstance(record, Mapping):
            raise _Bad(f"a record is a JSON object, not {_json_type(record)}")
        own_id = record.get("custom_id")
        if own_id is None:
            custom_id = _line_id(index)
        elif not isinstance(own_id, str):
            raise _Bad(f"custom_id is a string, not {_json_type(own_id)}")
        else:
            own_id.encode()
            custom_id = own_id
        portkey = record.get("portkey")
        body = record.get("body")
        if portkey is not None or "metadata" in record or type(body) is not dict or "metadata" in body:
            metadata = _metadata_of(record)
        body = _body_of(record)
        if defaults:
            body = _filled(body, defaults)
        _check_body(body)
        return Request(
            index,
            custom_id,
            # orjson leaves a small body in a block of several kilobytes; thousands are held while they are in flight. What is
            # cut off from a newline is a copy.
            orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)[:-1],
            body.get("model"),
            _token_limit(body),
            input_crc32,
            None if portkey is None else _portkey_fields(portkey, address),
            metadata,
        )
    except _Bad as bad:
        message = str(bad)
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        message = f"cannot be written as JSON: {error}"
    return BadLine(
        index,
        _line_id(index) if custom_id is None else custom_id,
        BAD_LINE_CODE,
        message,
        input_crc32,
        metadata,
    )


def sent_body(request: Request) -> dict[str, Any]:
    """The body of a request, read again."""
    body: dict[str, Any] = orjson.loads(request.body)
    return body


def read_body(raw: bytes, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body that an input line would be sent with; None for a line that is no request."""
    try:
        record = orjson.loads(raw)
        if not isinstance(record, Mapping) or not isinstance(record.get("custom_id"), str | None):
            return None
        body = _body_of(record)
        if defaults:
            body = _filled(body, defaults)
        _check_body(body)
    except (_Bad, orjson.JSONDecodeError):
        return None
    return body


def _what_else(raw: bytes) -> str:
    """What a line that is no JSON looks like, if it looks like what people give for JSONL."""
    start = raw[:100]
    if 0.4 * len(start) <= start.count(b"\0") <= 0.6 * len(start):
        return "; it looks like UTF-16: save the input as UTF-8"
    if raw[:1] != b"{" or raw == b"{":
        return "; JSONL has one whole JSON object in each line"
    return ""


def _line_id(index: int) -> str:
    return f"line-{index}"


def _body_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The body to send, which may be the record's own."""
    if "body" not in record:
        if "messages" not in record:
            raise _Bad('neither "body" nor "messages": one of them holds the request')
        return {name: value for name, value in record.items() if name not in ("custom_id", "portkey")}
    method = record.get("method", "POST")
    if method != "POST":
        raise _Bad(f'method is "POST", not {str(method)[:200]!r}')
    url = record.get("url", "/v1/chat/completions")
    if not isinstance(url, str) or url not in _PATHS:
        raise _Bad(
            f'url is "/v1/chat/completions", not {str(url)[:200]!r}: where requests go is decided by the run alone'
        )
    body = record["body"]
    if type(body) is dict:
        return body
    if not isinstance(body, Mapping):
        raise _Bad(f"body is a JSON object, not {_json_type(body)}")
    return dict(body)


def _filled(body: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(body)
    for name, value in defaults.items():
        if name not in filled or (name == "model" and filled[name] is None):
            filled[name] = value
    return filled


def _check_body(body: Mapping[str, Any]) -> None:
    messages = body.get("messages")
    if (type(messages) is not list and not isinstance(messages, list | tuple)) or not messages:
        raise _Bad("messages is a list of at least one message")
    if body.get("stream"):
        raise _Bad('"stream": true cannot be batched; leave it out')
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise _Bad(f"model is a string, not {_json_type(model)}")


def _token_limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if name not in body:
            continue
        value = body[name]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _metadata_of(record: Mapping[str, Any]) -> Mapping[str, str]:
    """What the record says of itself, by which a report can be grouped: only what can be used, for nothing else needs it.

    It may stand beside the body, in it, and among the fields for Portkey; of two values for one key the last of these wins.
    """
    body, portkey = record.get("body"), record.get("portkey")
    # A dict is known at a glance, and any other mapping is not.
    places = [record.get("metadata")]
    places += [
        inner.get("metadata")
        for inner in (body, portkey)
        if type(inner) is dict or (inner is not None and isinstance(inner, Mapping))
    ]
    found: dict[str, str] = {}
    for metadata in places:
        if metadata is None or not isinstance(metadata, Mapping):
            continue
        for name, value in metadata.items():
            if not isinstance(name, str) or len(name) > METADATA_KEY_CHARS:
                continue
            if name in found or len(found) < METADATA_KEYS:
                text = value if isinstance(value, str) else orjson.dumps(value).decode()
                found[name] = text[:METADATA_TEXT_CHARS]
    return found


def _portkey_fields(fields: Any, address: EndpointAddress) -> PortkeyFields:
    if not isinstance(fields, Mapping):
        raise _Bad(f"portkey is a JSON object, not {_json_type(fields)}")
    unknown = sorted(str(name) for name in fields if name not in _PORTKEY_FIELDS)
    if unknown:
        raise _Bad(f"portkey has no field {unknown[0]!r}; it has {', '.join(sorted(_PORTKEY_FIELDS))}")
    strings: dict[str, str] = {}
    for name in _PORTKEY_STRINGS:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not is_header_text(value):
            raise _Bad(
                f"portkey.{name} travels in a header: a string of 1 to {HEADER_TEXT_CHARS} printable ASCII characters"
            )
        strings[name] = value
    refresh = fields.get("cache_force_refresh")
    if refresh is not None and not isinstance(refresh, bool):
        raise _Bad(f"portkey.cache_force_refresh is true or false, not {_json_type(refresh)}")
    read = PortkeyFields(
        **strings, metadata=_metadata(fields.get("metadata")), cache_force_refresh=bool(refresh)
    )
    span_id, parent_span_id = read.span_id or "", read.parent_span_id or ""
    # The attempts' ids are not made yet; a retry's span is a child of the record's own.
    longest = Trace(
        read.trace_id or "0" * 32,
        max(span_id, "0" * 16, key=len),
        max(span_id, parent_span_id, key=len) or None,
    )
    try:
        attempt_headers(address, read, longest)
    except ValueError as error:
        raise _Bad(str(error)) from None
    return read


def _metadata(metadata: Any) -> Mapping[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise _Bad(f"portkey.metadata is a JSON object, not {_json_type(metadata)}")
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str) or len(value) > METADATA_VALUE_CHARS:
            raise _Bad(
                f"portkey.metadata[{str(name)[:100]!r}] is a string of at most {METADATA_VALUE_CHARS} characters"
            )
        f"{name}{value}".encode()
    return dict(metadata)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(
        type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    )
