"""What is made of an answer's bytes: the same as a parser tells that is asked for each header, and nothing where it may mean two things."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import given, strategies as st

from batchkit.endpoint import bounds
from batchkit.endpoint.reading import AnswerReader, End

BODY = b"answer \0 with zeros \0\0 as a compressed one has"
NAMES = ["x-a", "X-A", "x-request-id", "X-Request-Id", "Set-Cookie", "content-encoding", "y"]
VALUES = [
    "",
    "one",
    " spaces \t",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\udcff\x0b",
    "two\r\n words",
    "two\n\twords",
    "a: b",
]
FRAMED = {
    "by its length": (b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)),
    "in chunks": b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nx-a: trailer\r\n\r\n" % (len(BODY), BODY),
    "and closes": b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
}  # fmt: skip


class Told:
    """A parser's own account of one answer."""

    def __init__(self, stream: bytes) -> None:
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self._body_begun = False
        self._parser = parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(lenient_headers=True, lenient_optional_cr_before_lf=True)
        parser.feed_data(stream)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._body_begun:
            self.headers.append((name.lower().decode(), value.strip().decode(errors="surrogateescape")))

    def on_headers_complete(self) -> None:
        self._body_begun = True

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.kept = self._parser.should_keep_alive()


def in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges) if end > start]


def read(pieces: list[bytes], reader: AnswerReader | None = None) -> AnswerReader:
    reader = reader or AnswerReader()
    for piece in pieces:
        if not reader.feed(piece) or reader.end is not None:
            break
    return reader


headers = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=8)
line_ends = st.sampled_from(["\r\n", "\n"])


def head(pairs: list[tuple[str, str]], end: str) -> bytes:
    said = "".join(f"{name}:{value}{end}" for name, value in pairs)
    return f"HTTP/1.1 200 OK{end}{said}".encode(errors="surrogateescape")


@given(
    headers, line_ends, st.sampled_from([*FRAMED]), st.lists(st.integers(0, 400), max_size=4), st.booleans()
)
def test_an_answer_is_what_its_parser_tells_in_any_pieces_and_whatever_was_read_before(
    pairs, end, framed, cuts, interim
):
    stream = head(pairs, end) + FRAMED[framed]
    told = Told(stream)
    before = b"HTTP/1.1 103 Early\r\nx-a: no\r\ny: no\r\n\r\n" if interim else b""
    reader = AnswerReader()
    for _ in range(1 + told.kept):
        read(in_pieces(before + stream, cuts), reader)
        assert reader.head is not None
        assert (reader.end, reader.lasting) == (End.WHOLE, told.kept)
        assert reader.body() == told.body == BODY
        assert reader.head.status == 200
        assert {**reader.head.headers} == dict(reversed(told.headers))
        for value in reader.head.headers.values():
            assert value.encode(errors="surrogateescape") in reader.head.values
        reader.renew()


@given(headers, line_ends, st.data())
def test_a_zero_byte_is_refused_wherever_it_stands_in_a_head(pairs, end, data):
    begun = head(pairs, end)
    at = data.draw(st.integers(0, len(begun)))
    stream = begun[:at] + b"\0" + begun[at:] + FRAMED["by its length"]
    reader = read(in_pieces(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=4))))
    assert (reader.end, reader.head, reader.lasting) == (End.MALFORMED, None, False)


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early\r\nx-a: b\r\n\r\n"])
@pytest.mark.parametrize("size", [-1, 0, 1])
@pytest.mark.parametrize("pieces", [1, 7])
def test_a_header_is_as_long_as_its_bound_and_no_longer(interim, size, pieces):
    long = b"x" * (bounds.HEADER_FIELD_BYTES - len("x-long") + size)
    stream = interim + b"HTTP/1.1 200 OK\r\nx-long: " + long + b"\r\n" + FRAMED["by its length"]
    reader = read(in_pieces(stream, [at * len(stream) // pieces for at in range(1, pieces)]))
    assert reader.end is (End.MALFORMED if size > 0 else End.WHOLE)


@pytest.mark.parametrize("encoding", [b"identity", b"Identity "])
def test_an_encoding_that_is_none_leaves_an_answer_as_long_as_its_connection(encoding):
    reader = read([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + encoding + b"\r\n\r\nanswer"])
    assert (reader.end, reader.lasts_until_the_end(), reader.body()) == (None, True, b"answer")


@pytest.mark.parametrize("more", [b"", b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: identity\r\n"])
def test_an_answer_in_chunks_is_not_over_with_its_connection(more):
    reader = read([b"HTTP/1.1 200 OK\r\n" + more + b"Transfer-Encoding: chunked\r\n\r\n6\r\nanswer\r\n"])
    assert (reader.end, reader.lasts_until_the_end(), reader.body()) == (None, False, b"answer")


@pytest.mark.parametrize("whole", [False, True])
def test_a_body_that_grows_too_large_is_read_no_further(whole, monkeypatch):
    monkeypatch.setattr(bounds, "BODY_BYTES", 100)
    pieces = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *[b"32\r\n" + b"x" * 50 + b"\r\n"] * 3,
    ]
    pieces += [b"0\r\n\r\n"]
    reader = read([b"".join(pieces)] if whole else pieces)
    assert (reader.end, reader.lasting) == (End.TOO_LARGE, False)


def test_trailers_are_not_kept():
    reader = read([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"])
    for number in range(100):
        assert reader.feed(b"x-%d: trailer\r\n" % number)
    assert len(reader._headers) <= 1
    assert reader.feed(b"\r\n")
    assert (reader.end, reader.body()) == (End.WHOLE, b"x")
