"""The programs that are compared, each started as its own process: batchkit, a bare aiohttp loop, and peers.

A peer runs in an environment of its own beside its file, made on first use with exactly what its list of versions names.
Where that cannot be (no network, no wheel for this Python), the peer is left out, and it is said.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from processes import environment

__all__ = ["PROGRAMS", "Program", "prepare"]

_FOLDER = Path(__file__).parent / "peers"
_ENVIRONMENTS = _FOLDER / ".environments"


@dataclass(frozen=True)
class Program:
    """One way to do the job."""

    name: str
    title: str
    """As the table calls it."""
    script: str = ""
    """Its file among the peers; empty for batchkit, which is its command as it is."""
    versions: str = ""
    """The list of what its environment holds; empty where it is ours."""
    share: float = 1.0
    """The share of a row's requests that it is given: what it takes for each is steady, and the slow ones would take minutes."""
    variables: Mapping[str, str] = field(default_factory=dict)
    asked_for: bool = False
    """Whether it is left out unless somebody names it."""

    @property
    def python(self) -> Path:
        return _ENVIRONMENTS / self.name / "bin" / "python" if self.versions else Path(sys.executable)

    def argv(self, requests: Path, results: Path, base_url: str, in_flight: int) -> list[str]:
        if self.script:
            words = [str(self.python), str(_FOLDER / self.script), str(requests), str(results)]
            return [*words, base_url, str(in_flight)]
        words = [str(self.python), "-m", "batchkit", "run", str(requests), "-o", str(results)]
        return [*words, "--base-url", base_url, "--concurrency", str(in_flight), "--progress", "off"]

    def env(self, **more: str) -> dict[str, str]:
        """What it sees of the environment; one that is not ours has no use for our PYTHONPATH."""
        seen = environment(**self.variables, **more)
        if self.versions:
            seen.pop("PYTHONPATH", None)
        return seen


PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program("batchkit", "**batchkit**"),
        Program("aiohttp", "bare aiohttp loop", "over_aiohttp.py"),
        Program("lm-eval", "lm-evaluation-harness", "over_lm_eval.py", "lm_eval.txt", 1 / 5, {"HF_HUB_OFFLINE": "1"}),
        Program("openai", "openai client, semaphore", "over_openai.py", "openai.txt", 1 / 40),
        Program(
            "litellm", "litellm acompletion, semaphore", "over_litellm.py", "litellm.txt", 1 / 40,
            # Its price list comes from the network otherwise, at every start.
            {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        ),
        Program(
            "window", "batchkit with a fixed window", "batchkit_but.py", variables={"DIFFERENCE": "window"}, asked_for=True,
        ),
        Program(
            "session", "batchkit over aiohttp's session", "batchkit_but.py", variables={"DIFFERENCE": "session"}, asked_for=True,
        ),
    )
}  # fmt: skip


def prepare(program: Program) -> str | None:
    """See to it that `program` can run. None, or the reason why it cannot."""
    if not program.versions:
        return None
    wanted = (_FOLDER / program.versions).read_text(encoding="utf-8")
    place = _ENVIRONMENTS / program.name
    made_of = place / program.versions
    if made_of.exists() and made_of.read_text(encoding="utf-8") == wanted:
        return None
    print(f"{program.name}: making its environment in {place}, once", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    pip = [
        str(program.python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "2",
    ]
    for argv in (
        [sys.executable, "-m", "venv", str(place)],
        [*pip, "--no-deps", "-r", str(_FOLDER / program.versions)],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (errors or done.stderr.splitlines() or [f"{argv[0]} ended with {done.returncode}"])[-1]
    made_of.write_text(wanted, encoding="utf-8")
    return None
