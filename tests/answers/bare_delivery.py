"""A delivery as a run has it, without a job around it and on a clock that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable

from batchkit.endpoint import Endpoint
from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.events import Event
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer
from batchkit.testing import ManualClock


def bare_delivery(endpoint: Endpoint, clock: ManualClock, emit: Callable[[Event], None]) -> Delivery:
    stop = Stop()
    return Delivery(
        endpoint.attempt,
        gate=Gate(Pacer(), clock, stop),
        policy=RetryPolicy(),
        budget=RetryBudget(1),
        stop_rule=StopRule(),
        tracer=Tracer("job", 7),
        stop=stop,
        clock=clock,
        jitter=lambda: 0.5,
        emit=emit,
    )
