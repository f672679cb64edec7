"""The keys a run may use: from the environment, or from files that are their owner's alone and that the environment names.

No repr and no message shows one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchkit.errors import UsageError
from batchkit.formats.proxies import proxy_variables

__all__ = ["KEY_VARIABLES", "OPENAI_BASE_URL", "PORTKEY_BASE_URL", "Credentials", "keys_within"]

PORTKEY_BASE_URL = "https://api.portkey.ai/v1"
OPENAI_BASE_URL = "https://api.openai.com/v1"
KEY_VARIABLES = (
    "PORTKEY_API_KEY",
    "PORTKEY_VIRTUAL_KEY",
    "PORTKEY_PROVIDER_VIRTUAL_KEY",
    "OPENAI_API_KEY",
)
"""Variables that hold a key. Each has a partner with `_FILE` behind its name, which names the file that holds it."""

_KEY = re.compile(r"[\x21-\x7e]+")
_KEY_FILE_BYTES = 16 * 1024
"""More than all headers together may take."""
_KEY_NAME = re.compile(r"api_?key|access_?key|secret|password|authorization", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The keys a run may use, and where their owners say they belong. Read from the environment, and from files it names."""

    portkey_api_key: str | None = field(default=None, repr=False)
    portkey_virtual_key: str | None = field(default=None, repr=False)
    openai_api_key: str | None = field(default=None, repr=False)
    portkey_base_url: str = PORTKEY_BASE_URL
    openai_base_url: str = OPENAI_BASE_URL
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The variables that name proxies, which a run heeds where `trust_env` says so; they may hold passwords."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Credentials:
        """The credentials that an environment holds or names; empty variables count as unset.

        A key stands in its variable, or in the file that the variable with `_FILE` behind its name gives the path of: a
        regular file of the user's own that nobody else may read, with the key on one line. Raises UsageError, which names
        the variable or the path and never shows a key, for a file that is not so, for a key that no header can carry, and
        where both variables are set.
        """
        return cls(
            _key(environ, "PORTKEY_API_KEY"),
            _key(environ, "PORTKEY_VIRTUAL_KEY") or _key(environ, "PORTKEY_PROVIDER_VIRTUAL_KEY"),
            _key(environ, "OPENAI_API_KEY"),
            environ.get("PORTKEY_BASE_URL", "").strip() or PORTKEY_BASE_URL,
            environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_BASE_URL,
            proxy_variables(environ),
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that are there."""
        keys = self.portkey_api_key, self.portkey_virtual_key, self.openai_api_key
        return tuple(key for key in keys if key is not None)


def _key(environ: Mapping[str, str], variable: str) -> str | None:
    key, path = (environ.get(name, "").strip() for name in (variable, f"{variable}_FILE"))
    if key and path:
        raise UsageError(f"{variable} and {variable}_FILE are both set; keep the one that is meant")
    if path:
        source = f"the key file {path} ({variable}_FILE)"
        key = _read_key_file(path, source)
    elif key:
        source = variable
    else:
        return None
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{source} holds more than one line or word, or characters that no header can carry; set it anew"
        )
    return key


def _read_key_file(path: str, source: str) -> str:
    try:
        # Looked at is what was opened: a path may be another's file a moment later. A fifo is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{source} is not a regular file")
            if status.st_uid != os.geteuid():
                raise UsageError(f"{source} belongs to another user; a key is read from files of one's own")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(f"{source} is open to others than its owner: chmod 600 {shlex.quote(path)}")
            content = os.read(descriptor, _KEY_FILE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from None
    key = content.decode("ascii", "replace").strip()
    if not key:
        raise UsageError(f"{source} is empty")
    return key


def keys_within(config: str | None) -> tuple[str, ...]:
    """The keys that a Portkey config holds where it is JSON: the texts under names such as `api_key`, however deep."""
    if config is None or not config.startswith("{"):
        return ()
    return tuple(_keys_below(json.loads(config)))


def _keys_below(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _keys_below(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if isinstance(each, str) and _KEY_NAME.search(name):
                yield each
            else:
                yield from _keys_below(each)
