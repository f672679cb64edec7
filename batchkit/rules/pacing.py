"""How fast requests to one model may start: known limits kept, hidden ones found.

A limit of requests or tokens a minute is a rate, so a rate is what is controlled. `rules.budget` keeps a limit that is
given; one that is hidden shows by its refusals, and is found so:

*Beginning.* Nothing is known, and a server without a limit must not feel that. So a few may start, and twice as many after each
quarter second in which the last were not refused; each answer lets dozens more start. A thousand are in flight after two seconds,
or as soon as answers come; a low limit costs some refusals instead of a thousand.

*Finding.* Refusals that are more than some strays (a CUSUM chart in the order of starts: each counts one, each start takes 2 % of
one away) set the rate.
A server that refuses has nothing left, so what it took from one refusal to the next is exactly its rate: that is measured, and
98 % of it begin to start. Where most was refused nothing can be measured, and the rate is halved for each round of refusals.

*Keeping.* While nothing is refused the rate rises to the limit, stays there for long, and then leaves it, as CUBIC does but
flatter: limit * (1 + 0.02 * x^5), where x passes from -1 to 0 in three seconds at first, and in twice as many starts each time the
limit turns out to be what it was, up to ten seconds or 150 starts. A single refusal beyond the limit measures it again and lets the
curve begin anew; one below it is a stray and changes next to nothing. So a limit of 50 a second costs one refusal in five hundred
starts, one that rises is followed in half a minute, and a server that refuses one in a hundred for no reason is not slowed down.

*Announced.* Where answers announce limits (`rules.announcing`), as much begins as they say is left, and then the announced
rate stands as one that was found: from the first refusal on, or once what was left is used. It is a belief and no law: refusals
below it lower it, and where nothing is refused the rate rises beyond it.

What is counted is requests, or tokens once those that were refused are clearly larger than the others. A limit on how many are
in flight shows in the same way and is told apart by `rules.crowding`. A server that refuses none, but lets those beyond so many
wait, shows by its latencies (`rules.saturation`).

The clock is an argument in seconds, so an hour of pacing is tested in a millisecond.
"""

from __future__ import annotations

from math import inf, sqrt

from batchkit.records import Announced
from batchkit.rules.announcing import Announcements
from batchkit.rules.budget import Ceilings, Reservation
from batchkit.rules.crowding import Crowd
from batchkit.rules.saturation import Saturation

__all__ = ["Pacer", "Reservation"]

_FIRST = 4
"""So many may start at once when nothing is known."""
_EACH = 32.0
"""So many more for each answer."""
_SURVIVED_S = 0.25
"""What was not refused in so long was taken; and so long everyone waits when a limit is met."""
_ENOUGH = 4096
_FEW, _PLAIN = 3, 1.0 / 3.0
"""So many refusals, if they are this share from the first one on, are no strays: of 1 % so many come once in ten thousand jobs."""

_ALARM, _ALARM_FREE = (0.02, 5.0), (0.03, 8.0)
"""The share of refusals that are strays, and the score at which they are more; a server without a known rate has more to lose by a
false alarm, which 1 % strays raise there once in a million refusals."""
_MEASURED = 2.0
"""The most that the score is once a limit was measured: a single stray does not lower it again."""
_FEW_STRAYS = 1
"""Where more were refused below the limit, a single refusal beyond it tells nothing either."""
_SHUT = 0.9
"""Above this share of refusals a server takes nothing, and is left alone for as long as it asks."""
_LONGEST_PAUSE_S = 5.0
"""Everyone waits a quarter of a second when a limit is met, and twice as long after each round in which most was refused."""

_FEWEST = 8
_SHORTEST_MEASURED_S, _LONGEST_MEASURED_S = 0.25, 3.0
"""Less than so many, or in less time, is too early to tell; if it takes longer, what there is must do."""
_DRIED = 0.85
"""A known limit is lowered to this share of it when most was refused: where refusals count, nothing can be measured."""
_LOWEST_PER_S = 0.02

_BELOW = 0.02
_CURVE = 5
_FIRST_STARTS, _STARTS = 30.0, 150.0
_SHORTEST_S, _STEADY_S, _LONGEST_S = 3.0, 10.0, 60.0
_FASTEST = 1.2
"""The most the rate grows in a second, beyond a limit."""
_FAR, _RISEN = 0.1, 0.55
"""So far beyond the limit, it is at least this share of the rate: what one second fills up hides no more."""
_FAR_BEYOND = 10.0
_SAME = 1.03
_LOWERED = 0.995
"""The most that a single refusal takes from a limit."""
_CLEAN_S = 2.0
_GROWN_EVERY_S = 0.1

