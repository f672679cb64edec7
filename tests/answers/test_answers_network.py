"""A server that is really gone for ten minutes: its port is closed, and opened again."""

from __future__ import annotations

import asyncio

import anyio
from answer_rows import GOOD
from bare_delivery import bare_delivery
from scripted_server import ScriptedServer

from batchkit.engine.delivery import Delivery
from batchkit.events import AttemptFailed, Event, Notice
from batchkit.formats.headers import endpoint_address
from batchkit.records import Outcome, Request
from batchkit.testing import ManualClock

WORKERS = 16


async def closed_port(server: ScriptedServer) -> tuple[str, int]:
    """A base URL with nobody behind it, and its port."""
    async with server.listening() as url:
        return url, int(url.rpartition(":")[2].removesuffix("/v1"))


async def deliver(delivery: Delivery, index: int, outcomes: list[Outcome]) -> None:
    outcome = await delivery.deliver(Request(index, f"r{index}", b"{}"))
    assert outcome is not None
    outcomes.append(outcome)


async def test_fault_32_a_network_that_is_gone_for_ten_minutes_costs_no_attempt_and_is_probed_now_and_then(
    open_endpoint,
):
    clock, server, back = ManualClock(), ScriptedServer(after=GOOD), asyncio.Event()
    events: list[Event] = []
    outcomes: list[Outcome] = []
    url, port = await closed_port(server)
    async with open_endpoint(endpoint_address(url, version="0", timeout=10), timeout=10) as endpoint:
        delivery = bare_delivery(endpoint, clock, events.append)
        async with server.listening(port):
            await deliver(delivery, 0, outcomes)

        async def come_back() -> None:
            await clock.sleep(600.0)
            async with server.listening(port):
                await back.wait()

        async with anyio.create_task_group() as group:
            group.start_soon(come_back)
            async with anyio.create_task_group() as workers:
                for index in range(1, WORKERS + 1):
                    workers.start_soon(deliver, delivery, index, outcomes)
            back.set()
    assert [outcome.succeeded for outcome in outcomes] == [True] * (1 + WORKERS)
    assert {reason for outcome in outcomes for reason in outcome.retries} == {"connection_error"}
    assert sum(outcome.maybe_billed for outcome in outcomes) == 0
    assert server.received == 1 + WORKERS
    assert 600.0 < clock.now() < 640.0
    # Each worker once, then the probes.
    assert sum(isinstance(event, AttemptFailed) for event in events) < WORKERS + 60
    told = [event.message for event in events if isinstance(event, Notice)]
    assert ["cannot be reached since" in told[0], "reached again" in told[1]] == [True, True]


async def test_a_connection_that_comes_about_ends_the_pause_before_anything_is_answered_over_it(
    open_endpoint,
):
    """A model may think for minutes: nobody waits for the probe's answer."""
    clock, all_heard = ManualClock(), asyncio.Event()

    async def together(writer: asyncio.StreamWriter) -> None:
        if server.received == 1 + WORKERS:
            all_heard.set()
        await all_heard.wait()
        writer.write(GOOD)

    server = ScriptedServer(GOOD, after=together)
    outcomes: list[Outcome] = []
    url, port = await closed_port(server)
    async with open_endpoint(endpoint_address(url, version="0", timeout=10), timeout=10) as endpoint:
        delivery = bare_delivery(endpoint, clock, lambda _: None)
        endpoint.connected = delivery.connected
        async with server.listening(port):
            await deliver(delivery, 0, outcomes)

        async def come_back() -> None:
            await clock.sleep(60.0)
            async with server.listening(port):
                await all_heard.wait()
                while len(outcomes) < 1 + WORKERS:
                    await asyncio.sleep(0)

        async with anyio.create_task_group() as group:
            group.start_soon(come_back)
            for index in range(1, WORKERS + 1):
                group.start_soon(deliver, delivery, index, outcomes)
    assert {reason for outcome in outcomes for reason in outcome.retries} == {"connection_error"}
    assert server.received == 1 + WORKERS
