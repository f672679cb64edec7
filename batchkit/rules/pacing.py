"""How fast requests to one model may start: known limits kept, hidden ones found.

A limit of requests or tokens a minute is a rate, so a rate is what is controlled. `rules.budget` keeps a limit that is
given; one that is hidden shows by its refusals. Each step of finding it is a rule of its own, and the pacer puts them together:

- *Beginning*: nothing is known, and a few may start, then ever more (`rules.beginning`).
- *Finding*: refusals that are more than strays (`rules.strays`) set the rate to what the server took between them
  (`rules.finding`), in requests or in tokens, whichever is limited (`rules.weighing`).
- *Keeping*: the rate stays at the limit, and tries a little more now and then (`rules.keeping`).
- *Announced*: limits that answers announce (`rules.announcing`) stand as found as long as nothing refutes them (`rules.believing`).

A limit on how many are in flight shows by refusals too, and is told apart by `rules.crowding`. A server that refuses none, but
lets those beyond so many wait, shows by its latencies (`rules.saturation`).

The clock is an argument in seconds, so an hour of pacing is tested in a millisecond.
"""

from __future__ import annotations

from math import inf

from batchkit.records import Announced
from batchkit.rules.beginning import BRISK_S, Beginning
from batchkit.rules.believing import Belief
from batchkit.rules.budget import Ceilings, Reservation
from batchkit.rules.crowding import Crowd
from batchkit.rules.finding import GROWN_EVERY_S, FoundRate
from batchkit.rules.keeping import STARTS
from batchkit.rules.lately import Lately
from batchkit.rules.saturation import Saturation
from batchkit.rules.strays import Strays
from batchkit.rules.weighing import Unit

__all__ = ["Pacer", "Reservation"]


