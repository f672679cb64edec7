"""How fast requests to one model may start: known limits kept, hidden ones found.

A limit of requests or tokens a minute is a rate, so a rate is what is controlled. `rules.budget` keeps a limit that is
given; one that is hidden shows by its refusals, and is found so:

*Beginning.* Nothing is known, and a server without a limit must not feel that. So many may start, and twice as many after each
quarter second in which the last were not refused; each answer lets two more start. A thousand are in flight after a second, or
as fast as answers come; a low limit costs some dozens of refusals instead of a thousand.

*Finding.* Refusals that are more than some strays (a CUSUM chart: each counts one, each start takes 2 % of one away) set the rate.
A server that refuses has nothing left, so what it took from one refusal to the next is exactly its rate: that is measured, and
98 % of it begin to start. Where it took nothing, the rate is halved for each round of refusals.

*Keeping.* While nothing is refused the rate rises to the limit, stays there for long, and then leaves it, as CUBIC does but
flatter: limit * (1 + 0.02 * x^5), where x passes from -1 to 0 in some 150 starts. A single refusal beyond the limit lets the curve
begin anew, and raises the limit a little; one below it is a stray and changes next to nothing. So a limit costs
about one refusal in two hundred starts, one that rises is followed in half a minute, and a server that refuses one in a
hundred for no reason is not slowed down.

*Announced.* Where answers announce limits (`rules.announcing`), as much begins as they say is left, and then the announced
rate stands as one that was found: from the first refusal on, or once what was left is used. It is a belief and no law: refusals
below it lower it, and where nothing is refused the rate rises beyond it.

What is counted is requests, or tokens once those that were refused are clearly larger than the others. A limit on how many are
in flight shows in the same way and is told apart by `rules.crowding`.

The clock is an argument in seconds, so an hour of pacing is tested in a millisecond.
"""

from __future__ import annotations

from math import inf

from batchkit.records import Announced
from batchkit.rules.announcing import Announcements
from batchkit.rules.budget import Budget, Ceilings, Reservation
from batchkit.rules.crowding import Crowd

__all__ = ["Pacer", "Reservation"]

_FIRST = 16
"""So many may start at once when nothing is known."""
_SURVIVED_S = 0.25
"""What was not refused in so long was taken; and so long everyone waits when a limit is met."""
_ENOUGH = 4096

_LONGEST_PAUSE_S = 5.0
"""Everyone waits a quarter of a second when a limit is met, and twice as long after each round in which nothing was taken."""
_DRY = 5
"""After so many it is no matter of rates, and the limit is what it was before."""
_DRIED = 0.85
_BELIEVED = 0.6
"""Where less than this share of the rate was taken, what was measured may be the debt that refusals left."""

_TOLERATED = 0.02
_ALARMING = 5.0
_SHUT = 0.9
"""Above this share of refusals a server takes nothing, and is left alone for as long as it asks."""

_BELOW = 0.02
_CURVE = 5
_STARTS = 150.0
_SHORTEST_S, _LONGEST_S = 2.0, 40.0
_RAISED = 0.15
_FAR = 0.1
_RISEN = 0.6
_LOWERED = 0.995
_DOUBLED_S = 1.0
_GUESSED_GROWTH = 1.2
"""In a second, beyond a limit that was not measured yet."""
_CLEAN_S = 2.0
_LOWEST_PER_S = 0.02
_GROWN_EVERY_S = 0.1

_MEASURED_S = 2.0
_MEASURED_STARTS = 40.0
_SHORTEST_MEASURED_S = 0.25
_FEWEST = 8

_LEFT = 0.9
"""The share of what is announced to be left that is begun before the announced rate is kept: others may use the key too."""
_PLENTY = 0.5
"""Where a larger share than this is left, though as much begins as was announced, there is more: a gateway has several keys."""
_AS_ANNOUNCED = 0.1
"""A limit that was moved by a larger share than this is one that was found."""
_BINDING = 0.9
"""Requests are counted instead of tokens, or these instead of those, where the others would allow less than this share."""

_TELLING = 25
"""So many refusals tell by their size whether tokens are what is limited."""
_LARGER, _ALIKE = 1.4, 1.1


