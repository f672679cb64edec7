"""Content-Encoding taken off an answer's body, within bounds: a small body may hold a large one."""

from __future__ import annotations

import zlib

from batchkit.endpoint import bounds

__all__ = ["CutShort", "TooLarge", "Unreadable", "decoded"]


class TooLarge(Exception):
    """The body passes the bound."""


class Unreadable(Exception):
    """The body is compressed in a way that was not asked for, or is not what it says."""


class CutShort(Exception):
    """The body ends too early."""


_GZIP, _ZLIB, _DEFLATE = 31, 15, -15
"""The `wbits` of zlib's three framings."""


def decoded(body: bytes, encoding: str) -> bytes:
    """The body as it was before its Content-Encoding, up to the bound. Raises TooLarge, Unreadable or CutShort."""
    encoding = encoding.strip().lower()
    if encoding == "identity" or not body:
        return body
    if encoding in ("gzip", "x-gzip"):
        if body.startswith(b"{"):
            return body  # unpacked by a gateway that left the header standing
        framing = _GZIP
    elif encoding == "deflate":
        # Meant is zlib's framing, but some servers send none.
        framing = _ZLIB if body[0] & 0x0F == zlib.DEFLATED else _DEFLATE
    else:
        raise Unreadable
    inflater = zlib.decompressobj(framing)
    try:
        plain = inflater.decompress(body, bounds.BODY_BYTES + 1)
    except zlib.error as error:
        raise Unreadable from error
    if len(plain) > bounds.BODY_BYTES:
        raise TooLarge
    if not inflater.eof:
        raise CutShort
    return plain
