"""Requests from any iterable, outcomes as they come; no files.

The same pipeline as a job's, with the caller in the writer's place. Outcomes that the caller has not taken hold back new
requests, so a slow consumer costs no memory.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, Unpack

import anyio
from anyio import to_thread

from batchkit.credentials import Credentials
from batchkit.endpoint import open_endpoint
from batchkit.engine.gate import Clock, SystemClock
from batchkit.engine.monitor import Monitor, Readings
from batchkit.engine.pipeline import Pipeline
from batchkit.engine.purse import Purse
from batchkit.engine.stop import Stop
from batchkit.errors import UsageError
from batchkit.events import RequestFinished
from batchkit.formats.headers import EndpointAddress
from batchkit.formats.requests import parse_record
from batchkit.observers.progress import choose as choose_progress
from batchkit.parts import (
    affordable,
    build_delivery,
    build_purse,
    new_job_id,
    open_address,
    refuse_other_loops,
    too_many_failures,
    worst_cases_of,
)
from batchkit.records import Outcome
from batchkit.rules.pricing import PriceList
from batchkit.rules.spending import Spending
from batchkit.rules.tally import Tally
from batchkit.settings import OF_FILES, RunSettings, Settings

__all__ = ["stream"]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class _Record:
    index: int
    record: Any

    @property
    def offset(self) -> int:
        return self.index


async def stream(
    requests: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    **settings: Unpack[RunSettings],
) -> AsyncGenerator[Outcome, None]:
    """Send `requests`, records in any of the input's shapes, and yield an `Outcome` for each as it ends.

    They come in the order in which they end; `outcome.index` counts the records from 0. Keywords are those of `run`, but
    nothing is written and nothing resumed, so those that say what becomes of a job's files (`retry_failed`, `overwrite`,
    `allow_growth`, `force`, `rescan`) are refused; `progress` is off unless asked for. `max_cost` and `max_failures` are for
    this stream alone. A share of failures is one of `requests`, as far as `limit` lets them be sent, where they are a
    collection, as a list is; else of what has ended, once that is a hundred. An iterable that is not async is read in
    a thread. Raises UsageError before the first request and RunStopped after the outcomes of what was in flight. Leaving
    the loop early, also by an error, ends what is in flight as soon as the generator is closed: Python does that by itself
    soon after, `contextlib.aclosing` does it on the spot. The event loop is asyncio's, or uvloop; under trio that is a UsageError.
    """
    refuse_other_loops()
    chosen = Settings.of({"progress": "off", **settings})
    unmeant = [name for name in OF_FILES if getattr(chosen, name)]
    if unmeant:
        raise UsageError(f"a stream has no files, so there is no meaning for it in {', '.join(unmeant)}")
    if isinstance(requests, Mapping | str | bytes) or not isinstance(requests, Iterable | AsyncIterable):
        raise UsageError(
            f"requests is a {type(requests).__name__}; it is an iterable of records, such as a list of dicts"
        )
    progress = choose_progress(chosen.progress, sys.stderr)
    outcomes: deque[Outcome] = deque()
    came, taken = asyncio.Event(), asyncio.Event()
    most = 2 * chosen.concurrency
    tally = Tally()
    stop, clock = Stop(), SystemClock()
    monitor = Monitor(() if progress is None else (progress,), clock)

    def to_do() -> int | None:
        if not isinstance(requests, Collection):
            return None
        return len(requests) if chosen.limit is None else min(len(requests), chosen.limit)

    def write(outcome: Outcome) -> None:
        tally.add(outcome)
        outcomes.append(outcome)
        came.set()
        monitor.emit(RequestFinished(outcome))
        if not outcome.succeeded:
            cause = too_many_failures(chosen, tally.succeeded, tally.failed, to_do())
            if cause is not None:
                stop.request(cause)

    async def until_taken() -> None:
        while len(outcomes) >= most and stop.cause is None:
            taken.clear()
            await taken.wait()

    async def work() -> None:
        async with AsyncExitStack() as parts:
            # A simulated run takes no key, so it needs none that is right.
            credentials = Credentials() if chosen.simulate else Credentials.read(os.environ)
            address = await open_address(parts, chosen, credentials)
            endpoint = await parts.enter_async_context(open_endpoint(address, timeout=chosen.timeout))
            job_id = chosen.job_id or new_job_id(time.time())
            concurrency = affordable(chosen.concurrency, monitor)
            purse = await _purse(chosen, address, stop, clock, monitor)
            gate, delivery = build_delivery(
                endpoint,
                chosen,
                job_id,
                stop,
                clock,
                monitor,
                url=address.url,
                concurrency=concurrency,
                purse=purse,
            )
            pipeline = Pipeline(
                _batches(requests),
                parse=lambda item: parse_record(item.record, item.index, chosen.defaults, address=address),
                is_done=lambda _: False,
                deliver=delivery.deliver,
                proven=lambda: delivery.proven,
                write=write,
                concurrency=concurrency,
                job_id=job_id,
                stop=stop,
                clock=clock,
                limit=chosen.limit,
                room=lambda: until_taken() if len(outcomes) >= most else None,
                held=gate.held,
            )
            monitor.readings = Readings(
                tally,
                pipeline,
                delivery,
                gate,
                concurrency,
                lambda: (tally.succeeded, tally.failed),
                lambda: None,
                lambda: (None, False),
            )
            broke: Exception | None = None
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(monitor.watch)
                    group.start_soon(delivery.under_way.run)
                    try:
                        await pipeline.run()
                    except Exception as error:  # noqa: BLE001 - raised again, outside the group that would wrap it
                        broke = error
                    group.cancel_scope.cancel()
            finally:
                monitor.close()
            if broke is not None:
                raise broke

    # The one task that is not in a group: a generator may not hold one open while its caller's code runs. Everything else
    # lives within it, and it ends with the generator.
    working = asyncio.create_task(work())
    working.add_done_callback(lambda _: came.set())
    try:
        while True:
            while outcomes:
                yield outcomes.popleft()
                taken.set()
            if working.done():
                break
            came.clear()
            await came.wait()
        await working
        # It may have been asked to stop when there was nothing left to stop.
        if stop.cause is not None and tally.succeeded + tally.failed != to_do():
            raise stop.cause
    finally:
        if not working.done():
            working.cancel()
            cancelled: asyncio.CancelledError | None = None
            while not working.done():
                try:
                    # Not awaited itself: its being cancelled and the caller's being so would look alike.
                    await asyncio.wait([working])
                except asyncio.CancelledError as error:
                    cancelled = error  # anyio cancels again and again
            if cancelled is not None:
                raise cancelled
            if not working.cancelled():
                working.result()


async def _purse(
    settings: Settings, address: EndpointAddress, stop: Stop, clock: Clock, monitor: Monitor
) -> Purse | None:
    """What pays for the attempts of a stream with a `max_cost`, which is for that stream alone."""
    cap = settings.cost_cap
    if cap is None:
        return None
    base_url = "" if settings.simulate else address.base_url
    prices = PriceList(at=clock.time(), base_url=base_url, given=settings.given_prices)
    await clock.in_thread(prices.load)
    worst_cases = worst_cases_of(settings, prices)

    async def authorise(_: Decimal) -> bool:
        return True

    return build_purse(Spending(cap, authorised=cap), worst_cases, stop, clock, monitor, authorise)


async def _batches(
    records: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
) -> AsyncIterator[list[_Record]]:
    index = 0
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield [_Record(index, record)]
            index += 1
        return
    iterator = iter(records)
    in_memory = isinstance(records, list | tuple)
    while True:
        batch = (
            list(islice(iterator, _BATCH))
            if in_memory
            else await to_thread.run_sync(list, islice(iterator, _BATCH))
        )
        if not batch:
            return
        yield [_Record(index + at, record) for at, record in enumerate(batch)]
        index += len(batch)
