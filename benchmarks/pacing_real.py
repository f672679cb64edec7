"""How a job fares at a limit it does not know, on the wall clock: batchkit beside OpenAI's client with a semaphore.

`batchkit simulate` in a process of its own takes 50 requests a second, tells nobody, and answers after a median of half a second.
Each client gets a job that such a limit lets through in a minute. `openai` asks again as often as it does by itself (twice), or up to
1000 times; it holds its place under the semaphore meanwhile.

A column is the share of the job that was answered when a client that knows the limit would have been done; then what was
answered in the end, what was given up, refusals for each hundred answers, and the seconds until nine of ten were answered.

    python benchmarks/pacing_real.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inputs import write_requests
from processes import environment, machine
from programs import PROGRAMS, Program, prepare
from tables import say, show, table

PER_S = 50
IN_FLIGHT = 256
LATENCY_S = 0.5
"""The median: 0.5 s to the first token and 60 tokens at 60 a second, three times faster than life."""
SIMULATED = ["--rpm", str(60 * PER_S), "--hide-limits", "--speed", "3", "--port", "0", "--json"]
REQUEST_BYTES = 300
POLL_S = 0.1
PATIENCE = 3.0
"""After so many times the ideal a client is stopped."""

ROWS: Mapping[str, list[str]] = {
    "50/s": [],
    "50/s, refusals count": ["--refusal-cost", "1"],
    "50/s, Retry-After 30": ["--retry-after-s", "30"],
}
CLIENTS: Mapping[str, tuple[str, dict[str, str]]] = {
    "batchkit": ("batchkit", {}),
    "openai": ("openai", {}),
    "openai, 1000 retries": ("openai", {"MAX_RETRIES": "1000"}),
}


@dataclass(frozen=True)
class Ran:
    """How one job went. Times are seconds since its first request; None is never."""

    answered: int
    lost: int
    refused: int
    at_ideal: int
    """Answers when an ideal client would have been done."""
    nine_tenths_s: float | None


@contextmanager
def simulator(options: list[str]) -> Iterator[str]:
    """A simulator's base URL."""
    argv = [sys.executable, "-m", "batchkit", "simulate", *SIMULATED, *options]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as child:
        assert child.stdout is not None
        try:
            yield json.loads(child.stdout.readline())["base_url"]
        finally:
            child.terminate()


def counted(base_url: str) -> dict[str, int]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(base_url.removesuffix("/v1") + "/simulator/stats", timeout=10) as answer:
        stats: dict[str, int] = json.load(answer)
    return stats


def lost(results: Path) -> int:
    """Requests that a client gave up: lines with an error, of whichever file."""
    given_up = 0
    for path in (results, results.with_suffix(".errors.jsonl")):
        if path.exists():
            with path.open("rb") as lines:
                given_up += sum(json.loads(line)["error"] is not None for line in lines)
    return given_up


def run(program: Program, variables: dict[str, str], options: list[str], requests: int, folder: Path) -> Ran:
    source, results = folder / "requests.jsonl", folder / "results.jsonl"
    write_requests(source, requests, REQUEST_BYTES)
    # One second's worth is taken at once; the last request let in still has to be answered.
    ideal_s = requests / PER_S - 1.0 + LATENCY_S
    began = nine_tenths_s = at_ideal = None
    with simulator(options) as base_url:
        argv = program.argv(source, results, base_url, IN_FLIGHT)
        with subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=program.env(**variables)
        ) as child:
            try:
                while child.poll() is None:
                    time.sleep(POLL_S)
                    stats, now = counted(base_url), time.monotonic()
                    if began is None:
                        began = now if stats["received"] else None
                        continue
                    if nine_tenths_s is None and stats["answered"] >= 0.9 * requests:
                        nine_tenths_s = now - began
                    if at_ideal is None and now - began >= ideal_s:
                        at_ideal = stats["answered"]
                    if now - began > PATIENCE * ideal_s:
                        break
            finally:
                child.terminate()
        stats = counted(base_url)
    return Ran(
        stats["answered"],
        lost(results),
        stats["refused"],
        stats["answered"] if at_ideal is None else at_ideal,
        nine_tenths_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=" · ".join(ROWS)
    )
    parser.add_argument(
        "--clients",
        nargs="+",
        choices=CLIENTS,
        default=list(CLIENTS),
        metavar="NAME",
        help=" · ".join(CLIENTS),
    )
    parser.add_argument(
        "--seconds",
        type=int,
        default=60,
        help="what an ideal client would take for a job (default: %(default)s)",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="also write into a page, between its marks"
    )
    chosen = parser.parse_args()
    requests = chosen.seconds * PER_S
    load = os.getloadavg()[0]
    for name in dict.fromkeys(CLIENTS[client][0] for client in chosen.clients):
        if missing := prepare(PROGRAMS[name]):
            raise SystemExit(f"{name}: its environment could not be made: {missing}")
    lines = []
    for row in chosen.rows:
        for client in chosen.clients:
            name, variables = CLIENTS[client]
            with tempfile.TemporaryDirectory() as folder:
                ran = run(PROGRAMS[name], variables, ROWS[row], requests, Path(folder))
            lines.append(
                [
                    row,
                    client,
                    f"{ran.at_ideal / requests:.1%}",
                    f"{ran.answered:,}",
                    f"{ran.lost:,}",
                    f"{100 * ran.refused / max(1, ran.answered):.1f}",
                    f"{ran.nine_tenths_s:.0f} s" if ran.nine_tenths_s is not None else "never",
                ]
            )
            say(" ".join(lines[-1]))
    head = [
        "limit", "client", "answers/ideal", f"answered of {requests:,}", "given up", "refusals per 100 answers", "90 % after",
    ]  # fmt: skip
    ideal_s = 0.9 * chosen.seconds - 1.0 + LATENCY_S
    note = f"An ideal client has 90 % after {ideal_s:.0f} s. On {machine()}, load average {load:.1f} when it began."
    show([table(head, lines), note], "pacing_real", chosen.markdown)


if __name__ == "__main__":
    main()