class _Anchor:
    """A refusal from which on is counted what was taken."""

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
        self._pace = Budget(None)
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
        self._scored = 0
        self._anchors: tuple[_Anchor, _Anchor] | None = None
        self._dry = 0
        self._refused_at = -inf
        self._lowered_at = -inf
        self._paused_until = 0.0
        self._asked_until = 0.0
        # Keeping.
        self._limit: float | None = None
        self._limit_before = 0.0
        self._spent_before = 0.0
        self._guessed = False
        self._clean_since = 0.0
        self._clean_from = 0
        self._grown_at = 0.0
        self._held_back_at = -inf
        # Which of the two is limited.
        self._sized = 0
        self._sized_tokens = 0.0
        # Announced: a minute's requests and tokens, what of the cost may begin before they count, and as what they were put in force.
        self._announcements = Announcements()
        self._told: tuple[float | None, float | None] = (None, None)
        self._left_until = inf
        self._said_at = -inf
        self._seeded = 0.0

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
        return self._pace.per_s is not None or self._crowd.bound is not None

    @property
    def limit_per_minute(self) -> tuple[float, str] | None:
        """The limit that was found, a minute, in "requests" or "tokens"; None while there is none."""
        if self._limit is None or self._pace.per_s is None:
            return None
        return self._limit * 60.0, "tokens" if self._in_tokens else "requests"

    @property
    def most_in_flight(self) -> int | None:
        """How many at once the server was found to take; None while no such limit was found."""
        return self._crowd.bound

    @property
    def is_open(self) -> bool:
        """Whether no limit is known, so that but for a pause whoever comes may start, in whatever order."""
        return (
            (self._free is None or self._unproven < self._free)
            and self._spent < self._left_until
            and self._pace.per_s is None
            and self._crowd.bound is None
            and not self.ceilings.given
        )

    @property
    def awaits_answers(self) -> bool:
        """Whether an answer may let others start, before the time that `wait` gave."""
        return self._crowd.bound is not None or self._free is not None or self.ceilings.given

    @property
    def counts_tokens(self) -> bool:
        """Whether a forecast of tokens is worth making."""
        return (
            self.ceilings.tokens.per_s is not None
            or self._pace.per_s is not None
            or self._told[1] is not None
        )

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
        cost = tokens if self._in_tokens else 1.0
        self.in_flight += 1
        self._started += 1
        self._unproven += 1
        self._spent += cost
        if tokens:
            self._tokens_each += (tokens - self._tokens_each) / (100.0 if self._tokens_each else 1.0)
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
            self._free += 1.0
            self._unproven -= 1
        self.ceilings.settle(now, reserved, actual)
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
            if started >= self._binding_per_s() * max(_SURVIVED_S, seconds):
                self._seed(now)
        self._anchor(now, reserved)
        if reserved.at <= self._lowered_at:
            # It began before the rate was last lowered, and tells nothing of the present one.
            self._pause_if_shut(now, hint)
            return
        self._score = max(0.0, self._score - _TOLERATED * (self._started - self._scored)) + 1.0
        self._score = min(self._score, _ALARMING + 1.0)
        self._scored = self._started
        bound = self._crowd.bound
        if self._crowd.refused(now, reserved.at, reserved.level):
            if bound is None:
                self._forget_rate()
            self._clean_from = self._started
            if self._score < _ALARMING:
                return
        self._weigh(reserved.tokens)
        if self._score >= _ALARMING or not self._taken:
            self._alarmed(now, hint, reserved)
        else:
            self._stray(now, reserved)

    def _stray(self, now: float, reserved: Reservation) -> None:
        """A single refusal: beyond the limit it was to be expected, below it says next to nothing."""
        limit, rate = self._limit, self._pace.per_s
        if limit is None or rate is None:
            return
        if rate < limit:
            self._limit = limit * _LOWERED
            return
        beyond = rate / limit - 1.0
        if beyond < _FAR:
            self._limit = limit * (1.0 + _RAISED * beyond)
        else:
            # It has risen, or a bucket that filled meanwhile hid it: all that was taken since the last refusals tells.
            taken = (reserved.spent - self._spent_before) / max(1.0, reserved.at - self._lowered_at)
            self._limit = min(rate, max(limit, taken, _RISEN * rate))
        self._spent_before = self._spent
        self._lowered_at = self._clean_since = now
        # Where refusals are counted against the limit they leave a debt.
        self._paused_until = max(self._paused_until, now + min(_SURVIVED_S, 2.0 * beyond))
        self._pace.change(now, (1.0 - _BELOW) * self._limit)

    def _alarmed(self, now: float, hint: float | None, reserved: Reservation) -> None:
        """More than strays."""
        self._pause_if_shut(now, hint)
        if self._score < _ALARMING or not self._recent(now)[1]:
            return
        rate = self._pace.per_s
        if self._crowd.bound is not None:
            self._crowd.let_go()
        measured = self._measured(reserved)
        if rate is not None and measured is None:
            # Too early to tell.
            self._stray(now, reserved)
            return
        if rate is not None and measured is not None and measured >= _BELIEVED * rate:
            self._limit, self._guessed = min(rate, measured), False
            lower = (1.0 - _BELOW) * self._limit
            self._dry = 0
        else:
            lower = self._lower_dry(now)
        self._free = None
        self._anchors = None
        self._spent_before = self._spent
        self._lowered_at = now
        self._clean_since = now
        self._pace.change(now, max(_LOWEST_PER_S * self._cost(), lower))

    def _pause_if_shut(self, now: float, hint: float | None) -> None:
        _, started, refused = self._recent(now)
        if started and refused >= _SHUT * started and hint is not None:
            self._asked_until = max(self._asked_until, now + hint)
            self._paused_until = max(self._paused_until, self._asked_until)

    def _lower_dry(self, now: float) -> float:
        """The rate after a round in which nothing was taken. Some such rounds in a row are no matter of rates."""
        self._paused_until = max(
            self._paused_until, now + min(_LONGEST_PAUSE_S, _SURVIVED_S * 2.0**self._dry)
        )
        self._dry += 1
        rate, limit = self._pace.per_s, self._limit
        if rate is None:
            seconds, started, _ = self._recent(now)
            return started / max(0.5, seconds) * self._cost() / 2.0
        if limit is None:
            if self._taken:
                self._limit, self._guessed = rate / 2.0, True
            return rate / 2.0
        if self._dry == 1:
            self._limit_before = limit
        if self._dry > _DRY:
            self._limit = max(limit, self._limit_before)
            return rate / 2.0
        self._limit, self._guessed = min(limit, _DRIED * rate), False
        return (1.0 - _BELOW) * self._limit

    def _cost(self) -> float:
        return self._tokens_each if self._in_tokens else 1.0

    def _anchor(self, now: float, reserved: Reservation) -> None:
        """Note from where on to count what is taken: a refusal some seconds ago, if there were others since."""
        rate = self._pace.per_s
        longest = max(_MEASURED_S, _MEASURED_STARTS * self._cost() / rate if rate else 0.0)
        quiet, self._refused_at = now - self._refused_at, now
        if self._anchors is None or quiet > longest / 2.0:
            anchor = _Anchor(now, self._spent)
            self._anchors = (anchor, anchor)
            return
        cost = reserved.tokens if self._in_tokens else 1.0
        old, new = self._anchors
        if reserved.at >= old.at:
            old.refused += cost
        if new is not old and reserved.at >= new.at:
            new.refused += cost
        if now - new.at > longest:
            self._anchors = (new, _Anchor(now, self._spent))

    def _measured(self, reserved: Reservation) -> float | None:
        """What the server took in a second, between the anchor and the start of a refused request; None if that is too short."""
        if self._anchors is None:
            return None
        anchor, cost = self._anchors[0], self._cost()
        seconds = reserved.at - anchor.at
        taken = reserved.spent - anchor.spent - anchor.refused
        if seconds <= 0.0:
            return None
        if taken < cost / 2.0:
            return 0.0
        if taken < _FEWEST * cost and 2.0 * taken >= reserved.spent - anchor.spent:
            return None
        # Between two moments at which it had less than one left it may have taken up to one more than it was given.
        return (taken + cost / 2.0) / seconds if seconds >= _SHORTEST_MEASURED_S else None

    def _forget_rate(self) -> None:
        """The number in flight explains all: there is no rate."""
        self._clean_from = self._started
        self._pace = Budget(None)
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
        requests, tokens = self._announcements.hear(announced)
        if requests is None and tokens is None:
            return
        before = self._told
        self._told = told = (
            before[0] if requests is None else requests.per_minute,
            before[1] if tokens is None else tokens.per_minute,
        )
        if self._pace.per_s is None:
            if self._crowd.bound is None and reserved.at >= self._said_at:
                left = inf if requests is None else requests.left
                if tokens is not None and self._tokens_each:
                    left = min(left, tokens.left / self._tokens_each)
                self._left_until = reserved.spent + _LEFT * left
            return
        changed = any(then not in (None, now_is) for then, now_is in zip(before, told, strict=True))
        if self._limit is None:
            # A rate that was guessed from refusals before anything was believed.
            as_announced = False
            changed = self._binding_per_s() < (self.per_s or 0.0)
        else:
            as_announced = abs(self._limit - self._seeded) <= _AS_ANNOUNCED * self._seeded
        if changed or (as_announced and self._binding()[1] is not self._in_tokens):
            self._seed(now)
        elif as_announced:
            self._guessed = all(
                each is None or each.left > _PLENTY * each.per_minute for each in (requests, tokens)
            )

    def _binding(self) -> tuple[float, bool]:
        """The announced limit a second that allows less, and whether it is the one on tokens."""
        requests, tokens = self._told
        if tokens is None or (requests is not None and not self._tokens_each):
            return (requests or inf) / 60.0, False
        if requests is None:
            return tokens / 60.0, True
        share = tokens / self._tokens_each / requests
        if share < (1.0 / _BINDING if self._in_tokens else _BINDING):
            return tokens / 60.0, True
        return requests / 60.0, False

    def _binding_per_s(self) -> float:
        """The announced limit in force, or to be, in requests a second."""
        limit, in_tokens = self._binding()
        return limit / max(1.0, self._tokens_each) if in_tokens else limit

    def _seed(self, now: float) -> None:
        """Put the announced limit in force, as one that was found just now."""
        limit, in_tokens = self._binding()
        if in_tokens is not self._in_tokens:
            each = max(1.0, self._tokens_each)
            self._spent *= each if in_tokens else 1.0 / each
            self._in_tokens = in_tokens
            self._pace = Budget(None)
        self._limit = self._seeded = limit
        self._guessed = False
        self._free = None
        self._left_until = inf
        self._anchors = None
        self._score, self._scored = 0.0, self._started
        self._dry = 0
        self._spent_before = self._spent
        self._lowered_at = self._clean_since = now
        self._pace.change(now, (1.0 - _BELOW) * limit)

    def _weigh(self, tokens: float) -> None:
        """Whether tokens are limited or requests: the larger a request, the sooner a limit on tokens refuses it."""
        if not tokens or not self._tokens_each:
            return
        self._sized += 1
        self._sized_tokens += tokens / self._tokens_each
        if self._sized < _TELLING:
            return
        larger = self._sized_tokens / self._sized
        self._sized, self._sized_tokens = 0, 0.0
        if (larger >= _LARGER and not self._in_tokens) or (larger <= _ALIKE and self._in_tokens):
            factor = 1.0 / self._tokens_each if self._in_tokens else self._tokens_each
            self._in_tokens = not self._in_tokens
            self._spent *= factor
            self._spent_before *= factor
            pace = Budget(None)
            if self._pace.per_s is not None:
                pace.change(0.0, self._pace.per_s * factor)
            self._pace = pace
            self._limit = None if self._limit is None else self._limit * factor
            self._anchors = None

    # --- growing ---

    def _clean_for(self, now: float, limit: float) -> float:
        """For how long nothing was refused beyond the limit, in the time that some hundred and fifty starts take."""
        usual_s = min(_LONGEST_S, max(_SHORTEST_S, _STARTS * self._cost() / limit))
        return (now - max(self._clean_since, self._paused_until)) / usual_s

    def _grow(self, now: float) -> None:
        rate, limit = self._pace.per_s, self._limit
        assert rate is not None
        passed, self._grown_at = now - self._grown_at, now
        if now - self._held_back_at > 1.0:
            # It is not the pace that holds work back: nothing is learned of a higher one.
            self._clean_since += passed
            return
        if limit is None or rate < (1.0 - _BELOW) * limit * 0.999:
            if now - max(self._clean_since, self._paused_until) < _CLEAN_S:
                return
            grown = rate * 2.0 ** (min(1.0, passed) / _DOUBLED_S)
            if limit is not None and grown >= (1.0 - _BELOW) * limit:
                grown = (1.0 - _BELOW) * limit
                self._clean_since = now
        elif self._guessed:
            grown = rate * _GUESSED_GROWTH ** min(1.0, passed)
        else:
            beyond = min(10.0, self._clean_for(now, limit) - 1.0)
            grown = min(limit * (1.0 + _BELOW * beyond**_CURVE), rate * 1.5 ** min(1.0, passed))
        if grown > rate:
            given = self.ceilings.requests.per_s
            if given is not None and not self._in_tokens:
                grown = min(grown, max(rate, given))
            self._pace.change(now, grown)
