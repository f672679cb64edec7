"""What an attempt sends beside its body: where, as whom, and which request it is.

There are two sets of headers. Those that never change during a run are made once by `endpoint_address`; `attempt_headers`
adds the few that belong to one attempt.

Portkey's are those of https://portkey.ai/docs/api-reference/headers, the others those of
https://www.w3.org/TR/trace-context/ and https://platform.openai.com/docs/api-reference/debugging-requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from batchkit.errors import UsageError
from batchkit.formats.proxies import Proxy
from batchkit.records import METADATA_VALUE_CHARS, PortkeyFields, Trace

__all__ = [
    "HEADER_BYTES",
    "SHORTEST_KEY",
    "EndpointAddress",
    "attempt_headers",
    "endpoint_address",
    "id_lines",
]

HEADER_BYTES = 15 * 1024
"""Most bytes our headers may take: a gateway on Node answers 431 at 16 KB, the request line and Host included."""

_NAMESPACE = "batchkit"
_CACHES = re.compile(r'"cache"\s*:\s*\{')
"""In a config that is spelled out; what a slug stands for only Portkey knows."""

SHORTEST_KEY = 12
"""Shorter keys are placeholders such as EMPTY or none, and would be found in innocent text."""


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """Where a run sends its requests, and as whom.

    `headers` go with every request and hold the keys; `secrets` are those keys once more, also as JSON spells them and the
    longest first, so that they can be taken out of an answer that repeats them. Neither shows in the repr. `metadata` are
    the run's own Portkey metadata, already in `headers`, under those of a record. `portkey` tells which trace headers are
    understood. `proxy` is what requests pass on their way, None where they go straight.
    """

    base_url: str
    portkey: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    proxy: Proxy | None = None

    @property
    def url(self) -> str:
        """What is POSTed to."""
        return self.base_url + "/chat/completions"


def endpoint_address(
    base_url: str,
    *,
    version: str,
    timeout: float,
    openai_api_key: str | None = None,
    portkey_api_key: str | None = None,
    portkey_virtual_key: str | None = None,
    portkey_config: str | None = None,
    portkey_provider: str | None = None,
    portkey_metadata: Mapping[str, str] | None = None,
    cache_namespace: str | None = None,
    cache_force_refresh: bool = False,
    config_keys: Iterable[str] = (),
    proxy: Proxy | None = None,
) -> EndpointAddress:
    """The address of a run; `timeout` is an attempt's, in seconds, `version` ours, `config_keys` what `portkey_config` holds.

    An endpoint is Portkey's when a Portkey key, config or provider is given. The OpenAI key goes to it only where a
    provider is named, for then it is that provider's key; without one it is not Portkey's to see. What the run asks of
    Portkey is sent wherever it goes, since it was asked for. Raises `UsageError`, which never shows a value, for what no
    header can carry.
    """
    portkey = bool(portkey_api_key or portkey_config or portkey_provider)
    metadata = dict(portkey_metadata or {})
    for name, value in metadata.items():
        if len(value) > METADATA_VALUE_CHARS:
            raise UsageError(
                f"metadata {name!r} has {len(value)} characters; Portkey takes {METADATA_VALUE_CHARS}"
            )
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "User-Agent": f"batchkit/{version}",
    }
    if openai_api_key and (portkey_provider or not portkey):
        headers["Authorization"] = f"Bearer {openai_api_key}"
    if portkey:
        # A gateway that is merely hung up on lets the provider work on, and bill: it is told to stop just before us.
        milliseconds = timeout * 1000
        headers["x-portkey-request-timeout"] = str(max(1, int(milliseconds - min(1000, milliseconds * 0.05))))
        if portkey_virtual_key:
            headers["x-portkey-virtual-key"] = portkey_virtual_key
    asked = {
        "x-portkey-api-key": portkey_api_key,
        "x-portkey-config": portkey_config,
        "x-portkey-provider": portkey_provider,
        "x-portkey-metadata": _metadata_header(metadata) if metadata else None,
        # Without one the cache is split by all headers, and the trace id of each request would make it a miss.
        "x-portkey-cache-namespace": cache_namespace
        or (_NAMESPACE if cache_force_refresh or _CACHES.search(portkey_config or "") else None),
        # Its mere presence refreshes in the open-source gateway, so "false" is never said.
        "x-portkey-cache-force-refresh": "true" if cache_force_refresh else None,
    }
    headers.update((name, value) for name, value in asked.items() if value)
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise UsageError(
                f"the value for the header {name} has characters that no header can carry; set it anew"
            )
    if (size := _size(headers)) > HEADER_BYTES:
        raise UsageError(
            f"the headers of every request take {size} bytes; at most {HEADER_BYTES} get through"
        )
    keys = [openai_api_key, portkey_api_key, portkey_virtual_key, *config_keys]
    if proxy is not None:
        keys += proxy.keys
    secrets = _spellings(key for key in keys if key is not None and len(key) >= SHORTEST_KEY)
    return EndpointAddress(base_url.rstrip("/"), portkey, headers, metadata, secrets, proxy)


def _spellings(keys: Iterable[str]) -> tuple[bytes, ...]:
    """The keys as they are and as a server's JSON may spell them, the longest first: one may begin another."""
    found = set()
    for key in keys:
        escaped = json.dumps(key)[1:-1]
        found |= {key, escaped, escaped.replace("/", "\\/")}
    return tuple(sorted((each.encode() for each in found), key=len, reverse=True))


