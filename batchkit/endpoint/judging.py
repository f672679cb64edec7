"""What an exchange came to, as an answer: the one wording of every failure, and no key of ours in any of them.

What an answer that came whole means is judged in `formats.completions`; here it is unpacked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import time
from typing import NamedTuple

from msgspec.structs import replace

from batchkit.endpoint import bounds
from batchkit.endpoint.decoding import CutShort, TooLarge, Unreadable, decoded
from batchkit.formats.announcements import read_announced
from batchkit.formats.completions import read_answer, read_request_id, text_body
from batchkit.formats.headers import EndpointAddress
from batchkit.records import Answer, Failure, FailureKind, Reply

__all__ = ["Head", "Judge"]

_KEY_SHOWN = b"[key]"

_HEEDED_AT_FIRST = 32
_HEEDED_EVERY_S = 0.05
"""So often the limits that answers announce are read, after the first few; those of refusals always are."""


class Head(NamedTuple):
    """How an answer begins. `headers` are looked up by lower-case names; `values` are all of theirs in one, as they came."""

    status: int
    headers: Mapping[str, str]
    values: bytes


class Judge:
    """Puts into words what `host` did, for the attempts of one run; `timeout` is theirs, in seconds."""

    def __init__(self, address: EndpointAddress, host: str, timeout: float) -> None:
        self._secrets = address.secrets
        self._host = host
        self._timeout = timeout
        self._heeded = 0
        self._heeded_at = 0.0

    # --- answers ---

    def whole(self, head: Head, body: bytes) -> Answer:
        """The body came as long as it was announced."""
        encoding = head.headers.get("content-encoding")
        if encoding:
            try:
                body = decoded(body, encoding)
            except TooLarge:
                return self.too_large(head)
            except CutShort:
                return self.cut(head, body)
            except Unreadable:
                return Failure(
                    FailureKind.INVALID_RESPONSE,
                    "unreadable_encoding",
                    f"{self._host} compressed its answer in a way that cannot be read",
                    status=head.status,
                    request_id=read_request_id(self._headers(head)),
                    maybe_billed=True,
                )
        headers = head.headers
        for secret in self._secrets:
            # Not `in`, which takes bytes for a number first and costs four times as much.
            if head.values.find(secret) >= 0 or body.find(secret) >= 0:
                headers, body = self._headers(head), self._redacted(body)
                break
        now = time()
        answer = read_answer(head.status, headers, body, now)
        if self._heeds(answer, now) and (announced := read_announced(headers, now)) is not None:
            answer = replace(answer, announced=announced)
        if isinstance(answer, Failure):
            # A key may have been spelled with escapes until the words were read.
            code, message = (
                self._redacted(text.encode(errors="replace")).decode()
                for text in (answer.code, answer.message)
            )
            if (code, message) != (answer.code, answer.message):
                answer = replace(answer, code=code, message=message)
        return answer

    def _heeds(self, answer: Answer, now: float) -> bool:
        """Whether the limits that `answer` announces are worth reading. What a cache answers says nothing of the provider."""
        if isinstance(answer, Reply):
            if answer.from_cache:
                return False
        elif answer.kind is FailureKind.RATE_LIMITED:
            return True
        if self._heeded >= _HEEDED_AT_FIRST and abs(now - self._heeded_at) < _HEEDED_EVERY_S:
            return False
        self._heeded += 1
        self._heeded_at = now
        return True

    def cut(self, head: Head, body: bytes) -> Failure:
        """The connection was lost in the middle of the body, of which so much came."""
        # What came of it was paid for.
        readable = bool(body) and not head.headers.get("content-encoding")
        return Failure(
            FailureKind.CONNECTION_ERROR,
            "answer_cut",
            f"{self._host} broke off in the middle of its answer (HTTP {head.status})",
            status=head.status if readable else None,
            request_id=read_request_id(self._headers(head)),
            body=text_body(self._redacted(body)) if readable else None,
            maybe_billed=True,
        )

    def too_large(self, head: Head) -> Failure:
        """The body is longer than what is read."""
        return Failure(
            FailureKind.INVALID_RESPONSE,
            "response_too_large",
            f"{self._host} answered with more than {bounds.BODY_BYTES >> 20} MiB",
            status=head.status,
            request_id=read_request_id(self._headers(head)),
            maybe_billed=True,
        )

    def _headers(self, head: Head) -> Mapping[str, str]:
        """Those of the answer, without our keys where it repeats them."""
        return {
            name: self._redacted(value.encode(errors="surrogateescape")).decode(errors="surrogateescape")
            for name, value in head.headers.items()
        }

    def _redacted(self, said: bytes) -> bytes:
        """What an answer says, with `[key]` where it repeats a key of ours: it goes into files that others read."""
        for secret in self._secrets:
            said = said.replace(secret, _KEY_SHOWN)
        return said

    # --- no answers; none says anything of an error's own text, which may quote headers ---

    def malformed(self) -> Failure:
        """What came is no HTTP."""
        kilobytes = bounds.HEADER_FIELD_BYTES >> 10
        return Failure(
            FailureKind.INVALID_RESPONSE,
            "malformed_http",
            f"{self._host} answered with what is no HTTP, or a header over {kilobytes} KB",
            maybe_billed=True,
        )

    def unanswered(self, *, sent: bool = True) -> Failure:
        """The connection was lost before an answer began; `sent` tells whether the request may have been read."""
        return Failure(
            FailureKind.CONNECTION_ERROR,
            "connection_error",
            f"{self._host} closed the connection before it answered",
            maybe_billed=sent,
        )

    def overdue(self, *, sent: bool, by: str = "") -> Failure:
        """The deadline came first; `sent` tells whether the request may have been read by then, `by` which way a connection was sought."""
        if sent:
            message = f"{self._host} gave no whole answer within {self._timeout:g} s"
        else:
            message = f"no connection to {self._host}{by} within {self._timeout:g} s"
        return Failure(FailureKind.TIMEOUT, "timeout", message, maybe_billed=sent)

    def unsendable(self, error: ValueError) -> Failure:
        """The request cannot be spelled as HTTP. The error is one of ours, or quotes nothing."""
        return Failure(FailureKind.INVALID_REQUEST, "invalid_header", f"the request cannot be sent: {error}")

    # --- no connections ---

    def host_unknown(self) -> Failure:
        """Nobody knows an address for the name."""
        return Failure(FailureKind.MISDIRECTED, "host_unknown", f"the name {self._host} is not known")

    def not_verified(self, reason: str) -> Failure:
        """Whoever answers there cannot prove to be the host."""
        return Failure(
            FailureKind.MISDIRECTED,
            "tls_not_verified",
            f"the certificate of {self._host} does not verify: {reason}",
        )

    def no_tls(self) -> Failure:
        """There is somebody, but no TLS."""
        return Failure(
            FailureKind.CONNECTION_ERROR,
            "tls_failed",
            f"no TLS connection to {self._host} came about; is it http:// after all?",
        )

    def unreachable(self, error: OSError) -> Failure:
        """There is nobody at the address, as far as can be told."""
        reason = error.strerror or type(error).__name__
        return self._not_connected(reason)

    def silent(self) -> Failure:
        """Nobody at the address says anything."""
        return self._not_connected(f"no answer within {bounds.CONNECT_S:g} s")

    def _not_connected(self, reason: str) -> Failure:
        return Failure(
            FailureKind.CONNECTION_ERROR, "connection_error", f"cannot connect to {self._host}: {reason}"
        )
