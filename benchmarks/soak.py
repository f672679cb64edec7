"""Whether memory stays flat over a long run: batchkit on millions of short requests and answers, its size every few seconds.

Needs Linux, and 750 MB of disk for each million requests while it runs. Fails if the run's last quarter took more memory than
its third (medians) by over 4 MiB.

    python benchmarks/soak.py 5000000
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from endpoint import Manner, serving
from inputs import write_requests
from processes import machine, on_core
from programs import PROGRAMS

GROWTH_MIB = 4.0
IN_FLIGHT = 256
REQUEST_BYTES = 130
BETWEEN_S = 0.5
LINES = 40
"""About how many are printed."""


@dataclass(frozen=True)
class Sample:
    """What stood in the results, and how much memory was resident, at a moment of the run."""

    answers: int
    resident_mib: float


class Results:
    """How many lines a file has that grows, read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._lines = 0

    def count(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as lines:
                lines.seek(self._read)
                while piece := lines.read(1 << 20):
                    self._read += len(piece)
                    self._lines += piece.count(b"\n")
        return self._lines


def resident_mib(pid: int) -> float | None:
    """None if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), None)


def run(folder: Path, requests: int) -> list[Sample]:
    """Samples of a run over so many requests, from its first answer to its last."""
    source, target = folder / "requests.jsonl", folder / "results.jsonl"
    write_requests(source, requests, REQUEST_BYTES)
    batchkit, results, samples = PROGRAMS["batchkit"], Results(target), []
    with serving(Manner(answer_bytes=0)) as here:
        argv = batchkit.argv(source, target, here.base_url, IN_FLIGHT)
        with on_core(0):
            child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=batchkit.env())
        with child:
            began, printed = time.monotonic(), -1
            try:
                while child.poll() is None:
                    time.sleep(BETWEEN_S)
                    sample = Sample(results.count(), resident_mib(child.pid) or 0.0)
                    if not sample.resident_mib or not 0 < sample.answers < requests:
                        continue
                    samples.append(sample)
                    if sample.answers * LINES // requests > printed:
                        printed = sample.answers * LINES // requests
                        seconds = time.monotonic() - began
                        print(
                            f"{seconds:6.0f} s {sample.answers:12,} answers {sample.resident_mib:8.1f} MiB",
                            flush=True,
                        )
            finally:
                child.terminate()
    if child.returncode or results.count() != requests:
        raise SystemExit(f"batchkit ended with {child.returncode} after {results.count():,} answers")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "requests", nargs="?", type=int, default=5_000_000, help="how many to send (default: %(default)s)"
    )
    requests = parser.parse_args().requests
    print(f"{requests:,} requests, {IN_FLIGHT} in flight, on {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        samples = run(Path(folder), requests)

    def quarter(number: int) -> float:
        there = [each.resident_mib for each in samples if each.answers * 4 // requests == number]
        if not there:
            raise SystemExit("too short a run to tell anything: 100,000 requests are enough")
        return median(there)

    quarters = [quarter(number) for number in range(4)]
    print("by quarters: " + ", ".join(f"{each:.1f}" for each in quarters) + " MiB")
    grown = quarters[3] - quarters[2]
    if grown > GROWTH_MIB:
        raise SystemExit(f"the last half grew by {grown:.1f} MiB, more than {GROWTH_MIB:g}")


if __name__ == "__main__":
    main()