def attempt_headers(address: EndpointAddress, portkey: PortkeyFields | None, trace: Trace) -> dict[str, str]:
    """The headers of one attempt, to go over `address.headers`; `portkey` is what its record asks for itself.

    Raises ValueError when together they are more than gets through.
    """
    if not address.portkey:
        ids = f"{trace.trace_id}-{trace.span_id}"
        valid = ids
        if not (trace.derived or _IDS.fullmatch(ids)):
            valid = f"{_hex_id(trace.trace_id, 32)}-{_hex_id(trace.span_id, 16)}"
        return {"traceparent": f"00-{valid}-01", "X-Client-Request-Id": ids}
    headers = {"x-portkey-trace-id": trace.trace_id, "x-portkey-span-id": trace.span_id}
    if trace.parent_span_id is not None:
        headers["x-portkey-parent-span-id"] = trace.parent_span_id
    if portkey is None:
        return headers
    if portkey.span_name is not None:
        headers["x-portkey-span-name"] = portkey.span_name
    if portkey.metadata:
        headers["x-portkey-metadata"] = _metadata_header({**address.metadata, **portkey.metadata})
    if portkey.cache_namespace is not None:
        headers["x-portkey-cache-namespace"] = portkey.cache_namespace
    if portkey.cache_force_refresh:
        headers["x-portkey-cache-force-refresh"] = "true"
    if (size := _size({**address.headers, **headers})) > HEADER_BYTES:
        raise ValueError(f"the request's headers take {size} bytes; at most {HEADER_BYTES} get through")
    return headers


def id_lines(address: EndpointAddress, trace: Trace) -> str | None:
    """What `attempt_headers` gives where the record asks for nothing itself, already as HTTP/1.1 spells it.

    None where the ids are not `derived`, and may have to be changed or refused.
    """
    if not trace.derived:
        return None
    trace_id, span_id = trace.trace_id, trace.span_id
    if address.portkey:
        return f"x-portkey-trace-id: {trace_id}\r\nx-portkey-span-id: {span_id}\r\n"
    ids = f"{trace_id}-{span_id}"
    return f"traceparent: 00-{ids}-01\r\nX-Client-Request-Id: {ids}\r\n"


_to_json = json.JSONEncoder(separators=(",", ":")).encode


def _metadata_header(metadata: Mapping[str, str]) -> str:
    """One JSON object in ASCII: other alphabets travel as escapes, since a header is no place for UTF-8."""
    return _to_json(metadata)


def _size(headers: Mapping[str, str]) -> int:
    return sum(map(len, headers)) + sum(map(len, headers.values())) + len(": \r\n") * len(headers)


_HEX = re.compile("[0-9a-f]+")
_IDS = re.compile("(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}")
"""A trace's and a span's, as W3C takes them; ours are always such."""


def _hex_id(text: str, digits: int) -> str:
    """`text` where W3C takes it as an id of so many hex digits, else such an id derived from it."""
    if len(text) == digits and _HEX.fullmatch(text) and text.strip("0"):
        return text
    return blake2b(text.encode(), digest_size=digits // 2).hexdigest()
