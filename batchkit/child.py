"""How this package starts a process of its own: a module of it, run by the same Python.

The child finds what runs here and nothing that lies in the working directory. It has a session of its own, since a Ctrl-C is meant
for its parent; when that is gone, it has nothing more to read or nobody to write to, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["command", "environment", "start"]


def command(module: str, *arguments: str) -> Sequence[str]:
    """The words that start `module`, which is named in full."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """That of this process, with the path on which it finds its modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def start(
    module: str, *arguments: str, stdin: int = subprocess.PIPE, stderr: int | None = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start `module` with its output in a pipe; `stderr` None is this process's own. Raises OSError if there is no room for it."""
    return subprocess.Popen(
        command(module, *arguments),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        env=environment(),
    )
