"""Servers and readers that others wrote for the same API, in an environment of their own.

`make litellm` installs it; where it is not installed, these tests are skipped. The command, the endpoints and the files
are those of `tests/acceptance`.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance import conftest as acceptance
from servers.server_process import CACHE, ServerProcess, running

command, simulate, provider = acceptance.command, acceptance.simulate, acceptance.provider
files, write_requests, until = acceptance.files, acceptance.write_requests, acceptance.until
real_data = acceptance.real_data

MASTER_KEY = "sk-litellm-0123456789abcdef"
_PYTHON = CACHE / "litellm" / "venv" / "bin" / "python"
_LISTENING = re.compile(rb"running on http://127\.0\.0\.1:(\d+)")


@pytest.fixture(scope="session")
def foreign_python() -> Path:
    """The Python that has LiteLLM and OpenAI's client, as `.ci/litellm/requirements.txt` names them."""
    if not _PYTHON.exists():
        pytest.skip(f"LiteLLM is not installed in {CACHE / 'litellm'}; `make litellm` does it")
    return _PYTHON


@pytest.fixture(scope="session")
def started_litellm(foreign_python: Path) -> Iterator[ServerProcess]:
    argv = [foreign_python, Path(__file__).with_name("litellm_proxy.py")]
    # The price list in the package, not a newer one from elsewhere.
    environ = {"LITELLM_MASTER_KEY": MASTER_KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(argv, listening=_LISTENING, environ=environ) as litellm:
        yield litellm


@pytest.fixture
def litellm(started_litellm: ServerProcess, command: acceptance.Command) -> Iterator[ServerProcess]:
    """The proxy; the command has its key."""
    command.environ["OPENAI_API_KEY"] = MASTER_KEY
    with started_litellm.watched():
        yield started_litellm


@pytest.fixture
def read_with_openai(foreign_python: Path) -> Callable[..., dict[str, Any]]:
    """Has files read as `openai_reader.py` tells."""

    def read(*paths: Path) -> dict[str, Any]:
        argv = [foreign_python, Path(__file__).with_name("openai_reader.py"), *paths]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=acceptance.LONGEST_S)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return read
