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

from batchkit.engine.stop import Stop
from batchkit.errors import UsageError
from batchkit.job import run_job, write_derived
from batchkit.observers.progress import choose as choose_progress
from batchkit.outputs import JobPaths
from batchkit.rules.pricing import PriceList
from batchkit.settings import Credentials, RunSettings, Settings
from batchkit.state import build_summary, read_state
from batchkit.store import Store

__all__ = ["arun", "report", "run", "run_in_loop", "status"]

T = TypeVar("T")


def run(
    input: str | os.PathLike[str],  # noqa: A002 - the contract's word
    output: str | os.PathLike[str],
    **settings: Unpack[RunSettings],
) -> dict[str, Any]:
    """Work through `input` into `output` and return the job's summary; called again, it goes on where it was.

    Keywords are the flags of `batchkit run`, with the same defaults (`batchkit.settings.Settings` tells them); keys come
    from the environment. Requests that failed are in the summary and in `….errors.jsonl`; raised is only what stops the
    run: UsageError, RunStopped, JobError, all of them BatchkitError, with the run's `summary` where it had begun. May be
    called while an event loop is running.
    """
    return _from_outside(lambda: arun(input, output, **settings))


async def arun(
    input: str | os.PathLike[str],  # noqa: A002 - the contract's word
    output: str | os.PathLike[str],
    **settings: Unpack[RunSettings],
) -> dict[str, Any]:
    """The same as `run`, for callers with an event loop of their own (asyncio, or uvloop)."""
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


def status(output: str | os.PathLike[str]) -> dict[str, Any]:
    """How far a job is, from its files, also while a run is working on it; the summary's shape.

    Raises UsageError where there is no such job, JobDamaged where its files cannot be read.
    """
    return _summary_of(_existing(output), held=False)


def report(output: str | os.PathLike[str]) -> dict[str, Any]:
    """Rebuild the summary and the report of a job from its output lines alone, write both, and return the summary.

    Raises UsageError where there is no such job, JobLocked while a run is working on it, JobDamaged where its files
    cannot be read.
    """
    path = _existing(output)
    store = Store.open(path)
    try:
        summary = _summary_of(path, held=True)
        write_derived(store, summary)
    finally:
        store.close()
    return summary


def _summary_of(output: Path, *, held: bool) -> dict[str, Any]:
    state = read_state(output, held=held, from_files_alone=held)
    run = state.run
    prices = PriceList(
        at=time.time() if run is None else run.started_at,
        base_url="" if run is None or run.simulated else run.base_url,
    )
    return build_summary(state, prices)


def _existing(output: str | os.PathLike[str]) -> Path:
    """The path of an output that is there."""
    paths = JobPaths.of(output)
    if not paths.results.is_file() and not paths.errors.is_file():
        raise UsageError(f"there is no job with the output {paths.results}: it is not a file")
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
