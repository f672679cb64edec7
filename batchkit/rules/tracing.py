"""The ids that follow a request: one trace for the request, one span for each attempt.

Ids are valid for W3C Trace Context (https://www.w3.org/TR/trace-context/): 32 and 16 lower-case hex digits, never all
zeros.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from batchkit.records import Request, Trace

__all__ = ["Tracer", "derive_trace_id"]

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
"""Odd, so that start + n·step takes each of the 2^64 values once before any twice; its bits look random (Weyl)."""


def derive_trace_id(job_id: str, index: int) -> str:
    """The trace id of a request without one of its own: the same over attempts, runs and machines."""
    hashed = _keyed(job_id).copy()
    hashed.update(b"%d" % index)
    return hashed.hexdigest()


@lru_cache(maxsize=8)
def _keyed(job_id: str) -> blake2b:
    return blake2b(key=job_id.encode()[:64], digest_size=16)


class Tracer:
    """Gives each attempt of one run its ids.

    `nonce` is a random 64-bit number drawn for the run: the spans of a run are distinct by construction, those of two
    runs by chance (a job of ten million attempts collides with probability 10⁻¹²).
    """

    def __init__(self, job_id: str, nonce: int, *, resumed: bool = False) -> None:
        """`resumed` says that earlier runs may have used the records' own span ids."""
        self._job_id = job_id
        self._next = nonce & _MASK
        self._own_spans = not resumed

    def trace_id(self, request: Request) -> str:
        """The record's own trace id, or the derived one."""
        if request.portkey is not None and request.portkey.trace_id is not None:
            return request.portkey.trace_id
        return derive_trace_id(self._job_id, request.index)

    def attempt(self, request: Request, trace_id: str, attempt: int) -> Trace:
        """The ids for the `attempt`-th try (from 1).

        A record's own span id names its first attempt in the job's first run; all others become children of it, so that no
        two attempts share a span.
        """
        own = request.portkey
        if own is None:
            return Trace(trace_id, self._span_id(), derived=True)
        if own.span_id is None:
            return Trace(trace_id, self._span_id(), own.parent_span_id)
        if attempt == 1 and self._own_spans:
            return Trace(trace_id, own.span_id, own.parent_span_id)
        return Trace(trace_id, self._span_id(), own.span_id)

    def _span_id(self) -> str:
        value = self._next or _STEP
        self._next = (value + _STEP) & _MASK
        return value.to_bytes(8).hex()
