"""Killed and started again: each request is answered, and stands in the output, exactly once.

Starts a simulator and a job, kills the job with SIGKILL half way, shows how far it came, and gives the same command
again. Then it reads the output and counts.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCHKIT = [sys.executable, "-m", "batchkit"]
REVIEWS = Path(__file__).parent / "reviews.jsonl"
REQUESTS = 300


def main() -> None:
    simulate = [*BATCHKIT, "simulate", "--port", "0", "--speed", "5"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as simulator,
    ):
        assert simulator.stdout is not None
        try:
            work(Path(folder) / "results.jsonl", base_url=simulator.stdout.readline().strip())
        finally:
            simulator.terminate()


def work(results: Path, base_url: str) -> None:
    job = [*BATCHKIT, "run", str(REVIEWS), "-o", str(results), "--base-url", base_url, "--concurrency", "40"]
    with subprocess.Popen([*job, "--progress", "off"], stdout=subprocess.DEVNULL) as run:
        while run.poll() is None and count_lines(results) < REQUESTS // 2:
            time.sleep(0.01)
        run.kill()
    killed_at = count_lines(results)
    print(f"killed with {killed_at} of {REQUESTS} lines written")

    status = subprocess.run(
        [*BATCHKIT, "status", str(results), "--json"], check=True, capture_output=True, text=True
    )
    print("status:", json.loads(status.stdout)["requests"])

    subprocess.run([*job, "--progress", "off"], check=True, stdout=subprocess.DEVNULL)
    with results.open(encoding="utf-8") as lines:
        indexes = [json.loads(line)["batchkit"]["index"] for line in lines]
    assert sorted(indexes) == list(range(REQUESTS))
    print(
        f"started again: {len(indexes) - killed_at} more lines, each of the {REQUESTS} requests exactly once"
    )


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


main()
