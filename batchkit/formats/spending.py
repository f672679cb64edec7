"""What a job with a `max_cost` may have spent, as it stands in a small file beside the output.

The lines tell what answers cost. They cannot tell of answers that were on their way when a run was killed, so this file does:
before an attempt starts, what it may cost at most stands in here, with all that was spent before. What no line tells of,
when the next run starts, may have been spent.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from zlib import crc32

import orjson

__all__ = ["decode_spending", "encode_spending"]

_VERSION = 1


def encode_spending(authorised: Decimal) -> bytes:
    """The file's bytes: one JSON object whose last value covers all before it. The amount is in US dollars."""
    covered = b'{"version":%d,"authorised":"%b"' % (_VERSION, f"{authorised:f}".encode())
    return b'%b,"crc32":"%08x"}\n' % (covered, crc32(covered))


def decode_spending(data: bytes) -> Decimal:
    """The amount in such a file. Raises ValueError for one that is broken or of another version."""
    covered, seal, checksum = data.rpartition(b',"crc32":"')
    if not seal or checksum.strip() != b'%08x"}' % crc32(covered):
        raise ValueError("its checksum does not match")
    record = orjson.loads(data)
    if record["version"] != _VERSION:
        raise ValueError(f"it is of version {record['version']}, this program writes version {_VERSION}")
    try:
        amount = Decimal(record["authorised"])
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{record['authorised']!r} is no amount")
    return amount