class Pacer:
    """The pace of one model at one endpoint.

    `rpm` and `tpm` are ceilings a minute; None leaves them to be found. `ceilings` are those of several pacers together.
    Call `reserve` before an attempt, and `accepted` or `refused` with what `reserved` says when its answer is there.
    """

    def __init__(
        self, rpm: float | None = None, tpm: float | None = None, *, ceilings: Ceilings | None = None
    ) -> None:
        self.ceilings = Ceilings(rpm, tpm) if ceilings is None else ceilings
        self.in_flight = 0
        # The limits there may be, each by its rule.
        self._beginning: Beginning | None = Beginning()
        self._rate: FoundRate | None = None
        self._crowd = Crowd()
        self._saturation = Saturation()
        self._belief = Belief()
        self._left_until = inf
        """What all starts may come to before an announced limit is put in force."""
        # What they go by: all that was started, in numbers and in what is counted, and what came of it.
        self._unit = Unit()
        self._strays = Strays()
        self._lately = Lately()
        self._started = self._taken = self._refused = 0
        self._spent = 0.0
        self._begun_at = 0.0
        """When the first was started."""
        self._clean_from = 0
        """How many were started when the bound on those in flight last explained a refusal."""
        self._lowered_at = -inf
        """Refusals of what began until then tell nothing of the present rate."""
        # Pauses, the longest of the pacer's own and of the server's, and the one that the server asked for.
        self._paused_until = 0.0
        self._asked_until = 0.0
        self._held_back_at = -inf
        """When somebody was last told to wait."""
        self.counts_tokens = self.ceilings.tokens.per_s is not None
        """Whether a forecast of tokens is worth making."""
        self._only_counted_until = -inf
        """Until then a start is but counted, unless it is one too many for the beginning: no limit is known, and none is waited for."""

    def another(self) -> Pacer:
        """A pacer for another model under the same ceilings."""
        return Pacer(ceilings=self.ceilings)

    # --- what there is to tell ---

    @property
    def per_s(self) -> float | None:
        """Requests a second that may start now; None while no limit is known or found."""
        rate, given = self._rate, self.ceilings.requests.per_s
        if rate is None:
            return given
        found = self._unit.requests(rate.bucket.per_s)
        return found if given is None else min(found, given)

    @property
    def found(self) -> bool:
        """Whether a rate was found by refusals or announced, be it in force or above what is given."""
        return self._rate is not None

    @property
    def limited(self) -> bool:
        """Whether a limit of this model was found, on its rate or on how many are in flight."""
        return self._rate is not None or self._bounded

    @property
    def limit_per_minute(self) -> tuple[float, str] | None:
        """The limit that was found, a minute, in "requests" or "tokens"; None while there is none."""
        if self._rate is None or self._rate.limit is None:
            return None
        return self._rate.limit * 60.0, "tokens" if self._unit.in_tokens else "requests"

    @property
    def most_in_flight(self) -> int | None:
        """How many at once the server was found to take, or to make use of; None while no such limit was found."""
        return self._saturation.known if self._crowd.bound is None else self._crowd.bound

    @property
    def _bounded(self) -> bool:
        return self._crowd.bound is not None or self._saturation.bound is not None

    @property
    def is_open(self) -> bool:
        """Whether no limit is known, so that but for a pause whoever comes may start, in whatever order."""
        return (
            self._rate is None
            and self._crowd.bound is None
            and self._saturation.bound is None
            and ((beginning := self._beginning) is None or beginning.unproven < beginning.free)
            and self._spent < self._left_until
            and not self.ceilings.given
        )

    @property
    def awaits_answers(self) -> bool:
        """Whether an answer may let others start, before the time that `wait` gave."""
        return self._beginning is not None or self._bounded or self.ceilings.given

    @property
    def limits_tokens(self) -> bool:
        """Whether a limit in force counts tokens, so that what a request takes is worth knowing well."""
        return self.ceilings.tokens.per_s is not None or (self._rate is not None and self._unit.in_tokens)

    def used(self, now: float) -> float:
        """The share of the rate in force that starts use, from 0 to 1; 0.0 without one."""
        rate = self.per_s
        seconds, started, _ = self._recent(now)
        return 0.0 if rate is None else min(1.0, started / max(1.0, seconds) / rate)

    def paused_for(self, now: float) -> float:
        """Seconds until a pause that the server asked for is over; 0.0 when there is none. Those of the pacer's own are none."""
        return max(0.0, self._asked_until - now)

    def _look_what_counts(self) -> None:
        """A rate, or what is believed of tokens, may have come or gone."""
        self.counts_tokens = (
            self._rate is not None or self._belief.tokens_told or self.ceilings.tokens.per_s is not None
        )

    # --- starting ---

    def wait(self, now: float, tokens: float = 0.0) -> float:
        """The seconds that this model's own limits ask for, 0.0 for none; infinite until another attempt has ended."""
        if now < self._paused_until:
            wait = self._paused_until - now
        elif self._crowd.bound is not None and self.in_flight >= self._crowd.bound:
            if self._crowd.grow((self._started - self._clean_from) / STARTS):
                self._clean_from = self._started
            wait = inf if self.in_flight >= self._crowd.bound else 0.0
        elif self._saturation.bound is not None and self.in_flight >= self._saturation.bound:
            wait = inf
        elif (rate := self._rate) is not None:
            if now - rate.grown_at >= GROWN_EVERY_S:
                self._grow(now, rate)
            wait = rate.bucket.wait(now, tokens if self._unit.in_tokens else 1.0)
        elif self._spent >= self._left_until:
            wait = self._put_in_force(now).bucket.wait(now, tokens if self._unit.in_tokens else 1.0)
        elif (beginning := self._beginning) is not None:
            wait = beginning.wait(now)
            if beginning.over:
                self._beginning = None
        else:
            return 0.0
        if wait > 0.0:
            self._held_back_at = now
        return wait

    def reserve(self, now: float, tokens: float = 0.0) -> float:
        """0.0 when a request of so many `tokens` may start, and is then counted; else the seconds until asking again.

        Who was let start keeps what `reserved` says at this moment.
        """
        beginning = self._beginning
        if now < self._only_counted_until and (beginning is None or beginning.unproven < beginning.free):
            self.in_flight += 1
            self._started += 1
            self._spent += 1.0
            if beginning is not None:
                beginning.unproven += 1
            return 0.0
        wait = self.wait(now, tokens)
        if wait <= 0.0 and self.ceilings.given:
            wait = self.ceilings.wait(now, tokens)
        if wait > 0.0:
            return wait
        if now >= self._lately.look_at:
            self._lately.look(now, self._started, self._refused)
        if not self._started:
            self._begun_at = now
        cost = tokens if self._unit.in_tokens else 1.0
        self.in_flight += 1
        self._started += 1
        self._spent += cost
        if self._beginning is not None:
            self._beginning.unproven += 1
        if tokens:
            self._unit.started(tokens)
        if self._rate is not None:
            self._rate.bucket.spend(now, cost)
        if self.ceilings.given:
            self.ceilings.spend(now, tokens)
        elif not (self.limited or self.counts_tokens or self._unit.in_tokens or self._left_until < inf):
            self._only_counted_until = min(
                self._lately.look_at, inf if self._beginning is None else self._beginning.until
            )
        return 0.0

    def reserved(self, now: float, tokens: float = 0.0) -> Reservation:
        """What is to be said with the answer to the attempt that was just let start."""
        return Reservation(now, tokens, self._spent, self.in_flight - 1)

    def _grow(self, now: float, rate: FoundRate) -> None:
        given = None if self._unit.in_tokens else self.ceilings.requests.per_s
        rate.grow(
            now,
            self._unit.cost,
            inf if given is None else given,
            paused_until=self._paused_until,
            held_back_at=self._held_back_at,
        )

    # --- answers ---

    def accepted(self, now: float, reserved: Reservation, actual: float | None = None) -> None:
        """The server took a request; settle the tokens `reserved` with the `actual` ones where they are known."""
        self.in_flight -= 1
        self._taken += 1
        if (beginning := self._beginning) is not None:
            beginning.unproven -= 1
            if now - reserved.at <= BRISK_S:
                beginning.answered_soon()
        if self.ceilings.given:
            self.ceilings.settle(now, reserved, actual)
        rate = self._rate
        if rate is None and self._crowd.bound is None:
            self._saturation.answered(now, reserved.at, reserved.level, self.in_flight, actual or 0.0)
            if self._saturation.bound is not None:
                self._only_counted_until = -inf
        else:
            if self._saturation.bound is not None:
                self._saturation = Saturation()
            if rate is not None and rate.dry and reserved.at > self._lowered_at:
                rate.dry = 0
        if self._refused and self._crowd.taken(reserved.at, reserved.level):
            self._forget_rate()

    def refused(self, now: float, hint: float | None, reserved: Reservation) -> None:
        """The server refused a request for its rate, asking for a wait of `hint` seconds, or of nothing in particular.

        The refused request waits out its own hint; everyone waits the whole of it only while nearly all that started in the
        last seconds was refused, else a quarter of a second at most.
        """
        self.in_flight -= 1
        self._refused += 1
        self._only_counted_until = -inf
        self.ceilings.settle(now, reserved, 0.0, usual=False)
        if self._rate is None and self._left_until < inf:
            seconds, started, _ = self._recent(now)
            if self._belief.explains(started, seconds, self._unit):
                self._put_in_force(now)
        if self._rate is not None:
            self._rate.not_taken(reserved.at, reserved.tokens if self._unit.in_tokens else 1.0)
        if reserved.at <= self._lowered_at:
            # It began before the rate was last lowered, and tells nothing of the present one.
            self._pause_if_shut(now, hint)
            return
        self._strays.refused(reserved.spent, self._unit.cost, known=self._rate is not None)
        if self._is_crowded(now, reserved) and not self._strays.alarms:
            return
        too_many = self._beginning is not None and self._beginning.refused(
            now, reserved.spent / self._unit.cost, self._refused, self._started
        )
        if self._unit.refused(reserved.tokens):
            self._count_otherwise()
        if too_many or self._strays.alarms:
            self._pause_if_shut(now, hint)
            if self._recent(now)[1]:
                self._lower(now, reserved)
            return
        if not self._taken:
            self._pause_if_shut(now, hint)
        if self._rate is not None:
            pause_s = self._rate.refused(now, reserved, self._unit.cost, is_first=self._strays.is_first)
            if pause_s is not None:
                self._lowered_at = now
                self._paused_until = max(self._paused_until, now + pause_s)

    def _recent(self, now: float) -> tuple[float, int, int]:
        """The seconds looked back upon, and what was started and refused in them."""
        return self._lately.since(now, self._started, self._refused)

    def _is_crowded(self, now: float, reserved: Reservation) -> bool:
        """Whether a refusal is explained by how many were in flight."""
        bound = self._crowd.bound
        if self._rate is None and bound is None:
            # Before a limit is found, refusals are strays, which come at any number in flight.
            return False
        if not self._crowd.refused(now, reserved.at, reserved.level):
            return False
        if bound is None:
            self._forget_rate()
        self._clean_from = self._started
        return True

    def _lower(self, now: float, reserved: Reservation) -> None:
        """Refusals are more than strays: begin anew with what was taken since the first of them."""
        if self._crowd.bound is not None:
            self._crowd.let_go()
        cost = self._unit.cost
        if self._rate is None:
            seconds, started, _ = self._recent(now)
            self._rate = FoundRate.guessed(now, reserved, started, seconds, cost)
            self._strays.halved()
            self._beginning = None
            self._look_what_counts()
        elif not self._rate.lower(now, reserved, cost, self._strays):
            return
        self._lowered_at = now
        self._paused_until = max(self._paused_until, now + self._rate.pause_s)

    def _pause_if_shut(self, now: float, hint: float | None) -> None:
        if hint is not None and self._lately.is_shut(now, self._started, self._refused):
            self._asked_until = max(self._asked_until, now + hint)
            self._paused_until = max(self._paused_until, self._asked_until)

    def _forget_rate(self) -> None:
        """The number in flight explains all: there is no rate."""
        self._clean_from = self._started
        self._rate = None
        self._look_what_counts()
        self._beginning = None
        self._unit.in_tokens = False
        self._strays.forget()
        self._left_until = inf

    def _count_otherwise(self) -> None:
        """Count requests instead of tokens, or these instead of those."""
        factor = self._unit.change()
        self._spent *= factor
        self._strays.scale(factor)
        if self._rate is not None:
            self._rate.scale(factor)

    # --- announced ---

    def announced(self, now: float, announced: Announced, reserved: Reservation) -> None:
        """The answer to an attempt announced limits. To be called before `accepted` or `refused`, which end the attempt."""
        belief, rate = self._belief, self._rate
        self._only_counted_until = -inf
        believed = belief.hear(now, announced, reserved.at, self._unit, self._taken, self._begun_at)
        self._look_what_counts()
        if not believed:
            return
        if rate is None:
            if self._crowd.bound is None and (until := belief.left_until(reserved, self._unit)) is not None:
                self._left_until = until
        elif belief.overrules(rate.limit, self.per_s, self._unit):
            self._put_in_force(now)
        elif belief.stands(rate.limit):
            rate.more_left = belief.more_left

    def _put_in_force(self, now: float) -> FoundRate:
        """Put the announced limit in force, as one that was found just now."""
        limit, in_tokens = self._belief.limit(self._unit)
        if in_tokens is not self._unit.in_tokens:
            self._count_otherwise()
        self._belief.put_in_force(limit)
        self._left_until = inf
        self._beginning = None
        self._lowered_at = now
        self._strays.begin(self._spent)
        if self._rate is None:
            self._rate = FoundRate.announced(now, limit, self._spent)
            self._look_what_counts()
        else:
            self._rate.announce(now, limit, self._spent)
        return self._rate
