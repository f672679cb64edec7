"""What a job has spent before a run, and whether what is left of its input can be bounded.

Three things tell what was spent: the lines, at list prices; what stands in them for attempts whose answers nobody saw; and the
file of `formats.spending`, for what stands in no line. A run that starts takes all of it for spent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

from batchkit.engine.gate import Clock
from batchkit.engine.purse import in_dollars
from batchkit.engine.stop import Stop
from batchkit.errors import JobDamaged, OutputFull, UsageError
from batchkit.events import Event, Notice
from batchkit.formats.requests import read_body
from batchkit.formats.spending import decode_spending, encode_spending
from batchkit.records import Line, RunHeader
from batchkit.rules.bill import UNKNOWN_MODEL
from batchkit.rules.money import sum_of
from batchkit.rules.pricing import PriceList, cost_of
from batchkit.rules.worst_case import UnboundedCostError, WorstCases
from batchkit.source import Source
from batchkit.state import JobState
from batchkit.store import Store

__all__ = ["SpentBefore", "read_authorised", "refuse_unbounded", "spent_before", "write_authorised"]

_TOLD_BYTES = 512 << 20
_ASK_AGAIN_S = 1.0
"""How often a full disk is asked whether there is room by now for what an attempt may cost."""


@dataclass(frozen=True, slots=True)
class SpentBefore:
    """US dollars: all that runs before have spent, or may have, and the part of it of which no line tells."""

    total: Decimal
    unseen: Decimal


def read_authorised(store: Store, last_run: RunHeader | None) -> Decimal:
    """What the runs with a `max_cost` before may have spent, 0 where there was none. Raises JobDamaged."""
    data = store.read_spending()
    if data is not None:
        try:
            return decode_spending(data)
        except (ValueError, KeyError, TypeError) as error:
            raise JobDamaged(
                f"{store.paths.spending} cannot be used ({error}), and it says what the job may have spent. Nothing was sent. "
                "Restore it; or remove it, and all of the last --max-cost counts as spent."
            ) from error
    if last_run is None or last_run.max_cost is None:
        return Decimal(0)
    store.notices.append(
        f"{store.paths.spending.name} is gone, which says what may have been spent without a line: all of the last "
        f"--max-cost, {in_dollars(last_run.max_cost)}, counts as spent"
    )
    return last_run.max_cost


async def write_authorised(
    store: Store, amount: Decimal, *, stop: Stop, clock: Clock, emit: Callable[[Event], None]
) -> bool:
    """Write down that so much may be spent. False where the run stopped before there was room for it."""
    data = encode_spending(amount)
    told = False
    while stop.cause is None:
        try:
            await clock.in_thread(lambda: store.write_spending(data))
        except OutputFull as error:
            if not told:
                told = True
                emit(Notice(f"{error.args[0]} No attempt starts until there is room."))
            await clock.sleep(_ASK_AGAIN_S)
        else:
            return True
    return False


def spent_before(state: JobState, prices: PriceList, authorised: Decimal, *, capped: bool) -> SpentBefore:
    """What runs before this one spent. Where it is `capped`, UsageError is raised for answers whose price nobody knows."""
    tally = state.tally
    cost = cost_of(tally, prices)
    told = sum_of((cost.known_total, tally.maybe_cost, tally.unseen_cost))
    total = max(told, authorised)
    if capped and state.run is not None and state.run.max_cost is None:
        unpriced = [
            name for name in cost.unpriced_models if name != UNKNOWN_MODEL and prices.find(name) is None
        ]
        if unpriced:
            raise UsageError(
                f"the job has answers of {', '.join(map(repr, unpriced[:5]))}, without a known price, so nobody can tell how "
                "much of --max-cost is spent. Nothing was sent. Give a price with --prices."
            )
        total = max(total, sum_of((told, _uncounted(state, cost.dearest))))
    return SpentBefore(total, sum_of((total, -told)))


def _uncounted(state: JobState, dearest: Decimal) -> Decimal:
    """What runs without a `max_cost` may have spent beside what their answers said: each time as much as for the dearest."""
    tally = state.tally
    unnamed = tally.models.get(UNKNOWN_MODEL)
    answers = tally.unknown + (0 if unnamed is None else unnamed.answers - unnamed.unknown)
    on_their_way = tally.in_flight_at_kills + state.in_flight_untold
    return dearest * (answers + tally.maybe_billed + on_their_way)


async def refuse_unbounded(
    source: Source,
    state: JobState,
    worst_cases: WorstCases,
    defaults: Mapping[str, Any],
    *,
    limit: int | None,
    again: bool,
    stop: Stop,
    in_thread: Callable[[Callable[[], None]], Awaitable[None]],
    tell: Callable[[str], None],
) -> None:
    """Read what is not done of the input, and raise UsageError for a record whose cost has no bound, before anything is sent.

    With `again` failures are asked once more. Lines that are no requests are left to the run. `tell` hears how far it is.
    """
    index, told_at = (0, 0) if again else (state.index, state.offset)
    left = None if limit is None else limit - state.done.below(index)
    async with aclosing(source.batches(index, told_at)) as batches:
        async for batch in batches:
            if stop.cause is not None:
                raise stop.cause
            lines = batch if left is None else list(islice(batch, max(0, left)))
            if not again:
                lines = [line for line in lines if line.index not in state.done]
            await in_thread(partial(_refuse, lines, worst_cases, defaults))
            if batch[-1].offset - told_at >= _TOLD_BYTES:
                told_at = batch[-1].offset
                tell(
                    f"looking at what each request may cost at most: {told_at / 1e9:.1f} GB of the input read"
                )
            if left is not None:
                left -= len(batch)
                if left <= 0:
                    return


def _refuse(lines: list[Line], worst_cases: WorstCases, defaults: Mapping[str, Any]) -> None:
    for line in lines:
        body = None if line.raw is None else read_body(line.raw, defaults)
        if body is None:
            continue
        try:
            worst_cases.check(body)
        except UnboundedCostError as error:
            raise UsageError(
                f"line {line.index + 1} of the input {error}. With --max-cost it cannot be sent. Nothing was sent."
            ) from None
