"""Portkey's open-source gateway, a real process, between batchkit and an endpoint on loopback.

`make gateway` installs it; where it is not installed, these tests are skipped. The command, the endpoints and the files
are those of `tests/acceptance`.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance import conftest as acceptance
from servers.server_process import CACHE, ServerProcess, running

from batchkit.formats.headers import EndpointAddress, endpoint_address

command, simulate, record = acceptance.command, acceptance.simulate, acceptance.record
write_requests, files, until = acceptance.write_requests, acceptance.files, acceptance.until

PROVIDER_KEY = "sk-provider-0123456789abcdef"
_PROGRAM = CACHE / "gateway" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
_LISTENING = re.compile(rb"Listening on port (\d+)")


@pytest.fixture(scope="session")
def started_gateway() -> Iterator[ServerProcess]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the gateway with")
    if not _PROGRAM.exists():
        pytest.skip(f"the gateway is not installed in {CACHE / 'gateway'}; `make gateway` does it")
    loopback = Path(__file__).with_name("loopback.cjs")
    argv = [node, "--require", loopback, _PROGRAM, "--headless", "--port=0"]
    with running(argv, listening=_LISTENING, environ={"NODE_ENV": "production"}) as gateway:
        yield gateway


@pytest.fixture
def gateway(started_gateway: ServerProcess) -> Iterator[ServerProcess]:
    with started_gateway.watched():
        yield started_gateway


def config_for(upstream: Any, **config: Any) -> str:
    """A Portkey config that leads to `upstream`. The gateway takes none that says nothing of retries or the like."""
    return json.dumps({"custom_host": upstream.base_url, "retry": {"attempts": 0}, **config})


@pytest.fixture
def through(
    gateway: ServerProcess, command: acceptance.Command, files: acceptance.Files
) -> Callable[..., list[Any]]:
    """The words of a run that goes through the gateway to an endpoint; more keywords are fields of Portkey's config."""
    command.environ["OPENAI_API_KEY"] = PROVIDER_KEY

    def words(upstream: Any, requests: Path, **config: Any) -> list[Any]:
        run = ["run", requests, "-o", files.results_path, "--base-url", f"http://127.0.0.1:{gateway.port}/v1"]
        return [
            *run,
            "--portkey-provider",
            "openai",
            "--portkey-config",
            config_for(upstream, **config),
            "--json",
        ]

    return words


@pytest.fixture
def address(gateway: ServerProcess) -> Callable[..., EndpointAddress]:
    """The same way as an address, for who wants to look at a single answer; `timeout` is what the gateway is told."""

    def make(upstream: Any, *, timeout: float = 60.0, **config: Any) -> EndpointAddress:
        return endpoint_address(
            f"http://127.0.0.1:{gateway.port}/v1",
            version="0",
            timeout=timeout,
            openai_api_key=PROVIDER_KEY,
            portkey_provider="openai",
            portkey_config=config_for(upstream, **config),
        )

    return make
