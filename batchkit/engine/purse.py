"""Pays for attempts out of `--max-cost`: none starts whose worst case could take the job past it.

Who has no room waits for what is in flight to settle, one behind the other, so that a dear request is not overtaken for
ever by cheap ones. Only when nothing is in flight any more and there still is no room, the run stops. So nobody waits for
ever, and nobody who waits holds anything back that the attempts in flight need to end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any

import anyio

from batchkit.engine.gate import Clock
from batchkit.engine.stop import Stop
from batchkit.errors import MaxCostReached
from batchkit.events import Event, Notice
from batchkit.records import Answer, Failure, FailureKind, Reply, Request
from batchkit.rules.money import sum_of
from batchkit.rules.retry import never_reached
from batchkit.rules.spending import Spending
from batchkit.rules.worst_case import UnboundedCostError, WorstCases

__all__ = ["Claim", "Purse", "in_dollars"]

_UNBILLED = frozenset(
    {
        FailureKind.RATE_LIMITED,
        FailureKind.OVERLOADED,
        FailureKind.INVALID_REQUEST,
        FailureKind.NOT_FOUND,
        FailureKind.KEY_REFUSED,
        FailureKind.QUOTA_EXHAUSTED,
        FailureKind.MISDIRECTED,
        FailureKind.CONTENT_FILTER,
    }
)
"""Refusals before any work, where the status says so too. A 500 may have come after it."""
_NOTHING = Decimal(0)


class Claim:
    """What the attempts on one request may cost, each: `worst` at most."""

    __slots__ = ("counted", "request", "reserved", "worst")

    def __init__(self, request: Request, worst: Decimal) -> None:
        self.request = request
        self.worst = worst
        self.counted = False
        """Whether the prompt was counted, as far as it can be."""
        self.reserved = _NOTHING


class Purse:
    """Reserves for attempts before they start and settles when they are over.

    `body_of` reads a request's body. `authorise` writes down that so much may be spent, before it is; false where the run
    stopped first.
    """

    def __init__(
        self,
        spending: Spending,
        worst_cases: WorstCases,
        *,
        body_of: Callable[[Request], Mapping[str, Any]],
        authorise: Callable[[Decimal], Awaitable[bool]],
        stop: Stop,
        clock: Clock,
        emit: Callable[[Event], None],
    ) -> None:
        self.spending = spending
        self._worst_cases = worst_cases
        self._body_of = body_of
        self._authorise = authorise
        self._stop = stop
        self._clock = clock
        self._emit = emit
        self._turn = anyio.Lock(fast_acquire=True)
        self._nap: anyio.CancelScope | None = None
        self._told_of_more = False
        self.waiting = 0
        """Requests that wait for their turn to reserve."""

    def claim(self, request: Request) -> Claim | None:
        """What is to be reserved for each attempt on `request`; None, and the run stops, where that has no bound."""
        try:
            return Claim(request, self._worst_cases.of(self._body_of(request), len(request.body)))
        except UnboundedCostError as error:
            self._stop.request(
                MaxCostReached(
                    f"request {request.index} {error}. With --max-cost it is not sent; all before it are answered or open",
                    code="max_cost",
                )
            )
            return None

    async def reserve(self, claim: Claim) -> bool:
        """Wait until the next attempt may cost its worst; it is reserved then. False when the run stops first."""
        if not self.waiting and self.spending.reserve(claim.worst):
            claim.reserved = claim.worst
            return True
        self.waiting += 1
        try:
            async with self._turn:
                reserved = await self._in_turn(claim)
        finally:
            self.waiting -= 1
        return reserved

    def reserve_beside(self, claim: Claim) -> Claim | None:
        """Reserve for a second attempt beside one that is under way; None where there is no room at this moment."""
        if self.waiting or not self.spending.reserve(claim.worst):
            return None
        beside = Claim(claim.request, claim.worst)
        beside.reserved = claim.worst
        return beside

    async def _in_turn(self, claim: Claim) -> bool:
        while self._stop.cause is None:
            if self.spending.reserve(claim.worst):
                claim.reserved = claim.worst
                return True
            if self.spending.fits(claim.worst):
                mark = self.spending.mark_for(claim.worst)
                if not await self._authorise(mark):
                    return False
                self.spending.authorised = mark
            elif not claim.counted:
                claim.counted = True
                await self._count(claim)
            elif self.spending.reserved:
                await self._until_settled()
            else:
                self._stop.request(MaxCostReached(self._last_words(claim), code="max_cost"))
        return False

    def release(self, claim: Claim) -> None:
        """The attempt was not made after all."""
        self._settle(claim, _NOTHING)

    def settle(self, claim: Claim, answer: Answer) -> Decimal:
        """The attempt brought `answer`. Returns what it may have cost though nobody can tell, at most."""
        if isinstance(answer, Reply) and answer.from_cache:
            return self._settle(claim, _NOTHING)
        retries = answer.gateway_retries
        unsure = self._worst_cases.share(claim.reserved, retries) if retries else _NOTHING
        if answer.usage is not None:
            cost = self._worst_cases.cost(answer.model, answer.usage)
            if cost is not None:
                writes = self._worst_cases.cache_writes(answer.model, answer.usage, claim.request.body)
                # A total that is no sum may be nonsense, too: it is believed as far as the attempt was thought able to go.
                unlisted = self._worst_cases.unlisted(answer.model, answer.usage)
                most = max(_NOTHING, claim.reserved - cost)
                unsure = sum_of((unsure, writes, min(unlisted, most)))
                if cost > claim.reserved:
                    self._tell_of_more(claim, cost)
            return self._settle(claim, cost, unsure)
        if isinstance(answer, Failure) and _is_unbilled(answer):
            return self._settle(claim, _NOTHING, unsure)
        return self._settle(claim, None)

    def _settle(self, claim: Claim, known: Decimal | None, unsure: Decimal = _NOTHING) -> Decimal:
        unsure = self.spending.settle(claim.reserved, known, unsure)
        claim.reserved = _NOTHING
        if self._nap is not None:
            self._nap.cancel()
        return unsure

    async def _count(self, claim: Claim) -> None:
        body = self._body_of(claim.request)
        counted = await self._clock.in_thread(lambda: self._worst_cases.counted(body))
        if counted is not None:
            claim.worst = min(claim.worst, counted)

    async def _until_settled(self) -> None:
        with anyio.CancelScope() as self._nap:
            self._stop.ends(self._nap)
            try:
                await anyio.sleep_forever()
            finally:
                self._stop.forget(self._nap)
                self._nap = None

    def _tell_of_more(self, claim: Claim, cost: Decimal) -> None:
        if self._told_of_more:
            return
        self._told_of_more = True
        self._emit(
            Notice(
                f"the answer to request {claim.request.index} cost {in_dollars(cost)}, more than the {in_dollars(claim.reserved)} "
                "that its prompt and its length limit allow: the provider counts otherwise, and --max-cost may be passed by as much"
            )
        )

    def _last_words(self, claim: Claim) -> str:
        spending = self.spending
        unsure = (
            f" ({in_dollars(spending.unsure)} of it at its most, for attempts whose cost nobody can tell)"
            if spending.unsure
            else ""
        )
        return (
            f"--max-cost {in_dollars(spending.cap)} is as good as reached: {in_dollars(spending.spent)} spent{unsure}, "
            f"{in_dollars(spending.reserved)} reserved, {in_dollars(spending.left)} left, and request "
            f"{claim.request.index} may cost {in_dollars(claim.worst)}. Go on with a larger --max-cost"
        )


def _is_unbilled(failure: Failure) -> bool:
    """Whether the failure says for certain that nobody worked for it."""
    if failure.maybe_billed:
        return False
    if failure.status is None:
        return never_reached(failure) or failure.kind in _UNBILLED
    return failure.kind in _UNBILLED and not 200 <= failure.status < 300


def in_dollars(amount: Decimal) -> str:
    """An amount with all of its digits, and no more than it has."""
    return f"${amount.normalize():f}"
