"""When limits that were announced are put in force, and when they are not believed any more.

What `rules.announcing` makes of the answers is a belief and no law. As much begins as is said to be left, and then the announced
rate stands as one that was found: from the first refusal on, or once what was left is used. Refusals below it lower it, and where
nothing is refused the rate rises beyond it, at once where a server says that more is left. A limit is refuted where more was taken
than it allows. One that is announced anew counts from then on, in place of whatever was found.
"""

from __future__ import annotations

from math import inf

from batchkit.records import Announced
from batchkit.rules.announcing import MINUTE_S, Announcements
from batchkit.rules.budget import Reservation
from batchkit.rules.weighing import Unit

__all__ = ["Belief"]

_TOGETHER_S = 0.25
"""Seconds between the starts of two attempts that are answered in any order: news that is older than the last by more is none. With less
one of many keys is heard alone; with more what a slow answer tells overrules what was said since."""
_LEFT = 0.9
"""The share of what is announced to be left that is begun before the announced rate is kept: others may use the key too."""
_SHORTEST_S = 0.25
"""Seconds, at least, over which starts are a rate that an announced limit would have refused: a few at once are none."""
_PLENTY = 0.5
"""Where a larger share than this is left, though as much begins as was announced, there is more: a gateway has several keys."""
_REFUTING = 1.5
"""A limit of which so many times as much was taken is refuted. Below, a bucket that was full, or strays of the clock, explain it."""
_AS_ANNOUNCED = 0.1
"""A limit that was moved by a larger share than this is one that was found, and what is announced says nothing against it."""


class Belief:
    """What is believed of the limits that the answers of one model announce."""

    __slots__ = ("_announcements", "_in_force", "_said_at", "tokens_told")

    def __init__(self) -> None:
        self._announcements = Announcements()
        self._said_at = -inf
        self._in_force = 0.0
        """The limit a second that was last put in force, as it was announced."""
        self.tokens_told = False
        """Whether a limit on tokens is believed."""

    def hear(
        self, now: float, announced: Announced, at: float, unit: Unit, taken: int, begun_at: float
    ) -> bool:
        """Take in what the answer to an attempt announced that began `at`. Whether there is anything to be believed now.

        So many requests were `taken` since the first one began.
        """
        if at < self._said_at - _TOGETHER_S:
            return False
        self._said_at = max(self._said_at, at)
        believed = self._announcements.hear(announced)
        self.tokens_told = self._announcements.tokens is not None
        return believed and not self._refutes(unit, taken, now - begun_at)

    def _refutes(self, unit: Unit, taken: int, seconds: float) -> bool:
        """Whether more was taken than the announced limit allows, or what is announced does not suffice for one request."""
        limit, in_tokens = self.limit(unit)
        cost = max(1.0, unit.tokens_each) if in_tokens else 1.0
        allowed = MINUTE_S * limit + limit * seconds
        return cost > MINUTE_S * limit or taken * cost > _REFUTING * allowed

    def limit(self, unit: Unit) -> tuple[float, bool]:
        """The limit a second in force, or to be, and whether it is one on tokens."""
        return self._announcements.binding(unit.tokens_each, in_tokens=unit.in_tokens)

    def _requests_per_s(self, unit: Unit) -> float:
        limit, in_tokens = self.limit(unit)
        return limit / max(1.0, unit.tokens_each) if in_tokens else limit

    def left_until(self, reserved: Reservation, unit: Unit) -> float | None:
        """What all starts may come to before the limit is put in force, by what the answer to `reserved` told.

        None if a later one has told more.
        """
        if reserved.at < self._said_at:
            return None
        return reserved.spent + _LEFT * self._announcements.left(unit.tokens_each)

    def explains(self, started: int, seconds: float, unit: Unit) -> bool:
        """Whether so many starts in the last seconds are so many that the limit had to refuse one."""
        return started >= self._requests_per_s(unit) * max(_SHORTEST_S, seconds)

    def put_in_force(self, limit: float) -> None:
        """The `limit` a second is in force from now on."""
        self._in_force = limit

    def overrules(self, limit: float | None, per_s: float | None, unit: Unit) -> bool:
        """Whether what was heard last is to be put in force in place of a `limit` that was found.

        None is a rate that was guessed before anything was believed, with which `per_s` requests a second start.
        """
        if limit is None:
            return self._requests_per_s(unit) < (per_s or 0.0)
        return self._announcements.changed or (
            self.stands(limit) and self.limit(unit)[1] is not unit.in_tokens
        )

    def stands(self, limit: float | None) -> bool:
        """Whether a `limit` that is in force is still the one that was announced."""
        return limit is not None and abs(limit - self._in_force) <= _AS_ANNOUNCED * self._in_force

    @property
    def more_left(self) -> bool:
        """Whether so much is left that there is more than is announced."""
        return self._announcements.left_share > _PLENTY
