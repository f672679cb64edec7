"""The nouns: what one line of input becomes on its way to one line of output.

A line is read as a `Request` or a `BadLine`. An attempt on a request brings a `Reply` or a `Failure`. When no more
attempts follow, the request's `Outcome` is written: as a result if its answer is a `Reply`, else as a failure.
Nothing here is changed once it is made, and nothing knows of bytes, clocks or networks.

They are structs of msgspec's, which are made in a third of the time that a dataclass takes: some ten are, for each request. None
can come to hold itself, so the garbage collector need not look at them (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any

from msgspec import Struct, field

__all__ = [
    "METADATA_VALUE_CHARS",
    "Announced",
    "AnnouncedLimit",
    "Answer",
    "BadLine",
    "Billed",
    "Failure",
    "FailureKind",
    "FoundLimit",
    "Line",
    "Outcome",
    "PortkeyFields",
    "Reply",
    "Request",
    "RunHeader",
    "TimeBin",
    "Trace",
    "Usage",
]


class Usage(Struct, frozen=True, gc=False):
    """Tokens that one answer, or many, took. Counts are tokens; the details are contained in the totals.

    `cached_tokens` are part of `prompt_tokens`, `reasoning_tokens` of `completion_tokens`. `total_tokens` is the
    provider's own figure and need not be their sum.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class Billed(Struct, frozen=True, gc=False):
    """What an attempt that brought no outcome cost all the same: the `usage` its answer gave, and the model that answered."""

    model: str
    usage: Usage


METADATA_VALUE_CHARS = 128
"""Portkey's bound on a metadata value (https://portkey.ai/docs/product/observability/metadata)."""


class PortkeyFields(Struct, frozen=True, gc=False):
    """What a record asks of Portkey for itself; each wins over the run's own setting. All are header-safe."""

    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    span_name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    cache_namespace: str | None = None
    cache_force_refresh: bool = False


class Line(Struct, frozen=True, gc=False):
    """One non-blank line of the input.

    `index` is its 0-based number, blank lines counted; `offset` the byte at which it begins (after decompression);
    `raw` its bytes without the line's end, or None when it was longer than the cap and was not kept.
    """

    index: int
    offset: int
    raw: bytes | None


class Request(Struct, frozen=True, gc=False):
    """One chat completion to ask for. `body` is the JSON that is sent, ready made."""

    index: int
    custom_id: str
    body: bytes
    model: str | None = None
    max_tokens: int | None = None
    input_crc32: int = 0
    portkey: PortkeyFields | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The record's own, of the body and for Portkey together, by which a report can be grouped."""


class BadLine(Struct, frozen=True, gc=False):
    """An input line that cannot become a request; `code` and `message` say why."""

    index: int
    custom_id: str
    code: str
    message: str
    input_crc32: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


class Trace(Struct, frozen=True, gc=False):
    """The ids one attempt carries: `trace_id` stable for its request, `span_id` (16 hex digits) new for each attempt.

    `derived` tells that nothing of it is a record's own, so that nobody need look whether it can be sent as it is.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    derived: bool = False


class FailureKind(StrEnum):
    """Why an attempt brought no usable completion. The value is the word in `attempts.by_reason`."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION_ERROR = "connection_error"
    NOT_AN_API = "not_an_api"
    """A 200 whose body is no JSON object: HTML, nothing, or cut."""
    INVALID_RESPONSE = "invalid_response"
    """JSON, but without choices."""
    INVALID_REQUEST = "invalid_request"
    CONTENT_FILTER = "content_filter"
    NOT_FOUND = "not_found"
    KEY_REFUSED = "key_refused"
    QUOTA_EXHAUSTED = "quota_exhausted"
    MISDIRECTED = "misdirected"
    """A redirect, a certificate that does not verify, a host nobody knows: the address is wrong."""
    BAD_LINE = "bad_line"
    """The input line cannot be sent at all."""


class AnnouncedLimit(Struct, frozen=True, gc=False):
    """What an answer's headers say of one limit: `limit` in a window, `remaining` of it, `reset_s` until all of it is there again.

    `window_s` is the window's length where it is said. Times are seconds; None is what is not said. `rounded` tells that the reset
    is told in whole seconds.
    """

    limit: float
    remaining: float | None = None
    reset_s: float | None = None
    window_s: float | None = None
    rounded: bool = False


class Announced(Struct, frozen=True, gc=False):
    """What an answer's headers say of the limits on requests and on tokens; None where they say nothing."""

    requests: AnnouncedLimit | None = None
    tokens: AnnouncedLimit | None = None