_SAVED_S = 1.0
"""A start waits for all it costs, or for what comes in in so long: no bucket is known to hold more."""
_EARLY_S = 0.05

_LEFT = 0.9
"""The share of what is announced to be left that is begun before the announced rate is kept: others may use the key too."""
_PLENTY = 0.5
"""Where a larger share than this is left, though as much begins as was announced, there is more: a gateway has several keys."""
_REFUTING = 1.5
_MINUTE_S = 60.0
_AS_ANNOUNCED = 0.1
"""A limit that was moved by a larger share than this is one that was found."""

_USUAL, _TELLING = 0.05, 2.5
"""The sizes of what was refused are summed up, less the usual, until they tell whether tokens are what is limited."""


class _Pace:
    """A rate, kept as a bucket that was empty at `_empty_at`: a start waits until what it costs has come in."""

    __slots__ = ("_empty_at", "per_s")

    def __init__(self) -> None:
        self.per_s: float | None = None
        self._empty_at = 0.0

    def change(self, now: float, per_s: float) -> None:
        if self.per_s is not None and self._empty_at > now:
            self._empty_at = now + (self._empty_at - now) * self.per_s / per_s
        self.per_s = per_s

    def scale(self, factor: float) -> None:
        if self.per_s is not None:
            self.per_s *= factor

    def emptied(self, now: float) -> None:
        self._empty_at = max(self._empty_at, now)

    def wait(self, now: float, cost: float) -> float:
        if self.per_s is None:
            return 0.0
        return max(0.0, self._empty_at + min(_SAVED_S, cost / self.per_s) - now - _EARLY_S)

    def spend(self, now: float, cost: float) -> None:
        if self.per_s is not None:
            takes_s = cost / self.per_s
            self._empty_at = max(self._empty_at, now - min(_SAVED_S, takes_s)) + takes_s


def _size(tokens: float, usual: float) -> float:
    """Of a request, from 0 to 1, and 0.5 where it is as large as usual."""
    return tokens / (tokens + usual)


