"""The simulator as a child: it serves, it outlasts a Ctrl-C, and it never outlives its parent."""

import json
import os
import signal
import subprocess
import sys

import aiohttp
import pytest

from batchkit.errors import RunStopped, UsageError
from batchkit.simulator import process
from batchkit.simulator.process import EmbeddedSimulator
from batchkit.simulator.server import Simulator
from batchkit.simulator.settings import SimulatorSettings

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello!"}]}


async def ask(base_url: str) -> dict:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base_url}/chat/completions", json=BODY) as response,
    ):
        assert response.status == 200
        return await response.json()


async def test_a_child_answers_as_told_survives_ctrl_c_and_is_gone_afterwards():
    settings = SimulatorSettings(instant=True, seed=5, faults={"500": 0.0}, output_tokens=9)
    async with EmbeddedSimulator(settings) as embedded:
        pid = embedded.pid
        assert pid != os.getpid()
        assert os.getsid(pid) == pid
        answer = await ask(embedded.base_url)
        os.kill(pid, signal.SIGINT)
        assert (await ask(embedded.base_url))["choices"] == answer["choices"]
    assert embedded.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    async with Simulator(settings) as simulator:
        assert (await ask(simulator.base_url))["choices"] == answer["choices"]


async def test_what_the_child_cannot_have_is_the_parents_usage_error():
    async with Simulator(SimulatorSettings()) as simulator:
        port = int(simulator.base_url.split(":")[2].split("/")[0])
        with pytest.raises(UsageError, match=f"port {port}"):
            async with EmbeddedSimulator(SimulatorSettings(port=port)):
                pass


async def test_a_child_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunStopped, match="status 1"):
        async with EmbeddedSimulator():
            pass


async def test_a_child_that_says_nothing_is_given_up(monkeypatch, tmp_path):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    mute.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(mute))
    monkeypatch.setattr(process, "_LONGEST_START_S", 0.05)
    embedded = EmbeddedSimulator()
    with pytest.raises(RunStopped, match="did not start"):
        async with embedded:
            pass
    assert embedded.pid is None


PARENT = """
import asyncio, signal
from batchkit.simulator.process import EmbeddedSimulator
async def main():
    async with EmbeddedSimulator() as embedded:
        print(embedded.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_parent_killed_with_9_takes_the_child_along():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        # The child has the same standard error: it ends when both have ended.
        assert parent.stderr.read() == b""


def test_the_child_tells_where_it_listens_and_stops_when_its_input_ends():
    settings = json.dumps({"instant": True}).encode() + b"\n"
    child = subprocess.run(
        [sys.executable, "-m", "batchkit.simulator"],
        input=settings,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0
    assert json.loads(child.stdout)["base_url"].startswith("http://127.0.0.1:")
    assert child.stderr == b""
