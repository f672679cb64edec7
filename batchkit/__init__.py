"""A file of prompts in, a file of answers out.

    summary = batchkit.run("requests.jsonl", "results.jsonl", base_url="http://127.0.0.1:8000/v1")

`run` and `arun` work through files and go on where they were; `stream` takes any iterable of records and yields outcomes
as they come. What is in `__all__` is promised; the modules beneath may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchkit.version import __version__

if TYPE_CHECKING:
    from batchkit.api import arun, estimate, report, run, status
    from batchkit.errors import (
        BatchkitError,
        EndpointRefused,
        Interrupted,
        JobDamaged,
        JobError,
        JobLocked,
        JobMismatch,
        MaxCostReached,
        MissingExtraError,
        OutputFull,
        OutputUnwritable,
        RunStopped,
        TooManyFailures,
        UsageError,
    )
    from batchkit.mending import repair
    from batchkit.records import Failure, FailureKind, Outcome, Reply, Usage
    from batchkit.settings import RunSettings
    from batchkit.simulator.server import Simulator
    from batchkit.simulator.settings import SimulatorSettings
    from batchkit.streaming import stream
    from batchkit.validation import validate

__all__ = [
    "BatchkitError",
    "EndpointRefused",
    "Failure",
    "FailureKind",
    "Interrupted",
    "JobDamaged",
    "JobError",
    "JobLocked",
    "JobMismatch",
    "MaxCostReached",
    "MissingExtraError",
    "Outcome",
    "OutputFull",
    "OutputUnwritable",
    "Reply",
    "RunSettings",
    "RunStopped",
    "Simulator",
    "SimulatorSettings",
    "TooManyFailures",
    "Usage",
    "UsageError",
    "__version__",
    "arun",
    "estimate",
    "repair",
    "report",
    "run",
    "status",
    "stream",
    "validate",
]

# Importing the engine takes a third of a second; `batchkit --version` and a program that only catches an error need none.
_HOMES = {
    "batchkit.errors": (
        "BatchkitError EndpointRefused Interrupted JobDamaged JobError JobLocked JobMismatch MaxCostReached "
        "MissingExtraError OutputFull OutputUnwritable RunStopped TooManyFailures UsageError"
    ),
    "batchkit.api": "arun estimate report run status",
    "batchkit.records": "Failure FailureKind Outcome Reply Usage",
    "batchkit.mending": "repair",
    "batchkit.settings": "RunSettings",
    "batchkit.simulator.server": "Simulator",
    "batchkit.simulator.settings": "SimulatorSettings",
    "batchkit.streaming": "stream",
    "batchkit.validation": "validate",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # for a type checker every name would be one of ours

    def __getattr__(name: str) -> Any:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
