"""The end of a job at a real server where one attempt in a hundred is never answered."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

import batchkit
from batchkit.observers.progress import ProgressLog
from batchkit.rules import patience
from batchkit.simulator.server import Simulator
from batchkit.simulator.settings import FaultKind, SimulatorSettings

REQUESTS = 400
HANGS = SimulatorSettings(instant=True, faults={FaultKind.HANG: 0.01}, seed=3)
AT_LEAST_S = 1.0
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORTKEY_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(patience, "LEAST_S", AT_LEAST_S)
    monkeypatch.setattr(ProgressLog, "interval_s", 0.1)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    bodies = [
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Say {n}."}]}
        for n in range(REQUESTS)
    ]
    path.write_text(
        "".join(
            json.dumps({"custom_id": f"review-{n}", "body": body}) + "\n" for n, body in enumerate(bodies)
        )
    )
    return path


def lines(output: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


async def test_what_hangs_is_named_given_up_and_asked_again(requests, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    began = time.monotonic()
    async with Simulator(HANGS) as simulator:
        summary = await batchkit.arun(
            requests, output, base_url=simulator.base_url, timeout=TIMEOUT_S, progress="log"
        )
        hung = simulator.stats.faulted
    assert hung > 1
    assert time.monotonic() - began < TIMEOUT_S / 3
    assert summary["requests"]["succeeded"] == REQUESTS
    assert summary["attempts"]["by_reason"] == {"timeout": hung}
    assert summary["attempts"]["maybe_billed"] == hung
    told = capsys.readouterr().err
    assert "when 99 of 100 of its like took" in told
    waited_for = [line for line in told.splitlines() if "waiting for " in line]
    repeated = {line["custom_id"] for line in lines(output) if "retries" in line["batchkit"]}
    assert any(f"{custom_id} (since " in line for custom_id in repeated for line in waited_for)


async def test_with_a_fixed_timeout_it_is_waited_for(requests, tmp_path):
    async with Simulator(HANGS) as simulator:
        summary = await batchkit.arun(
            requests,
            tmp_path / "out.jsonl",
            base_url=simulator.base_url,
            timeout=2.5,
            fixed_timeout=True,
            progress="off",
        )
    assert summary["latency_s"]["max"] < 2.5
    assert summary["time"]["active_s"] > 2.5


async def test_a_second_attempt_answers_and_the_totals_are_what_the_server_billed(requests, tmp_path):
    output, ledger = tmp_path / "results.jsonl", tmp_path / "ledger.jsonl"
    async with Simulator(replace(HANGS, ledger=str(ledger))) as simulator:
        summary = await batchkit.arun(
            requests,
            output,
            base_url=simulator.base_url,
            timeout=TIMEOUT_S,
            fixed_timeout=True,
            hedge="10%",
            progress="off",
        )
        stats = simulator.stats
    assert summary["time"]["active_s"] < TIMEOUT_S / 3
    assert summary["requests"]["succeeded"] == REQUESTS
    assert summary["attempts"]["by_reason"]["hedged"] >= stats.faulted > 1
    assert summary["attempts"]["total"] == REQUESTS + summary["attempts"]["retried"]
    # Each answer that was billed is a result, one that was not needed, or one that nobody saw: there two attempts were good.
    unseen = Counter(line["traceparent"].split("-")[1] for line in lines(ledger))
    tokens = {line["traceparent"].split("-")[1]: line["completion_tokens"] for line in lines(ledger)}
    for line in lines(output):
        own = line["batchkit"]
        unseen[own["trace_id"]] -= 1 + len(own.get("billed", ()))
        assert 0 <= unseen[own["trace_id"]] <= own.get("maybe_billed", 0)
    assert summary["usage"]["completion_tokens"] == stats.billed_completion_tokens - sum(
        number * tokens[trace_id] for trace_id, number in unseen.items()
    )
    assert batchkit.report(output) == summary
