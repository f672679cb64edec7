"""How an answer is read out of the bytes of a connection. The one place that knows httptools.

A parser tells an `AnswerReader` of headers and pieces of the body. The first of these ends the answer, as `End` names them:
its last byte, its bounds, the parser's refusal; that the connection is lost, or the time is up, is for others to see.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

import httptools

from batchkit.endpoint import bounds
from batchkit.endpoint.judging import Head

__all__ = ["AnswerReader", "End"]

_NO_BODY = frozenset({204, 304})
_SWITCHING_PROTOCOLS = 101


class End(Enum):
    """What ended the reading of an answer."""

    WHOLE = 1
    TOO_LARGE = 2
    MALFORMED = 3
    LOST = 4
    OVERDUE = 5


class _Refused(Exception):
    """Stops the parser in the middle of what it was fed."""


@lru_cache(maxsize=1024)
def _spelled_low(name: bytes) -> str:
    """A header's name as it is looked up. A server has few, and they come with every answer."""
    return name.strip().lower().decode("utf-8", "surrogateescape")


class AnswerReader:
    """Reads one answer, and others after it once it is `renew`ed.

    The parser calls the `on_` methods; it refuses what could be read in two ways (two lengths, a length beside chunks), and
    takes what servers do write: folded headers, bare line feeds.
    """

    __slots__ = ("_parser", "_pieces", "_raw_headers", "_received", "_size", "end", "head", "lasting")
    _raw_headers: list[tuple[bytes, bytes]]
    _pieces: list[bytes]
    head: Head | None
    """There as soon as the answer has got as far as its body."""
    end: End | None
    """None while there is more to come."""
    lasting: bool
    """Whether another answer can follow: this one is whole, nothing came behind it, and the server keeps the connection."""

    def __init__(self) -> None:
        self._parser = parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self.renew()

    def renew(self) -> None:
        """Keep nothing of the last answer, which may be long over when the next begins."""
        self._raw_headers = []
        self._pieces = []
        self._size = self._received = 0
        self.head = self.end = None
        self.lasting = False

    def discard(self) -> None:
        """Nothing is read any more."""
        del self._parser  # the two hold one another

    def feed(self, data: bytes) -> bool:
        """Read on, and see whether that can be read, as far as it is looked at."""
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.lasting = False
            if self.end is None:
                # After a whole answer it is what follows that cannot be read, and that was not asked for.
                self.end = End.LOST if self._pieces else End.MALFORMED
            return False
        if self._received > bounds.HEAD_BYTES and self.end is None:
            if self.head is None:
                self.end = End.MALFORMED
            elif self._received - self._size > bounds.BODY_BYTES:
                self.end = End.TOO_LARGE
        return True

    def lasts_until_the_end(self) -> bool:
        """Whether the answer is as long as its connection."""
        return (
            self.head is not None
            and "content-length" not in self.head.headers
            and not any(
                name.lower() == b"transfer-encoding" and value.strip().lower().endswith(b"chunked")
                for name, value in self.head.raw_headers
            )
        )

    def body(self) -> bytes:
        """What came of the body."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    # --- for the parser ---

    def on_message_begin(self) -> None:
        if self.end is not None:
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is not None:
            return  # a trailer
        if len(name) + len(value) > bounds.HEADER_FIELD_BYTES or b"\0" in value:
            raise _Refused
        self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 and status != _SWITCHING_PROTOCOLS:
            return
        headers = {
            # The first of several counts.
            _spelled_low(name): value.strip().decode("utf-8", "surrogateescape")
            for name, value in reversed(self._raw_headers)
        }
        self.head = Head(status, headers, self._raw_headers)
        length = headers.get("content-length")
        if length is not None and int(length) > bounds.BODY_BYTES and status not in _NO_BODY:
            self.end = End.TOO_LARGE
            raise _Refused

    def on_body(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > bounds.BODY_BYTES:
            self.end = End.TOO_LARGE
            raise _Refused
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self.head is None:
            self._raw_headers = []  # an interim answer
            return
        self.lasting = self._parser.should_keep_alive()
        self.end = End.WHOLE
