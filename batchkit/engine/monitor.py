"""Tells the observers. One that fails is dropped with a warning: a broken progress bar must not cost an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from batchkit.engine.delivery import Delivery
from batchkit.engine.gate import Clock, Gate
from batchkit.engine.pipeline import Pipeline
from batchkit.events import Event, Gauges, Notice, Observer
from batchkit.rules.holding import what_holds
from batchkit.rules.tally import Tally

__all__ = ["Monitor", "Readings"]

_WINDOW_S = 30.0
_STILL_S = 5.0
_NAMED = 3
"""So many requests are named of those that are waited for at the end."""
_FEW = 20
"""With more of them under way, no single one is waited for."""


@dataclass(slots=True)
class Readings:
    """Where the gauges are read. `ended` gives results and failures; `total` and `cost` give None while unknown; a cost comes with whether it is partial."""

    tally: Tally
    pipeline: Pipeline
    delivery: Delivery
    gate: Gate
    concurrency: int
    ended: Callable[[], tuple[int, int]]
    total: Callable[[], int | None]
    cost: Callable[[], tuple[float | None, bool]]
    max_cost: float | None = None


class Monitor:
    """Hands events and gauges to observers."""

    def __init__(self, observers: Sequence[Observer], clock: Clock) -> None:
        self._observers = list(observers)
        self._clock = clock
        self._samples: deque[tuple[float, int, int, int, float]] = deque()
        self.readings: Readings | None = None
        """Set before the run begins; without them there is nothing to show."""

    def emit(self, event: Event) -> None:
        """Tell every observer of `event`."""
        for observer in tuple(self._observers):
            try:
                observer.handle(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run is worth more
                self._drop(observer, error)

    async def watch(self) -> None:
        """Tick the observers until cancelled."""
        self._gauges(self._clock.now())  # what stood when the run began is where its rates begin
        due = dict.fromkeys(self._observers, self._clock.now())
        while self._observers:
            await self._clock.sleep(min(observer.interval_s for observer in self._observers))
            now = self._clock.now()
            late = [
                observer
                for observer in self._observers
                if now - due.get(observer, now) >= 0.9 * observer.interval_s
            ]
            if late:
                gauges = self._gauges(now)
                for observer in late:
                    due[observer] = now
                    self._tick(observer, gauges)

    def close(self) -> None:
        """Show the final state and leave."""
        gauges = self._gauges(self._clock.now())
        if gauges is not None:
            # What was left undone by a run that stopped is not being waited for any more.
            gauges = replace(gauges, waiting=0, holding="", detail="", seconds_left=None, awaited=())
        for observer in tuple(self._observers):
            self._tick(observer, gauges)
            try:
                observer.close()
            except Exception as error:  # noqa: BLE001 - as above
                self._drop(observer, error)

    def _tick(self, observer: Observer, gauges: Gauges | None) -> None:
        if gauges is None:
            return
        try:
            observer.tick(gauges)
        except Exception as error:  # noqa: BLE001 - as above
            self._drop(observer, error)

    def _drop(self, observer: Observer, error: Exception) -> None:
        if observer in self._observers:
            self._observers.remove(observer)
            self.emit(Notice(f"{type(observer).__name__} failed and was dropped, the run goes on: {error!r}"))

    def _gauges(self, now: float) -> Gauges | None:
        readings = self.readings
        if readings is None:
            return None
        tally, gate, delivery, pipeline = readings.tally, readings.gate, readings.delivery, readings.pipeline
        succeeded, failed = readings.ended()
        ended = succeeded + failed
        tokens = tally.usage.total_tokens
        self._samples.append((now, ended, tokens, *delivery.under_way.answered()))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW_S:
            self._samples.popleft()
        since, ended_then, tokens_then, *_ = self._samples[0]
        seconds = max(now - since, 1e-9)
        rate = (ended - ended_then) / seconds
        total = readings.total()
        waiting = max(0, pipeline.busy - delivery.in_flight)
        holding, detail = what_holds(
            in_flight=delivery.in_flight,
            concurrency=readings.concurrency,
            at_gate=gate.waiting,
            paused_s=gate.pacer.paused_for(now),
            per_s=gate.pacer.per_s,
            found=gate.pacer.found,
            limit=gate.pacer.limit_per_minute,
            used=gate.pacer.used(now),
            retrying=max(0, waiting - gate.waiting - delivery.unpaid),
            starved=pipeline.starved,
            unpaid=delivery.unpaid,
            most_in_flight=gate.pacer.most_in_flight,
            tpm_given=gate.pacer.ceilings.tokens.per_s is not None,
            takes_s=self._takes_s(),
        )
        if total is None:
            # A worker that neither works nor waits for lines shows that there are no more.
            at_end = pipeline.busy < readings.concurrency and not pipeline.starved
        else:
            at_end = pipeline.busy >= total - ended
        names = at_end and pipeline.busy <= _FEW and not gate.waiting and not delivery.unpaid
        cost, partial = readings.cost()
        return Gauges(
            total=total,
            succeeded=succeeded,
            failed=failed,
            in_flight=delivery.in_flight,
            waiting=waiting,
            requests_per_s=rate,
            tokens_per_s=(tokens - tokens_then) / seconds,
            cost=cost,
            cost_is_partial=partial,
            holding=holding,
            detail=detail,
            seconds_left=None
            if total is None or rate <= 0 or (at_end and self._stands_still(now, ended))
            else max(0.0, (total - ended) / rate),
            max_cost=readings.max_cost,
            awaited=tuple(delivery.under_way.oldest(_NAMED)) if names else (),
            unfinished=pipeline.busy,
        )

    def _stands_still(self, now: float, ended: int) -> bool:
        """Whether nothing ended for seconds: then what there was before tells nothing of what is left."""
        return all(sample[1] == ended for sample in self._samples if now - sample[0] <= _STILL_S)

    def _takes_s(self) -> float | None:
        """What the answers of the last half minute took; None without any."""
        *_, answered_then, took_then = self._samples[0]
        *_, answered, took = self._samples[-1]
        return (took - took_then) / (answered - answered_then) if answered > answered_then else None
