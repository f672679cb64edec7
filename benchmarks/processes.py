"""Programs started to be measured: where they run, what they see of the environment, what they took."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cost", "cores", "environment", "machine", "measure", "on_core", "raise_file_limit"]

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Cost:
    """What a program took with all it started: seconds by the clock and of CPU, and MiB of the largest process at its peak."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def environment(**more: str) -> dict[str, str]:
    """What a measured program sees: no keys, no proxies, no settings of the user's; and `more`."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "NO_PROXY": "127.0.0.1", **more}


def cores() -> list[int]:
    """The cores this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


_OURS = cores()


@contextmanager
def on_core(place: int | None) -> Iterator[None]:
    """What is started meanwhile stays on that one of our cores, where there is more than one and the system can; None is on any."""
    if place is None or len(_OURS) < 2:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_OURS[place]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(
    argv: Sequence[str], env: dict[str, str], *, core: int | None = 0, log: Path | None = None
) -> Cost:
    """Run a program to its end. Its output goes to `log` or nowhere. SystemExit where it does not end with 0."""
    began = time.perf_counter()
    with (
        Path(log or os.devnull).open("wb") as out,
        on_core(core),
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env) as child,
    ):
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    if child.returncode:
        said = log.read_text(errors="replace")[-2000:] if log else ""
        raise SystemExit(f"{argv} ended with {child.returncode}\n{said}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Cost(took, used.ru_utime + used.ru_stime, used.ru_maxrss / unit)


def raise_file_limit() -> int:
    """As many open files as may be, for us and what we start; each request in flight is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def machine() -> str:
    """This machine in a line: processor, cores, system, Python."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = ""
    uname = os.uname()
    many = len(_OURS) or os.cpu_count() or 1
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{model or uname.machine}, {many} {'core' if many == 1 else 'cores'}, {uname.sysname}, Python {version}"
