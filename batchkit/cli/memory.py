"""How the process of a run goes about its memory: that is the process's own, and so for the command to say."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["keep_freed_memory", "rare_collections"]

_BETWEEN_COLLECTIONS = 50_000
"""So many more objects that could be in a cycle than at the last look; some megabytes, if all were garbage."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As malloc.h has them."""
_KEPT_BYTES = 64 << 20
"""Free at the end of the heap, before any of it is given back."""
_APART_BYTES = 32 << 20
"""From so many on a block is no part of the heap: the most that mallopt(3) allows."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Have Python look for cycles of garbage less often: a run makes next to none, and has much in hand that is none.

    With 10,000 requests in flight it is a fifth of all work otherwise.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_BETWEEN_COLLECTIONS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def keep_freed_memory() -> None:
    """Have the C library keep what large answers leave, instead of giving it back and asking for it anew with the next.

    With answers of 100 KB that is a tenth of all work. Only glibc can be told so (https://man7.org/linux/man-pages/man3/mallopt.3.html);
    with another nothing happens.
    """
    import ctypes  # noqa: PLC0415 - it takes a while to import, and few commands need it

    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _APART_BYTES)
