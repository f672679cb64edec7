"""Many requests at an endpoint that is sick or out of reach, on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

import anyio
import pytest
from simulation.virtual_time import VirtualClock

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Gate
from batchkit.engine.stop import Stop
from batchkit.errors import EndpointRefused
from batchkit.events import AttemptFailed, Event, Notice
from batchkit.records import Answer, Outcome, Request
from batchkit.rules.pacing import Pacer
from batchkit.rules.retry import RetryPolicy
from batchkit.rules.retry_budget import RetryBudget
from batchkit.rules.stopping import StopRule
from batchkit.rules.tracing import Tracer
from batchkit.testing import ScriptedEndpoint, failure, reply

WORKERS = 64
SICK = failure("server_error", status=500)
GONE = failure("connection_error", message="cannot connect")


class Run:
    """So many workers at requests, as a run has them. `answer` gives the answer of a moment, in seconds."""

    def __init__(
        self,
        answer: Callable[[float, Random], Answer],
        *,
        latency_s: float = 0.5,
        poison: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.poison, self.poisoned = poison, SICK
        self.clock, self.random = VirtualClock(0.0), Random(7)
        self.events: list[Event] = []
        self.outcomes: list[Outcome] = []
        self.attempts: list[float] = []
        self.endpoint = ScriptedEndpoint(
            otherwise=lambda _: answer(self.clock.now(), self.random), clock=self.clock, latency_s=latency_s
        )

    async def _attempt(self, request, trace):
        self.attempts.append(self.clock.now())
        answer = await self.endpoint.attempt(request, trace)
        return self.poisoned if self.poison(request.index) else answer

    def work(self, requests: int) -> None:
        with asyncio.Runner(loop_factory=self.clock.loop) as runner:
            runner.run(self._work(requests))

    async def _work(self, requests: int) -> None:
        self.stop = Stop()
        self.delivery = Delivery(
            self._attempt,
            gate=Gate(Pacer(), self.clock, self.stop),
            policy=RetryPolicy(),
            budget=RetryBudget(WORKERS),
            stop_rule=StopRule(),
            tracer=Tracer("job", 7),
            stop=self.stop,
            clock=self.clock,
            jitter=self.random.random,
            emit=self.events.append,
        )
        left = iter(range(requests))

        async def worker() -> None:
            for index in left:
                outcome = await self.delivery.deliver(Request(index, f"r{index}", b"{}"))
                if outcome is None:
                    return
                self.outcomes.append(outcome)

        async with anyio.create_task_group() as group:
            for _ in range(WORKERS):
                group.start_soon(worker)

    def began(self, since: float, until: float) -> int:
        return sum(since <= at < until for at in self.attempts)

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


# --- a network that goes away --------------------------------------------------------------------------------------


def away(since: float, until: float) -> Callable[[float, Random], Answer]:
    return lambda now, _: GONE if since <= now < until else reply()


@pytest.fixture(scope="module")
def ten_minutes() -> Run:
    run = Run(away(10.0, 610.0))
    run.work(4000)
    return run


def test_a_network_that_is_gone_for_ten_minutes_costs_no_request_an_attempt(ten_minutes):
    assert len(ten_minutes.outcomes) == 4000
    assert all(outcome.succeeded for outcome in ten_minutes.outcomes)
    reasons = Counter[str]()
    for outcome in ten_minutes.outcomes:
        reasons.update(outcome.retries)
    assert set(reasons) == {"connection_error"}


def test_it_is_probed_by_one_at_a_time_instead_of_by_all(ten_minutes):
    """All that were on their way fail once, then the probes: some two a minute."""
    assert ten_minutes.began(12.0, 610.0) < 60


def test_the_run_goes_on_as_soon_as_a_probe_gets_through(ten_minutes):
    back = next(at for at in ten_minutes.attempts if at >= 609.5)
    assert back <= 610.0 + 30.0
    assert ten_minutes.began(back + 0.5, back + 0.51) >= WORKERS - 2


def test_both_is_said_aloud_once(ten_minutes):
    gone, back = ten_minutes.notices
    assert gone.startswith("the endpoint cannot be reached since ")
    assert "cannot connect" in gone
    assert back.startswith("the endpoint is reached again, after 6")


def test_one_connection_in_a_hundred_that_fails_pauses_nobody():
    run = Run(lambda _, random: GONE if random.random() < 0.01 else reply())
    run.work(6400)
    assert all(outcome.succeeded for outcome in run.outcomes)
    assert run.notices == []
    assert run.clock.now() < 2 * 6400 / WORKERS * 0.5


def test_an_attempt_that_broke_off_after_sending_counts_as_before():
    """It may have been billed, and its request may be what brings the server down."""
    broken = failure("connection_error")
    broken = type(broken)(broken.kind, broken.code, broken.message, maybe_billed=True)
    run = Run(lambda _, __: broken)
    run.work(10)
    assert {outcome.attempts for outcome in run.outcomes} == {6}
    assert {outcome.maybe_billed for outcome in run.outcomes} == {6}


def test_who_waits_for_the_network_when_the_run_stops_stays_open():
    """After an hour, with the network still away."""
    run = Run(away(10.0, 1e9))
    run.work(4000)
    assert isinstance(run.stop.cause, EndpointRefused)
    assert run.stop.cause.code == "unreachable"
    assert 3600.0 < run.clock.now() < 3700.0
    assert all(outcome.succeeded for outcome in run.outcomes)


def test_a_request_that_cannot_be_sent_says_nothing_of_a_network_that_is_away():
    """Not that it is back, so that nobody goes on; nor that it is not, so that nobody waits longer."""
    run = Run(away(1.1, 601.1))
    # Some of those under way when it goes, and as many that are begun in their place.
    unsendable = set(range(3 * WORKERS - 10, 3 * WORKERS + 10))
    run.poison, run.poisoned = unsendable.__contains__, failure("invalid_request", code="invalid_header")
    run.work(400)
    assert {outcome.index for outcome in run.outcomes if not outcome.succeeded} == unsendable
    gone, back = run.notices
    assert gone.startswith("the endpoint cannot be reached since ")
    assert back.startswith("the endpoint is reached again, after 6")
    # Each of them makes way for the next as soon as it has failed.
    assert run.began(2.0, 601.0) < 60


# --- a sick server -------------------------------------------------------------------------------------------------


def test_a_small_job_at_a_server_that_fails_everything_fails_as_it_always_did():
    run = Run(lambda _, __: SICK)
    run.work(100)
    assert {outcome.attempts for outcome in run.outcomes} == {6}
    assert run.clock.now() < 180
    assert run.notices == []


def test_a_server_that_fails_everything_is_soon_left_in_peace_and_the_run_stops_after_an_hour():
    run = Run(lambda _, __: SICK)
    run.work(10_000)
    assert isinstance(run.stop.cause, EndpointRefused)
    assert run.stop.cause.code == "server_failing"
    assert 3600.0 <= run.clock.now() < 3700.0
    # Six attempts for each request, as fast as the backoff alone allows, would be 75,000.
    assert len(run.attempts) < 1500
    assert run.began(600.0, 3600.0) <= 3000 / 15 + 10


def test_it_is_said_aloud_once_that_retries_wait():
    run = Run(lambda _, __: SICK)
    run.work(300)
    (notice,) = run.notices
    assert notice.startswith("most attempts fail: ")


def test_a_server_that_recovers_within_the_hour_costs_few_requests_and_no_time():
    run = Run(lambda now, _: SICK if 10.0 <= now < 2010.0 else reply())
    run.work(5000)
    assert len(run.outcomes) == 5000
    failed = sum(not outcome.succeeded for outcome in run.outcomes)
    assert failed < 300
    first = next(at for at in run.attempts if at >= 2009.5)
    assert first < 2010.0 + 30.0
    # Everyone is back within seconds.
    assert run.began(first + 10.0, first + 10.51) >= WORKERS - 2


def test_a_server_that_fails_three_of_ten_is_not_slowed_down():
    run = Run(lambda _, random: SICK if random.random() < 0.3 else reply())
    requests = 6_000
    run.work(requests)
    assert len(run.outcomes) == requests
    assert len(run.attempts) == pytest.approx(requests / 0.7, rel=0.02)
    # What the workers need for so many attempts and their backoff, and a tenth more.
    backoff = sum(event.wait_s for event in run.events if isinstance(event, AttemptFailed))
    assert run.clock.now() < 1.1 * (0.5 * len(run.attempts) + backoff) / WORKERS + 5


def test_a_server_that_fails_nine_of_ten_is_not_asked_by_all_at_once():
    run = Run(lambda _, random: SICK if random.random() < 0.9 else reply())
    run.work(400)
    assert len(run.outcomes) == 400
    late = [at for at in run.attempts if at > 120.0]
    assert len(late) / (run.clock.now() - 120.0) < 0.2 * WORKERS / 0.5


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_requests_that_no_server_answers_end_as_failures_and_hold_up_no_other(share):
    """Far more of them than there are workers: each spends its six attempts, and the rest is answered meanwhile."""
    run = Run(lambda _, __: reply(), poison=lambda index: Random(index).random() < share)
    run.work(3000)
    assert run.stop.cause is None
    assert len(run.outcomes) == 3000
    assert {outcome.attempts for outcome in run.outcomes if not outcome.succeeded} == {6}
    # A failure takes its six attempts and, on average, five waits of 7.75 s together, whatever the budget says.
    failed = sum(not outcome.succeeded for outcome in run.outcomes)
    unhindered = (len(run.attempts) * 0.5 + failed * 7.75) / WORKERS
    assert run.clock.now() < 2 * unhindered + 30
