"""A whole run against a provider that keeps a limit by the second, with and without its saying so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import batchkit
from batchkit.simulator import wire
from batchkit.simulator.server import Simulator
from batchkit.simulator.settings import SimulatorSettings

REQUESTS = 250


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    bodies = (
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Say {number}."}]}
        for number in range(REQUESTS)
    )
    path.write_text("".join(json.dumps({"body": body}) + "\n" for body in bodies))
    return path


async def refused(requests: Path, output: Path) -> int:
    """How often the run was refused; all of it succeeds."""
    async with Simulator(SimulatorSettings(instant=True, rpm=3_000)) as simulator:
        summary = await batchkit.arun(requests, output, base_url=simulator.base_url, progress="off")
    assert summary["requests"]["succeeded"] == REQUESTS
    return summary["attempts"]["by_reason"].get("rate_limited", 0)


async def test_a_limit_that_the_answers_announce_is_not_run_into(requests, tmp_path):
    assert await refused(requests, tmp_path / "results.jsonl") <= 0.015 * REQUESTS


async def test_the_same_limit_is_found_by_refusals_where_nothing_announces_it(
    requests, tmp_path, monkeypatch
):
    monkeypatch.setattr(wire, "rate_limit_headers", lambda _: {})
    assert await refused(requests, tmp_path / "results.jsonl") > 0.02 * REQUESTS
