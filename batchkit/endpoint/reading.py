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

_SWITCHING_PROTOCOLS = 101
(_ZERO,) = b"\0"


class End(Enum):
    """What ended the reading of an answer."""

    WHOLE = 1
    TOO_LARGE = 2
    MALFORMED = 3
    LOST = 4
    OVERDUE = 5


class _Refused(Exception):
    """Stops the parser in the middle of what it was fed."""


@lru_cache(maxsize=64)
def _looked_up_by(names: bytes) -> tuple[str, ...]:
    """The names of headers as they are looked up, the last first. A server sends the same with every answer."""
    return tuple(reversed(names.lower().decode().split("\n")))


class AnswerReader:
    """Reads one answer, and others after it once it is `renew`ed.

    The parser calls the `on_` methods; it refuses what could be read in two ways (two lengths, a length beside chunks), and
    takes what servers do write: folded headers, bare line feeds. Headers and pieces of the body, which are many, it puts
    where they are kept without a word.
    """

    __slots__ = (
        "_headers",
        "_is_chunked",
        "_parser",
        "_pieces",
        "_received",
        "_size",
        "_weighed",
        "end",
        "head",
        "lasting",
        "on_body",
        "on_header",
    )
    head: Head | None
    """There as soon as the answer has got as far as its body."""
    end: End | None
    """None while there is more to come."""
    lasting: bool
    """Whether another answer can follow: this one is whole, nothing came behind it, and the server keeps the connection."""

    def __init__(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        """Those of the head that is being read, or trailers. The first of several counts."""
        self._pieces: list[bytes] = []
        self.on_header = self._headers.setdefault
        self.on_body = self._pieces.append
        self._parser = parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self.renew()

    def renew(self) -> None:
        """Keep nothing of the last answer, which may be long over when the next begins."""
        self._headers.clear()
        self._pieces.clear()
        self._received = self._size = self._weighed = 0
        self.head = self.end = None
        self.lasting = self._is_chunked = False

    def discard(self) -> None:
        """Nothing is read any more."""
        del self._parser  # the two hold one another

    def feed(self, data: bytes) -> bool:
        """Read on, and see whether that can be read, as far as it is looked at."""
        if self.head is None and _ZERO in data:
            return self._feed_around_zero(data)
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.lasting = False
            if self.end is None:
                # After a whole answer it is what follows that cannot be read, and that was not asked for.
                self.end = End.LOST if self._pieces else End.MALFORMED
            return False
        if self.end is None or self._received > bounds.BODY_BYTES:
            return self._within_bounds()
        return True

    def lasts_until_the_end(self) -> bool:
        """Whether the answer is as long as its connection."""
        return (
            self.head is not None
            and not self._is_chunked
            and "content-length" not in self.head.headers
            and not self.head.headers.get("transfer-encoding", "").lower().endswith("chunked")
        )

    def body(self) -> bytes:
        """What came of the body."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def _feed_around_zero(self, data: bytes) -> bool:
        """Read on to a zero byte and over it, which a compressed body can hold and no header."""
        before, zero, rest = data.partition(b"\0")
        if not self.feed(before):
            return False
        if self.head is None:
            self.end = End.MALFORMED
            return False
        return self.feed(zero + rest)

    def _within_bounds(self) -> bool:
        """Whether what has come is worth reading on, or worth having been read."""
        if self.head is None:
            if self._received > bounds.HEAD_BYTES:
                self.end = End.MALFORMED
            return True
        self._headers.clear()  # trailers
        self._size += sum(map(len, self._pieces[self._weighed :]))
        self._weighed = len(self._pieces)
        announced = 0 if self.end is End.WHOLE else int(self.head.headers.get("content-length", 0))
        if self._size > bounds.BODY_BYTES or announced > bounds.BODY_BYTES:
            self.end = End.TOO_LARGE
            self.lasting = False
            return False
        if self.end is None and self._received - self._size > bounds.BODY_BYTES:
            self.end = End.TOO_LARGE
        return True

    # --- for the parser ---

    def on_message_begin(self) -> None:
        if self.end is not None:
            raise _Refused

    def on_headers_complete(self) -> None:
        headers = self._headers
        longest = bounds.HEADER_FIELD_BYTES
        if self._received > longest and any(
            len(name) + len(value) > longest for name, value in headers.items()
        ):
            raise _Refused
        status = self._parser.get_status_code()
        if status >= 200 or status == _SWITCHING_PROTOCOLS:
            # No parsed header holds a line feed, and their names are ASCII. Of names that differ in case the first counts too.
            values = b"\n".join(map(bytes.strip, headers.values()))
            said = reversed(values.decode("utf-8", "surrogateescape").split("\n"))
            self.head = Head(status, dict(zip(_looked_up_by(b"\n".join(headers)), said, strict=True)), values)
        headers.clear()

    def on_chunk_header(self) -> None:
        self._is_chunked = True

    def on_message_complete(self) -> None:
        if self.head is not None:  # else an interim answer
            self.lasting = self._parser.should_keep_alive()
            self.end = End.WHOLE
