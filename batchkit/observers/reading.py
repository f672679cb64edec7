"""How far the reading of a large input is, for the person who waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from batchkit.formats.words import amount, duration
from batchkit.observers.progress import Mode

__all__ = ["Reading"]

_BAR_S = 0.5
_LOG_S = 10.0
_CLEAR = "\r\x1b[K"


class Reading:
    """Says now and then what was read so far: drawn over itself on a terminal, in lines elsewhere, as `mode` asks.

    `size` is the input's in bytes, None where that is not known.
    """

    def __init__(
        self, mode: Mode, stream: TextIO, size: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._size = size
        self._clock = clock
        self._off = mode == "off"
        self._draws = mode == "bar" or (mode == "auto" and stream.isatty())
        self._began = self._told = clock()
        self._is_drawn = False

    def tell(self, read_bytes: int, requests: int, tokens: int) -> None:
        """Told after every piece; most of the time it says nothing."""
        now = self._clock()
        if self._off or now - self._told < (_BAR_S if self._draws else _LOG_S):
            return
        self._told = now
        took = now - self._began
        text = f"{requests:,} requests read, {tokens:,} prompt tokens, {amount(tokens / took)} tokens/s"
        if self._size and 0 < read_bytes <= self._size:
            left = took * (self._size - read_bytes) / read_bytes
            text += f", {100 * read_bytes / self._size:.1f} %, {duration(left)} left"
        self._write(f"{_CLEAR}{text}" if self._draws else f"{text}\n")
        self._is_drawn = self._draws

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._is_drawn:
            self._write(_CLEAR)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # Nobody reads it any more; what is asked for comes on stdout.
            self._off = True
