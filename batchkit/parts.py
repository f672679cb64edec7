"""The parts that a job and a stream are both put together from: where to send, and what brings a request to its outcome."""

from __future__ import annotations

import asyncio
import random
import resource
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal

from batchkit.credentials import Credentials, keys_within
from batchkit.destination import choose_base_url, choose_proxy
from batchkit.endpoint import Endpoint
from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Clock, Gate
from batchkit.engine.monitor import Monitor
from batchkit.engine.purse import Purse
from batchkit.engine.stop import Stop
from batchkit.errors import TooManyFailures, UsageError
from batchkit.events import Notice
from batchkit.formats.gateways import read_config
from batchkit.formats.headers import EndpointAddress, endpoint_address
from batchkit.formats.requests import sent_body
from batchkit.rules.pacing import Pacer
from batchkit.rules.pricing import PriceList
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.spending import Spending
from batchkit.rules.stopping import StopRule
from batchkit.rules.tokens import exact_prompt
from batchkit.rules.tracing import Tracer
from batchkit.rules.worst_case import WorstCases
from batchkit.settings import Settings
from batchkit.simulator.process import EmbeddedSimulator
from batchkit.version import __version__

__all__ = [
    "affordable",
    "build_delivery",
    "build_purse",
    "new_job_id",
    "open_address",
    "refuse_other_loops",
    "too_many_failures",
    "worst_cases_of",
]

_SPARE_DESCRIPTORS = 64


def refuse_other_loops() -> None:
    """Raise UsageError for a caller who is no task of asyncio's: of trio's, say, also where that is a guest in asyncio's loop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is None:
        raise UsageError(
            "arun and stream work in a task of asyncio's (or uvloop's) event loop; under trio, call batchkit.run in a thread, "
            "as trio.to_thread.run_sync does"
        )


async def open_address(
    parts: AsyncExitStack, settings: Settings, credentials: Credentials
) -> EndpointAddress:
    """Where the run sends and as whom; the embedded simulator, if it is that, lives as long as `parts`."""
    if settings.simulate:
        simulator = await parts.enter_async_context(EmbeddedSimulator())
        return endpoint_address(simulator.base_url, version=__version__, timeout=settings.timeout)
    base_url = choose_base_url(settings, credentials)
    return endpoint_address(
        base_url,
        version=__version__,
        timeout=settings.timeout,
        openai_api_key=credentials.openai_api_key,
        portkey_api_key=credentials.portkey_api_key,
        portkey_virtual_key=credentials.portkey_virtual_key if credentials.portkey_api_key else None,
        portkey_config=settings.portkey_config,
        portkey_provider=settings.portkey_provider,
        portkey_metadata=settings.portkey_metadata,
        cache_namespace=settings.cache_namespace,
        cache_force_refresh=settings.cache_force_refresh,
        config_keys=keys_within(settings.portkey_config),
        proxy=choose_proxy(settings, credentials, base_url),
    )


def build_delivery(
    endpoint: Endpoint,
    settings: Settings,
    job_id: str,
    stop: Stop,
    clock: Clock,
    monitor: Monitor,
    *,
    url: str,
    concurrency: int,
    resumed: bool = False,
    asked_again: DoneIndexes | None = None,
    purse: Purse | None = None,
) -> tuple[Gate, Delivery]:
    """What brings single requests to their outcomes at `url`, with the gate in front of it; `resumed` after earlier runs.

    `asked_again` are requests that have failed before, in a job that has results.
    `purse` pays for attempts where the run has a `max_cost`.
    """
    gate = Gate(
        Pacer(settings.rpm, settings.tpm),
        clock,
        stop,
        concurrency,
        exact_prompt,
    )
    delivery = Delivery(
        endpoint.attempt,
        gate=gate,
        policy=RetryPolicy(settings.max_attempts),
        budget=RetryBudget(concurrency),
        stop_rule=StopRule(settings.defaults.get("model"), url=url, asked_again=asked_again),
        tracer=Tracer(job_id, secrets.randbits(64), resumed=resumed),
        stop=stop,
        clock=clock,
        jitter=random.random,
        emit=monitor.emit,
        purse=purse,
        patient=not settings.fixed_timeout,
        hedge=settings.hedge_share,
    )
    endpoint.connected = delivery.connected
    return gate, delivery


def worst_cases_of(settings: Settings, prices: PriceList) -> WorstCases:
    """What attempts can cost at these prices, with what a Portkey config lets the gateway make of them."""
    config = read_config(settings.portkey_config)
    return WorstCases(prices, attempts=config.attempts, overrides=config.overrides)


def build_purse(
    spending: Spending,
    worst_cases: WorstCases,
    stop: Stop,
    clock: Clock,
    monitor: Monitor,
    authorise: Callable[[Decimal], Awaitable[bool]],
) -> Purse:
    """What pays for attempts; `authorise` writes down what may be spent, before it is."""
    return Purse(
        spending,
        worst_cases,
        body_of=sent_body,
        authorise=authorise,
        stop=stop,
        clock=clock,
        emit=monitor.emit,
    )


def too_many_failures(
    settings: Settings, succeeded: int, failed: int, to_do: int | None
) -> TooManyFailures | None:
    """What stops a run in which so many requests have failed; None while `max_failures` allows it.

    `to_do` is how many requests there are in all, None while they are not counted.
    """
    # A share is one of all; while they are not counted, of what has ended, once that is a hundred.
    requests = to_do or max(100, succeeded + failed)
    if not failed or failed < settings.failures_allowed(requests):
        return None
    return TooManyFailures(
        f"{failed:,} requests have failed, as many as --max-failures {settings.max_failures} allows",
        code="max_failures",
    )


def new_job_id(started_at: float) -> str:
    """A name for a job that was given none."""
    return f"job-{time.strftime('%Y%m%d', time.gmtime(started_at))}-{secrets.token_hex(4)}"


def affordable(concurrency: int, monitor: Monitor) -> int:
    """The concurrency that the process may open sockets for; the soft limit is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = concurrency + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
        soft = max(soft, raised)
        if soft < wanted:
            affordable = max(1, soft - _SPARE_DESCRIPTORS if soft > 2 * _SPARE_DESCRIPTORS else soft // 2)
            monitor.emit(
                Notice(
                    f"this process may open only {soft} files and sockets, so at most {affordable} attempts are in flight "
                    f"instead of {concurrency}; raise the limit with ulimit -n"
                )
            )
            return affordable
    return concurrency
