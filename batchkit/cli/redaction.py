"""The terminal shows no key. What the command prints passes here: messages, progress, wrong words, tracebacks.

An answer that repeats a key is rid of it where it comes in, in `endpoint`. This is for all that does not come from there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from batchkit.credentials import KEY_VARIABLES, Credentials
from batchkit.errors import UsageError
from batchkit.formats.headers import SHORTEST_KEY
from batchkit.formats.proxies import keys_of_proxies

__all__ = ["keys_hidden"]

_KEY_SHOWN = "[key]"


@contextmanager
def keys_hidden(environ: Mapping[str, str]) -> Iterator[None]:
    """Within, what is written to stdout and stderr has `[key]` where a key of the environment, or of its files, stood."""
    keys = _keys(environ)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Redacting(stream, keys)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _keys(environ: Mapping[str, str]) -> list[str]:
    keys = {environ.get(variable, "").strip() for variable in KEY_VARIABLES}
    # Heeded or not: a traceback may show the environment as it is.
    keys.update(keys_of_proxies(environ))
    # What is wrong with a key file is for the command to say that needs the key.
    with suppress(UsageError):
        keys.update(Credentials.read(environ).keys)
    return sorted((key for key in keys if len(key) >= SHORTEST_KEY), key=len, reverse=True)


class _Redacting:
    """A text stream that writes `[key]` for each of `keys`, the longest first; all else is the stream's own."""

    def __init__(self, stream: TextIO, keys: Sequence[str]) -> None:
        self._stream = stream
        self._keys = keys

    def write(self, text: str) -> int:
        for key in self._keys:
            text = text.replace(key, _KEY_SHOWN)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
