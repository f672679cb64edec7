"""A job that is killed a few hundred times: what is lost, what is doubled, what is billed twice.

    python tests/campaign/kill_campaign.py --kills 200

The real command works through one input and is ended by SIGKILL at random moments: while it starts and reads what the last
run left, in mid-run, and while it writes its last files. The endpoint is `batchkit simulate` in a process of its own, which
is never killed and writes one line into its ledger for each answer it bills, as work on it begins. When all kills are spent,
a last run is left alone, and the files are counted without batchkit.

Exits with 1 if an answer was lost or doubled, or more was billed twice than can have been in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

LONGEST_RUN_S = 120
NAMES = ("PORTKEY_", "OPENAI_", "BATCHKIT_")


@dataclass(frozen=True)
class Verdict:
    """What a campaign came to. `bound` is how many answers may be billed twice: what was in flight at the kills."""

    kills: int
    requests: int
    results: int
    lost: int
    doubled: int
    billed_twice: int
    bound: int
    torn: int
    totals_agree: bool

    @property
    def good(self) -> bool:
        return (
            not self.lost and not self.doubled and 0 <= self.billed_twice <= self.bound and self.totals_agree
        )

    def __str__(self) -> str:
        return "\n".join(
            (
                f"kills          {self.kills:>8,}",
                f"results        {self.results:>8,} of {self.requests:,}",
                f"lost           {self.lost:>8,}",
                f"doubled        {self.doubled:>8,}",
                f"billed twice   {self.billed_twice:>8,} of at most {self.bound:,} in flight at the kills",
                f"torn lines     {self.torn:>8,} moved aside",
                f"totals         {'equal' if self.totals_agree else 'DIFFERENT FROM'} those of the lines",
            )
        )


def judge(folder: Path, *, requests: int, kills: int, concurrency: int) -> Verdict:
    """Count what stands in the folder of a job that was gone on with to its end."""
    lines = [
        json.loads(line)
        for name in ("results.jsonl", "results.errors.jsonl")
        for line in (folder / name).read_bytes().split(b"\n")[:-1]
    ]
    indexes = Counter(line["batchkit"]["index"] for line in lines)
    billed = (folder / "ledger.jsonl").read_bytes().count(b"\n")
    summary = json.loads((folder / "results.summary.json").read_bytes())
    usage = Counter[str]()
    for line in lines:
        usage.update(
            {name: line["response"]["body"]["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
        )
    return Verdict(
        kills=kills,
        requests=requests,
        results=len(lines),
        lost=sum(index not in indexes for index in range(requests)),
        doubled=sum(count - 1 for count in indexes.values()),
        billed_twice=billed - len(indexes),
        bound=kills * concurrency,
        torn=len(list(folder.glob("*.torn-*"))),
        totals_agree=summary["requests"]["succeeded"] == len(lines)
        and all(summary["usage"][name] == count for name, count in usage.items()),
    )


class Campaign:
    """One job, its endpoint and whoever kills it."""

    def __init__(self, folder: Path, *, requests: int, concurrency: int, speed: float, seed: int) -> None:
        self.folder = folder
        self.requests = requests
        self.concurrency = concurrency
        self.speed = speed
        self.random = Random(seed)
        self.kills = Counter[str]()
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
        self.input, self.output = folder / "requests.jsonl", folder / "results.jsonl"
        self.input.write_bytes(b"".join(map(_request, range(requests))))

    def fight(self, kills: int) -> Verdict:
        """Kill so many runs, then leave one alone."""
        with self._endpoint() as base_url:
            began = time.monotonic()
            while (spent := self.kills.total()) < kills:
                self._kill_one(base_url, kills - spent)
                if self.kills.total() % 10 == 0 or kills < 20:
                    print(
                        f"\r{self.kills.total()} kills, {self._lines():,} of {self.requests:,} results, "
                        f"{time.monotonic() - began:.0f} s",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
            print(file=sys.stderr)
            with self._run(base_url) as last:
                said, _ = last.communicate(timeout=LONGEST_RUN_S)
            if last.returncode:
                raise SystemExit(f"the run that was left alone ended with {last.returncode}:\n{said}")
        return judge(self.folder, requests=self.requests, kills=kills, concurrency=self.concurrency)

    def _kill_one(self, base_url: str, left: int) -> None:
        """One run and its end, at a moment of a kind that is drawn."""
        random, before = self.random, self._size()
        kind = random.choices(("at its start", "in mid-run", "at its end"), (2, 5, 3))[0]
        # So that there is something to do for each that is still to be killed.
        share = max(1, (self.requests - self._lines()) // (left + 1))
        words: list[str] = []
        if kind == "at its end":
            # A run that comes to its end: it has as many requests as its limit lets it.
            words = ["--limit", str(min(self.requests, self._lines() + random.randint(1, share)))]
        with self._run(base_url, *words) as run:
            if kind == "at its start":
                # From before the interpreter stands to after the first answers.
                self._wait(run, random.uniform(0.0, 1.5))
            elif kind == "in mid-run":
                grown = before + random.randint(1, 1_000 * share)
                self._watch(run, lambda: self._size() >= grown)
                self._wait(run, random.uniform(0.0, 0.02))
            else:
                self._watch(run, lambda: self._lines() >= int(words[1]))
                self._wait(run, random.expovariate(1 / 0.02))
            if run.poll() is None:
                run.kill()
                self.kills[kind] += 1
            run.communicate()

    @staticmethod
    def _wait(run: subprocess.Popen[str], seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            run.wait(seconds)

    @staticmethod
    def _watch(run: subprocess.Popen[str], happened: Any) -> None:
        late = time.monotonic() + LONGEST_RUN_S
        while run.poll() is None and not happened():
            if time.monotonic() > late:
                raise SystemExit(f"a run did not move for {LONGEST_RUN_S} s")
            time.sleep(0.0005)

    def _size(self) -> int:
        return self.output.stat().st_size if self.output.exists() else 0

    def _lines(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def _run(self, base_url: str, *words: str) -> subprocess.Popen[str]:
        return self._start(
            "run",
            str(self.input),
            "-o",
            str(self.output),
            "--base-url",
            base_url,
            "--concurrency",
            str(self.concurrency),
            "--progress",
            "off",
            "--job-id",
            "campaign",
            *words,
        )

    def _start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "batchkit", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environ,
        )

    @contextmanager
    def _endpoint(self) -> Iterator[str]:
        ledger = str(self.folder / "ledger.jsonl")
        words = [
            "simulate",
            "--port",
            "0",
            "--speed",
            str(self.speed),
            "--output-tokens",
            "10",
            "--ledger",
            ledger,
        ]
        with self._start(*words) as simulator:
            assert simulator.stdout is not None
            try:
                # Which of its two streams speaks first is not said.
                yield next(line.strip() for line in simulator.stdout if line.startswith("http"))
            finally:
                simulator.terminate()
                simulator.communicate()


def _request(number: int) -> bytes:
    messages = [{"role": "user", "content": f"What is {number} times {number}?"}]
    body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 20}
    return json.dumps({"custom_id": f"request-{number}", "body": body}).encode() + b"\n"


def main(argv: list[str] | None = None) -> int:
    """Run a campaign and print what came of it. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Kill a job again and again, and count what is lost.")
    parser.add_argument(
        "--kills", type=int, default=200, help="how many runs are killed (default: %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=6_000, help="size of the job (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument(
        "--speed", type=float, default=20, help="of the endpoint, times life (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="batchkit-") as folder:
        campaign = Campaign(
            Path(folder),
            requests=args.requests,
            concurrency=args.concurrency,
            speed=args.speed,
            seed=args.seed,
        )
        verdict = campaign.fight(args.kills)
    print(verdict)
    print("killed         " + ", ".join(f"{count} {kind}" for kind, count in sorted(campaign.kills.items())))
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
