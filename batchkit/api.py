"""The front door in Python: a job run, looked at and reported on. `streaming` is the other, for requests without files."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, Unpack

import anyio

from batchkit.accounts import build_groups, build_summary
from batchkit.credentials import Credentials
from batchkit.engine.stop import Stop
from batchkit.errors import UsageError
from batchkit.estimation import estimate_input
from batchkit.formats.prices import prices_from_json
from batchkit.job import run_job, write_derived
from batchkit.observers.progress import choose as choose_progress
from batchkit.outputs import JobPaths
from batchkit.parts import refuse_other_loops
from batchkit.rules.groups import Groups
from batchkit.rules.pricing import PriceList
from batchkit.settings import RunSettings, Settings
from batchkit.state import JobState, read_state
from batchkit.store import Store

__all__ = ["arun", "estimate", "report", "run", "run_in_loop", "status"]

T = TypeVar("T")


def run(
    input: str | os.PathLike[str],  # noqa: A002 - the contract's word
    output: str | os.PathLike[str],
    **settings: Unpack[RunSettings],
) -> dict[str, Any]:
    """Work through `input` into `output` and return the job's summary; called again, it goes on where it was.

    Keywords are the settings of `batchkit run`, with the same defaults (`batchkit.settings.Settings` tells them, and
    `batchkit.RunSettings` is their type); keys come from the environment. Requests that failed are in the summary and in
    `….errors.jsonl`; raised is only what stops the run: UsageError, RunStopped, JobError, all of them BatchkitError, with the
    run's `summary` where it had begun. May be called while an event loop is running.
    """
    return _from_outside(lambda: arun(input, output, **settings))


async def arun(
    input: str | os.PathLike[str],  # noqa: A002 - the contract's word
    output: str | os.PathLike[str],
    **settings: Unpack[RunSettings],
) -> dict[str, Any]:
    """The same as `run`, for callers with an event loop of their own (asyncio, or uvloop; UsageError under trio)."""
    refuse_other_loops()
    chosen = Settings.of(settings)
    progress = choose_progress(chosen.progress, sys.stderr)
    return await run_job(
        os.fspath(input),
        JobPaths.of(output).results,
        chosen,
        # A simulated run takes no key, so it needs none that is right.
        Credentials() if chosen.simulate else Credentials.read(os.environ),
        stop=Stop(),
        observers=() if progress is None else (progress,),
    )


def estimate(
    input: str | os.PathLike[str],  # noqa: A002 - the contract's word
    *,
    pilot: int | None = None,
    **settings: Unpack[RunSettings],
) -> dict[str, Any]:
    """What `input` will take: requests, tokens, US dollars and seconds, before any is spent (`formats.estimate` is its shape).

    Keywords are those of `run`; `rpm`, `tpm` and `base_url` tell limits and whose prices they are. Nothing is sent and no key
    is needed, unless `pilot` says how many of the requests to send, spread evenly over the input, to measure what answers
    take: they cost what they cost. Bad lines are counted and no error. Raises UsageError where the input cannot be read,
    RunStopped where the pilot cannot go on. May be called while an event loop is running.
    """
    return estimate_input(
        os.fspath(input), Settings.of(settings), os.environ, pilot=pilot, run_in_loop=_from_outside
    )


def status(output: str | os.PathLike[str]) -> dict[str, Any]:
    """How far a job is, from its files, also while a run is working on it; the summary's shape.

    Raises UsageError where there is no such job, JobDamaged where its files cannot be read.
    """
    state = read_state(_existing(output))
    return build_summary(state, _prices_of(state))


def report(output: str | os.PathLike[str], *, by: str | None = None) -> dict[str, Any]:
    """Rebuild the summary and the report of a job from its output lines alone, write both, and return the summary.

    With `by`, as in `by="metadata.team"`, what is returned has one key more: `{"by": {"metadata.team": {VALUE: …}}}`, the same
    totals apart by what the requests' metadata says. Requests without it stand under "(none)"; of more than 10,000 values the
    smallest are kept, and the rest stands under "(other)".

    Raises UsageError where there is no such job or `by` cannot be meant, JobLocked while a run is working on it, JobDamaged
    where its files cannot be read.
    """
    groups = None if by is None else Groups(_metadata_key(by))
    path = _existing(output)
    store = Store.open(path)
    try:
        state = read_state(path, held=True, from_files_alone=True, groups=groups)
        prices = _prices_of(state)
        summary = build_summary(state, prices)
        write_derived(store, summary)
    finally:
        store.close()
    if by is not None and groups is not None:
        summary["by"] = build_groups(by, groups, prices)
    return summary


def _metadata_key(by: object) -> str:
    if not isinstance(by, str) or not by.startswith("metadata.") or by == "metadata.":
        raise UsageError(f"by is metadata.KEY, as in metadata.team, not {by!r:.100}")
    return by.removeprefix("metadata.")


def _prices_of(state: JobState) -> PriceList:
    run = state.run
    return PriceList(
        at=time.time() if run is None else run.started_at,
        base_url="" if run is None or run.simulated else run.base_url,
        given=None if run is None else prices_from_json(run.prices),
    )


def _existing(output: str | os.PathLike[str]) -> Path:
    """The path of an output that is there."""
    paths = JobPaths.of(output)
    if not paths.results.is_file() and not paths.errors.is_file():
        raise UsageError(f"there is no job with the output {paths.results}: it is not a file")
    paths.refuse_foreign()
    return paths.results


def _from_outside(work: Callable[[], Awaitable[T]]) -> T:
    """Run to the end, in an event loop of our own; in a thread of our own where this one has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run_in_loop(work)
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def told() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        return await work()

    with ThreadPoolExecutor(1, "batchkit") as thread:
        future = thread.submit(run_in_loop, told)
        try:
            return future.result()
        except KeyboardInterrupt:
            # Ctrl-C is for this thread alone; the other would work on, and leaving would wait for it.
            for loop, task in running:
                loop.call_soon_threadsafe(task.cancel)
            raise


def run_in_loop(work: Callable[[], Awaitable[T]]) -> T:
    """Run to the end in a new event loop, uvloop's where it exists."""
    return anyio.run(work, backend_options={"use_uvloop": find_spec("uvloop") is not None})
