"""What stops a run. A request's failure is data (`records.Failure`); only a run's failure is raised.

    BatchkitError                   the root: catch this
    ├── UsageError                  wrong words, settings or input file; nothing was sent          exit 2
    │   └── MissingExtraError       an optional part is not installed
    ├── RunStopped                  stopped early, nothing lost, start again to go on              exit 3
    │   ├── EndpointRefused         the key, the quota, the address: the next request fails alike
    │   ├── TooManyFailures         --max-failures was reached
    │   └── MaxCostReached          the next attempt could pass --max-cost
    ├── JobError                    the job's files cannot be worked on                            exit 4
    │   ├── JobLocked               another run holds them
    │   ├── JobDamaged              a line is broken elsewhere than at the end
    │   ├── JobMismatch             they belong to another input or to other settings
    │   └── OutputUnwritable        the disk is gone, broken or read-only
    │       └── OutputFull          there is no room for another line; there may be later
    └── Interrupted                 a signal, after draining                                       exit 128 + signal

Every message says what happened, what is safe and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "BatchkitError",
    "EndpointRefused",
    "Interrupted",
    "JobDamaged",
    "JobError",
    "JobLocked",
    "JobMismatch",
    "MaxCostReached",
    "MissingExtraError",
    "OutputFull",
    "OutputUnwritable",
    "RunStopped",
    "TooManyFailures",
    "UsageError",
]


class BatchkitError(Exception):
    """Something stopped batchkit.

    `exit_code` is what the command ends with. `summary` is that of the run, where it had begun.
    """

    exit_code = 1
    summary: Mapping[str, Any] | None = None

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message if message is not None else (self.__doc__ or "").strip().split("\n", maxsplit=1)[0]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Past `__init__`, whose arguments are not always the message that `args` has; the rest is in the attributes.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class UsageError(BatchkitError):
    """The words, the settings or the input file are wrong; nothing was sent."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional part of batchkit is not installed."""


class RunStopped(BatchkitError):
    """The run stopped early; nothing is lost and the same command goes on.

    `code` is the word that stands in the summary's `stop_reason`.
    """

    exit_code = 3

    def __init__(self, message: str | None = None, *, code: str = "stopped") -> None:
        super().__init__(message)
        self.code = code


class EndpointRefused(RunStopped):
    """The endpoint refuses every request: its key, its quota or its address is wrong."""


class TooManyFailures(RunStopped):
    """As many requests failed as --max-failures allows."""


class MaxCostReached(RunStopped):
    """The next attempt could cost more than is left of --max-cost."""


class JobError(BatchkitError):
    """The job's files cannot be worked on."""

    exit_code = 4


class JobLocked(JobError):
    """Another run is working on the job."""


class JobDamaged(JobError):
    """A line of the job's files is damaged."""


class JobMismatch(JobError):
    """The job's files belong to another input or to other settings."""


class OutputUnwritable(JobError):
    """The output cannot be written."""


class OutputFull(OutputUnwritable):
    """There is no room on the disk, in the quota or under the file size limit."""


class Interrupted(BatchkitError):
    """A signal stopped the run after the answers in flight were written; the same command goes on.

    `signal` is the signal's number.
    """

    def __init__(self, signal: int, message: str | None = None) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = 128 + signal