class _Empty:
    """A moment at which the server had nothing left, and from which on is counted what it took."""

    __slots__ = ("at", "refused", "spent")

    def __init__(self, at: float, spent: float) -> None:
        self.at = at
        self.spent = spent
        self.refused = 0.0


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
        self._crowd = Crowd()
        self._saturation = Saturation()
        self._pace = _Pace()
        self._in_tokens = False
        self._tokens_each = 0.0
        # What was started, in numbers and in what the pace counts; and how it stood one and two seconds ago.
        self._started = 0
        self._spent = 0.0
        self._refused = 0
        self._taken = 0
        self._ticks = ((0.0, 0, 0), (-inf, 0, 0))
        # Beginning.
        self._free: float | None = _FIRST
        self._unproven = 0
        self._proven_at = -inf
        # Finding.
        self._score = 0.0
        self._scored = 0.0
        self._empty: _Empty | None = None
        self._dry = 0
        self._lowered_at = -inf
        self._paused_until = 0.0
        self._asked_until = 0.0
        # Keeping.
        self._limit: float | None = None
        self._starts = _FIRST_STARTS
        self._strays = 0
        self._clean_since = 0.0
        self._clean_from = 0
        self._grown_at = 0.0
        self._held_back_at = -inf
        # Which of the two is limited.
        self._size = 0.5
        self._odd = 0.0
        # Announced: what of the cost may begin before it counts, when it was said last, and what was put in force.
        self._announcements = Announcements()
        self._left_until = inf
        self._said_at = -inf
        self._begun_at = 0.0
        self._seeded = 0.0
        self._more_left = False

    def another(self) -> Pacer:
        """A pacer for another model under the same ceilings."""
        return Pacer(ceilings=self.ceilings)

    # --- what there is to tell ---

    @property
    def per_s(self) -> float | None:
        """Requests a second that may start now; None while no limit is known or found."""
        found, given = self._pace.per_s, self.ceilings.requests.per_s
        if found is not None and self._in_tokens:
            found /= max(1.0, self._tokens_each)
        return given if found is None else found if given is None else min(found, given)

    @property
    def found(self) -> bool:
        """Whether a rate was found by refusals or announced, be it in force or above what is given."""
        return self._pace.per_s is not None

    @property
    def limited(self) -> bool:
        """Whether a limit of this model was found, on its rate or on how many are in flight."""
        return self._pace.per_s is not None or self._bounded

    @property
    def limit_per_minute(self) -> tuple[float, str] | None:
        """The limit that was found, a minute, in "requests" or "tokens"; None while there is none."""
        if self._limit is None or self._pace.per_s is None:
            return None
        return self._limit * 60.0, "tokens" if self._in_tokens else "requests"

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
            (self._free is None or self._unproven < self._free)
            and self._spent < self._left_until
            and self._pace.per_s is None
            and not self._bounded
            and not self.ceilings.given
        )

    @property
    def awaits_answers(self) -> bool:
        """Whether an answer may let others start, before the time that `wait` gave."""
        return self._bounded or self._free is not None or self.ceilings.given

    @property
    def counts_tokens(self) -> bool:
        """Whether a forecast of tokens is worth making."""
        return (
            self.ceilings.tokens.per_s is not None
            or self._pace.per_s is not None
            or self._announcements.tokens is not None
        )

    @property
    def limits_tokens(self) -> bool:
        """Whether a limit in force counts tokens, so that what a request takes is worth knowing well."""
        return self.ceilings.tokens.per_s is not None or (self._in_tokens and self._pace.per_s is not None)

    def used(self, now: float) -> float:
        """The share of the rate in force that starts use, from 0 to 1; 0.0 without one."""
        rate = self.per_s
        seconds, started, _ = self._recent(now)
        return 0.0 if rate is None else min(1.0, started / max(1.0, seconds) / rate)

    def paused_for(self, now: float) -> float:
        """Seconds until a pause that the server asked for is over; 0.0 when there is none. Those of the pacer's own are none."""
        return max(0.0, self._asked_until - now)

    # --- starting ---

    def wait(self, now: float, tokens: float = 0.0) -> float:
        """The seconds that this model's own limits ask for, 0.0 for none; infinite until another attempt has ended."""
        if now < self._paused_until:
            wait = self._paused_until - now
        elif self._crowd.bound is not None and self.in_flight >= self._crowd.bound:
            if self._crowd.grow((self._started - self._clean_from) / _STARTS):
                self._clean_from = self._started
            wait = inf if self.in_flight >= self._crowd.bound else 0.0
        elif self._saturation.bound is not None and self.in_flight >= self._saturation.bound:
            wait = inf
        elif self._pace.per_s is not None:
            if now - self._grown_at >= _GROWN_EVERY_S:
                self._grow(now)
            wait = self._pace.wait(now, tokens if self._in_tokens else 1.0)
        elif self._spent >= self._left_until:
            self._seed(now)
            wait = self._pace.wait(now, tokens if self._in_tokens else 1.0)
        elif self._free is not None:
            wait = self._wait_for_proof(now)
        else:
            return 0.0
        if wait > 0.0:
            self._held_back_at = now
        return wait

    def reserve(self, now: float, tokens: float = 0.0) -> float:
        """0.0 when a request of so many `tokens` may start, and is then counted; else the seconds until asking again.

        Who was let start keeps what `reserved` says at this moment.
        """
        wait = self.wait(now, tokens)
        if wait <= 0.0 and self.ceilings.given:
            wait = self.ceilings.wait(now, tokens)
        if wait > 0.0:
            return wait
        if now >= self._ticks[0][0] + 1.0:
            self._tick(now)
        if not self._started:
            self._begun_at = now
        cost = tokens if self._in_tokens else 1.0
        self.in_flight += 1
        self._started += 1
        self._unproven += 1
        self._spent += cost
        if tokens:
            self._tokens_each += (tokens - self._tokens_each) / (100.0 if self._tokens_each else 1.0)
            self._size += (_size(tokens, self._tokens_each) - self._size) / 100.0
        if self._pace.per_s is not None:
            self._pace.spend(now, cost)
        if self.ceilings.given:
            self.ceilings.spend(now, tokens)
        return 0.0

    def reserved(self, now: float, tokens: float = 0.0) -> Reservation:
        """What is to be said with the answer to the attempt that was just let start."""
        return Reservation(now, tokens, self._spent, self.in_flight - 1)

    def _wait_for_proof(self, now: float) -> float:
        assert self._free is not None
        if now >= self._proven_at + _SURVIVED_S:
            if self._unproven >= self._free:
                self._free *= 2.0
                if self._free > _ENOUGH:
                    self._free = None
            self._unproven = 0
            self._proven_at = now
            return 0.0
        return self._proven_at + _SURVIVED_S - now if self._unproven >= self._free else 0.0

    def _tick(self, now: float) -> None:
        tick = (now, self._started, self._refused)
        self._ticks = (tick, self._ticks[0] if now < self._ticks[0][0] + 2.0 else tick)

    def _recent(self, now: float) -> tuple[float, int, int]:
        """The seconds looked back upon, and what was started and refused in them."""
        at, started, refused = self._ticks[1] if self._ticks[1][0] > -inf else self._ticks[0]
        return now - at, self._started - started, self._refused - refused

    # --- answers ---

    def accepted(self, now: float, reserved: Reservation, actual: float | None = None) -> None:
        """The server took a request; settle the tokens `reserved` with the `actual` ones where they are known."""
        self.in_flight -= 1
        self._taken += 1
        if self._free is not None:
            self._free += _EACH - 1.0
            self._unproven -= 1
        self.ceilings.settle(now, reserved, actual)
        if self._pace.per_s is None and self._crowd.bound is None:
            self._saturation.answered(now, reserved.at, reserved.level, self.in_flight, actual or 0.0)
        elif self._saturation.bound is not None:
            self._saturation = Saturation()
        if self._dry and reserved.at > self._lowered_at:
            self._dry = 0
        if self._refused and self._crowd.taken(reserved.at, reserved.level):
            self._forget_rate()

    def refused(self, now: float, hint: float | None, reserved: Reservation) -> None:
        """The server refused a request for its rate, asking for a wait of `hint` seconds, or of nothing in particular.

        The refused request waits out its own hint; everyone waits the whole of it only while nearly all that started in the
        last seconds was refused, else a quarter of a second at most.
        """
        self.in_flight -= 1
        self._refused += 1
        self.ceilings.settle(now, reserved, 0.0, usual=False)
        if self._pace.per_s is None and self._left_until < inf:
            seconds, started, _ = self._recent(now)
            if started >= self._announced_per_s() * max(_SURVIVED_S, seconds):
                self._seed(now)
        if self._empty is not None and reserved.at > self._empty.at:
            self._empty.refused += reserved.tokens if self._in_tokens else 1.0
        if reserved.at <= self._lowered_at:
            # It began before the rate was last lowered, and tells nothing of the present one.
            self._pause_if_shut(now, hint)
            return
        tolerated, alarming = _ALARM if self.found else _ALARM_FREE
        # In the order of starts: what began in one burst is refused all at once.
        since = max(0.0, reserved.spent - self._scored) / self._cost()
        self._score = min(max(0.0, self._score - tolerated * since), alarming) + 1.0
        self._scored = max(self._scored, reserved.spent)
        bound = self._crowd.bound
        # Before a limit is found, refusals are strays, which come at any number in flight.
        if (self.found or bound is not None) and self._crowd.refused(now, reserved.at, reserved.level):
            if bound is None:
                self._forget_rate()
            self._clean_from = self._started
            if self._score < alarming:
                return
        self._weigh(reserved.tokens)
        if self._alarms(alarming):
            self._pause_if_shut(now, hint)
            if self._recent(now)[1]:
                self._lower(now, reserved)
            return
        if not self._taken:
            self._pause_if_shut(now, hint)
        rate, limit = self._pace.per_s, self._limit
        if rate is not None and limit is not None and rate <= limit:
            self._limit = _LOWERED * limit
            self._strays += 1
        elif rate is not None and limit is not None and self._strays <= _FEW_STRAYS:
            self._met(now, reserved, rate, limit)
            return
        if self._score == 1.0:
            # A stray, or the first of those that tell of a lower limit.
            self._empty = _Empty(reserved.at, reserved.spent)

    def _alarms(self, alarming: float) -> bool:
        """Whether refusals are more than strays."""
        if self._free is None:
            return self._score >= alarming
        # Growing goes on when this quarter second is over, if it was a stray.
        self._unproven = min(self._unproven, int(self._free) - 1)
        return self._score >= alarming or self._refused >= max(_FEW, _PLAIN * self._started)

    def _met(self, now: float, reserved: Reservation, rate: float, limit: float) -> None:
        """A refusal beyond the limit, as was to be expected: what was taken since the last one is the limit."""
        beyond = rate / limit - 1.0
        told = self._measured(reserved)
        if beyond > _FAR:
            # It has risen, or what filled up meanwhile has hidden it for a while.
            told = max(told, _RISEN * rate)
        self._limit = max(_LOWERED * limit, min(rate, told))
        self._starts = 2.0 * self._starts if self._limit < _SAME * limit else _FIRST_STARTS
        # Where refusals are counted against the limit they leave a debt.
        self._paused_until = max(self._paused_until, now + min(_SURVIVED_S, 2.0 * beyond))
        self._restart(now, reserved, (1.0 - _BELOW) * self._limit)

    def _lower(self, now: float, reserved: Reservation) -> None:
        """Refusals are more than strays: begin anew with what was taken since the first of them."""
        if self._crowd.bound is not None:
            self._crowd.let_go()
        rate = self._pace.per_s
        if rate is None:
            seconds, started, _ = self._recent(now)
            lower = started / max(0.5, seconds) * self._cost() / 2.0
            self._dry = 0
        else:
            taken, seconds = self._taken_since(reserved)
            if self._empty is None or taken < self._empty.refused:
                lower = rate / 2.0
                if self._limit is not None and not self._dry:
                    self._limit = lower = _DRIED * min(self._limit, rate)
                self._dry += 1
            else:
                if seconds >= _SHORTEST_MEASURED_S and taken >= _FEWEST * self._cost():
                    self._limit = min(rate, self._measured(reserved))
                    self._dry = 0
                    self._score = min(self._score, _MEASURED)
                elif seconds >= _LONGEST_MEASURED_S:
                    self._limit = min(self._limit or rate, sqrt(rate * self._measured(reserved)))
                else:
                    self._clean_since = now
                    return
                lower = (1.0 - _BELOW) * self._limit
        self._paused_until = max(
            self._paused_until, now + min(_LONGEST_PAUSE_S, _SURVIVED_S * 2.0**self._dry)
        )
        self._free = None
        self._starts = _FIRST_STARTS
        self._restart(now, reserved, max(_LOWEST_PER_S * self._cost(), lower))

    def _restart(self, now: float, reserved: Reservation, rate: float) -> None:
        self._empty = _Empty(reserved.at, reserved.spent)
        self._lowered_at = self._clean_since = self._grown_at = now
        self._strays = 0
        self._more_left = False
        self._pace.change(now, rate)
        self._pace.emptied(now)

    def _pause_if_shut(self, now: float, hint: float | None) -> None:
        _, started, refused = self._recent(now)
        if started and refused >= _SHUT * started and hint is not None:
            self._asked_until = max(self._asked_until, now + hint)
            self._paused_until = max(self._paused_until, self._asked_until)

    def _cost(self) -> float:
        return self._tokens_each if self._in_tokens else 1.0

    def _taken_since(self, reserved: Reservation) -> tuple[float, float]:
        """What the server took since it had nothing left, until it refused the one that was `reserved`; and in how many seconds."""
        if self._empty is None:
            return 0.0, 0.0
        return reserved.spent - self._empty.spent - self._empty.refused, reserved.at - self._empty.at

    def _measured(self, reserved: Reservation) -> float:
        """What the server took in a second, between two refusals."""
        taken, seconds = self._taken_since(reserved)
        # Between two moments at which it had less than one left it may have taken up to one more than it was given.
        return max(0.0, taken + self._cost() / 2.0) / seconds if seconds > 0.0 else 0.0

    def _forget_rate(self) -> None:
        """The number in flight explains all: there is no rate."""
        self._clean_from = self._started
        self._pace = _Pace()
        self._limit = None
        self._in_tokens = False
        self._free = None
        self._score = 0.0
        self._left_until = inf

    # --- announced ---

    def announced(self, now: float, announced: Announced, reserved: Reservation) -> None:
        """The answer to an attempt announced limits. To be called before `accepted` or `refused`, which end the attempt."""
        if reserved.at < self._said_at - _SURVIVED_S:
            # It is older news than what came before; those that began together are answered in any order.
            return
        self._said_at = max(self._said_at, reserved.at)
        told = self._announcements
        if not told.hear(announced) or self._refutes(now):
            return
        if self._pace.per_s is None:
            if self._crowd.bound is None and reserved.at >= self._said_at:
                self._left_until = reserved.spent + _LEFT * told.left(self._tokens_each)
            return
        if self._limit is None:
            # A rate that was guessed from refusals before anything was believed.
            as_announced = False
            changed = self._announced_per_s() < (self.per_s or 0.0)
        else:
            as_announced = abs(self._limit - self._seeded) <= _AS_ANNOUNCED * self._seeded
            changed = told.changed
        if changed or (as_announced and self._binding()[1] is not self._in_tokens):
            self._seed(now)
        elif as_announced:
            self._more_left = told.left_share > _PLENTY

    def _binding(self) -> tuple[float, bool]:
        return self._announcements.binding(self._tokens_each, in_tokens=self._in_tokens)

    def _refutes(self, now: float) -> bool:
        """Whether more was taken than the announced limit allows, or what is announced does not suffice for one request."""
        limit, in_tokens = self._binding()
        cost = max(1.0, self._tokens_each) if in_tokens else 1.0
        allowed = _MINUTE_S * limit + limit * (now - self._begun_at)
        return cost > _MINUTE_S * limit or self._taken * cost > _REFUTING * allowed

    def _announced_per_s(self) -> float:
        """The announced limit in force, or to be, in requests a second."""
        limit, in_tokens = self._binding()
        return limit / max(1.0, self._tokens_each) if in_tokens else limit

    def _seed(self, now: float) -> None:
        """Put the announced limit in force, as one that was found just now."""
        limit, in_tokens = self._binding()
        if in_tokens is not self._in_tokens:
            self._count_otherwise()
        self._limit = self._seeded = limit
        self._more_left = False
        self._free = None
        self._left_until = inf
        self._empty = _Empty(now, self._spent)
        self._score, self._scored = 0.0, self._spent
        self._dry = 0
        self._starts = _STARTS
        self._strays = 0
        self._lowered_at = self._clean_since = self._grown_at = now
        self._pace.change(now, (1.0 - _BELOW) * limit)

    def _weigh(self, tokens: float) -> None:
        """Whether tokens are limited or requests: the larger a request, the sooner a limit on tokens refuses it.

        Where tokens are paced although requests are limited, the small ones are refused, as they come faster.
        """
        if not tokens or not self._tokens_each:
            return
        larger = _size(tokens, self._tokens_each) - self._size
        self._odd = max(0.0, self._odd - _USUAL + (-larger if self._in_tokens else larger))
        if self._odd < (2.0 * _TELLING if self._in_tokens else _TELLING):
            return
        self._count_otherwise()

    def _count_otherwise(self) -> None:
        """Count requests instead of tokens, or these instead of those."""
        each = max(1.0, self._tokens_each)
        factor = 1.0 / each if self._in_tokens else each
        self._odd = 0.0
        self._in_tokens = not self._in_tokens
        self._spent *= factor
        self._scored *= factor
        self._pace.scale(factor)
        self._limit = None if self._limit is None else self._limit * factor
        self._empty = None

    # --- growing ---

    def _clean_for(self, now: float, limit: float) -> float:
        """For how long nothing was refused beyond the limit, where 1 is the time in which the limit is reached."""
        usual_s = self._cost() / limit
        most_s = min(_LONGEST_S, max(_STEADY_S, _STARTS * usual_s))
        return (now - max(self._clean_since, self._paused_until)) / min(
            most_s, max(_SHORTEST_S, self._starts * usual_s)
        )

    def _grow(self, now: float) -> None:
        rate, limit = self._pace.per_s, self._limit
        assert rate is not None
        passed, self._grown_at = now - self._grown_at, now
        if now - self._held_back_at > _CLEAN_S:
            # It is not the pace that holds work back: nothing is learned of a higher one.
            self._clean_since += passed
            return
        if limit is None or rate < (1.0 - _BELOW) * limit * 0.999:
            doubled_s = 1.0 if limit is not None or self._dry else max(1.0, self._cost() / rate)
            if now - max(self._clean_since, self._paused_until) < _CLEAN_S * doubled_s:
                return
            grown = rate * 2.0 ** (min(1.0, passed) / doubled_s)
            if limit is not None and grown >= (1.0 - _BELOW) * limit:
                grown = (1.0 - _BELOW) * limit
                self._clean_since = now
        elif self._more_left:
            grown = rate * _FASTEST ** min(1.0, passed)
        else:
            beyond = min(10.0, self._clean_for(now, limit) - 1.0)
            grown = min(limit * (1.0 + _BELOW * beyond**_CURVE), rate * _FASTEST ** min(1.0, passed))
            if grown > _FAR_BEYOND * limit:
                # Nothing was refused all the way: that was no limit, and the next is looked for from here.
                self._limit, self._clean_since, self._starts = grown, now, _FIRST_STARTS
        if grown > rate:
            given = self.ceilings.requests.per_s
            if given is not None and not self._in_tokens:
                grown = min(grown, max(rate, given))
            self._pace.change(now, grown)