class Reply(Struct, frozen=True, gc=False):
    """A usable completion. `body` is the provider's JSON object as it came, on one line.

    `usage` is None when the provider gave none that can be believed; `model` is the one that answered, "" if unnamed.
    `gateway_retries` is how often a gateway asked the provider again before it had this answer. `from_cache` tells that it had
    it already: nothing was billed. `announced` are the limits it came with, in those answers whose headers were looked at.
    """

    status: int
    request_id: str
    body: bytes
    model: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None
    gateway_retries: int = 0
    from_cache: bool = False
    announced: Announced | None = None

    @property
    def truncated(self) -> bool:
        """Whether the answer ran into its own length limit."""
        return self.finish_reason == "length"


class Failure(Struct, frozen=True, gc=False):
    """An attempt without a usable completion.

    `code` is the provider's own (`error.code`, else `error.type`) or one of ours in snake_case. `status` is None when no
    answer came; `body` is the answer's JSON on one line (a text that is no JSON stands in it as a JSON string).
    `retry_after` is in seconds, as the server asked. `usage` is what a refused answer cost all the same.
    `should_retry` is the server's own word (`x-should-retry`), None if it said nothing.
    `maybe_billed` is true when the provider may have worked, and charged, without our seeing the answer.
    `gateway_retries` is how often a gateway asked the provider again, -1 if it did so as often as it was told to.
    `announced` are the limits it came with, in those answers whose headers were looked at.
    """

    kind: FailureKind
    code: str
    message: str
    status: int | None = None
    request_id: str = ""
    body: bytes | None = None
    model: str = ""
    usage: Usage | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    maybe_billed: bool = False
    gateway_retries: int = 0
    announced: Announced | None = None


Answer = Reply | Failure
"""What one attempt brings."""


class FoundLimit(Struct, frozen=True, gc=False):
    """What the server was found to take of one model: requests or tokens a minute, or so many in flight at once.

    `model` is the one that requests name, "" for those that name none. None is no such limit; one that was found before and is
    None in all three is found no more.
    """

    model: str
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    in_flight: float | None = None


class Outcome(Struct, frozen=True, gc=False):
    """How a request ended, for good: one line of the output.

    `attempts` counts HTTP calls, 0 for a line that could not be sent. `retries` says why all but the last were repeated.
    `latency_s` is that of the last attempt, in seconds from sending to the last byte. `finished_at` is Unix time in
    seconds. `input_crc32` is of the input line's bytes, so that an edited input is found. `maybe_billed` counts the attempts
    whose answer never came though the provider may have charged for it, `gateway_retries` what a gateway added to our
    attempts, at least. `billed` are the repeated attempts that gave their usage. `maybe_cost` is the most, in US dollars, that
    attempts whose usage is not known may have cost; it is reckoned by runs with a `max_cost`. `metadata` are the request's.
    `limits` are those of the run that changed since a line last told of them.
    """

    index: int
    custom_id: str
    answer: Answer
    trace_id: str
    attempts: int
    latency_s: float
    finished_at: float
    retries: Mapping[str, int] = field(default_factory=dict)
    input_crc32: int = 0
    maybe_billed: int = 0
    gateway_retries: int = 0
    billed: tuple[Billed, ...] = ()
    maybe_cost: Decimal = Decimal(0)
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[FoundLimit, ...] = ()

    @property
    def succeeded(self) -> bool:
        return isinstance(self.answer, Reply)


class RunHeader(Struct, frozen=True, gc=False):
    """What a run was started with; it stands in the first line that the run writes, and never holds a secret.

    `started_at` is Unix time in seconds. `defaults` are the body fields filled where a record has none, `model` among
    them. `input_bytes` is None for stdin. `simulated` marks runs that cost nothing. `in_flight_before`
    bounds the answers that were on their way when the run before was killed, and may have been billed without being
    written; it is 0 after a run that ended by itself. `max_cost` is the run's, in US dollars. `unseen_cost` is the most, in US
    dollars, that runs before may have spent without writing a line of it. `prices` are those given beside the price list.
    """

    started_at: float
    base_url: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    input_path: str = "-"
    input_bytes: int | None = None
    simulated: bool = False
    version: str = ""
    concurrency: int = 0
    in_flight_before: int = 0
    max_cost: Decimal | None = None
    unseen_cost: Decimal = Decimal(0)
    prices: Mapping[str, Any] = field(default_factory=dict)


class TimeBin(Struct, frozen=True, gc=False):
    """What ended from `start` on, in Unix time, for as long as all bins are: `results`, `failures`, and the `refused` attempts of both.

    `tokens` are those of all answers. `limits` are those that were known then.
    """

    start: float
    results: int = 0
    failures: int = 0
    refused: int = 0
    tokens: int = 0
    limits: tuple[FoundLimit, ...] = ()
