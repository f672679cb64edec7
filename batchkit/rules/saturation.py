"""How many attempts in flight a server makes use of, where it refuses none: beyond that they only wait for one another.

A server that works on so many at once lets the others wait, so with more in flight each takes longer and no more are answered. That
is suspected where the same work takes longer with many in flight than it took with few (work is told by tokens, since a file may be
sorted by length), and it is believed only when it was tried: a quarter less in flight, for some hundred answers, and as much
work done as before. So it goes down until less is done, and one such step up again: a server without such a limit is not slowed down
by more than a single trial, and one that has it keeps a reserve. Now and then a step up is tried as well, as servers grow.
"""

from __future__ import annotations

__all__ = ["Saturation"]

_PER_ANSWER = 50.0
"""What an answer takes beside its tokens, in tokens."""
_LONGER = 1.5
"""Work that takes so many times as long as with few in flight is suspected to wait. Less is what latencies vary by."""
_FEW = 64
"""Answers with few in flight that are enough to compare with."""
_NEAR = 0.1
"""What began with about as many as there are now tells of now; late ones from when there were fewer are the slowest of those."""
_UNBIASED = 4.0
_APART = 2
"""Few in flight are a quarter of many: two powers of two."""
_RECENT = 300
"""Answers over which is averaged what they take lately, and that are enough to suspect anything."""
_LOOKED_AT = 30
"""Answers of about the same level after which they are averaged, and it is looked for a reason to suspect anything."""
_COUNTED = 800
"""So many answers make a rate that is known to a few percent."""
_SETTLED = 1.5
"""After so many times what an attempt takes, those that began before a step are through."""
_STEP = 0.75
"""The share of those in flight that a step down leaves: a smaller step is not told from chance, a larger one costs more in vain."""
_SAME, _MORE = 0.9, 1.1
"""The work a second, as a share of what it was, from which on a step down did no harm, and a step up did some good."""
_FEWEST, _SHORTEST_S = 8, 0.1
"""So few in flight, or answers that come so soon, are worth no trial: nobody waits for long."""
_AGAIN_S, _LONGEST_S = 60.0, 600.0
"""Seconds until the next trial at least, and at most where a bound is known."""
_RARELY = 10.0
"""A trial in vain is followed by so many times as long without one, and twice as long each time."""


class _Level:
    """Attempts that began with about so many others in flight: what all took, and what the last took on average.

    Sums grow with each answer; averages are taken of some at once, which is a fraction of the work.
    """

    __slots__ = ("_averaged", "answers", "first_at", "lately_s", "lately_work", "seconds", "work")

    def __init__(self, now: float) -> None:
        self.first_at = now
        self.answers = 0
        self.seconds = self.work = 0.0
        self._averaged = (0, 0.0, 0.0)
        self.lately_s = self.lately_work = 0.0

    def average(self) -> None:
        """Take those into the averages that came since the last time."""
        answers, seconds, work = self._averaged
        self._averaged = (self.answers, self.seconds, self.work)
        new = self.answers - answers
        if new:
            share = new / min(self.answers, _RECENT)
            self.lately_s += share * ((self.seconds - seconds) / new - self.lately_s)
            self.lately_work += share * ((self.work - work) / new - self.lately_work)


class Saturation:
    """Watches the answers of one model. `bound` is how many attempts may be in flight at once, None for any number."""

    __slots__ = (
        "_again_at",
        "_again_s",
        "_answers",
        "_began_at",
        "_counts_from",
        "_counts_until",
        "_good",
        "_levels",
        "_rate",
        "_trying",
        "_up",
        "_work",
        "bound",
    )

    def __init__(self) -> None:
        self.bound: int | None = None
        self._levels: dict[int, _Level] = {}
        self._again_at = 0.0
        self._again_s = 0.0
        self._trying = 0
        """How many were in flight before the step that is being tried; 0 while none is."""
        self._up = False
        self._good: int | None = None
        """The last bound with which as much was done as could be."""
        self._rate: float | None = None
        """The work a second that was done before the trial."""
        self._counts_from = self._counts_until = 0.0
        self._began_at = 0.0
        self._answers = 0
        self._work = 0.0

    @property
    def known(self) -> int | None:
        """The bound that was found, also while another is tried."""
        return self._good if self._trying else self.bound

    def answered(self, now: float, began_at: float, level: int, in_flight: int, tokens: float) -> None:
        """An attempt was answered that began with `level` others in flight, as `in_flight` are now, and took so many tokens."""
        work = tokens + _PER_ANSWER
        size = level.bit_length()
        of_size = self._levels.get(size)
        if of_size is None:
            of_size = self._levels[size] = _Level(now)
        of_size.answers = answers = of_size.answers + 1
        of_size.seconds += now - began_at
        of_size.work += work
        if not answers % _LOOKED_AT:
            of_size.average()
            if not self._trying:
                self._consider(now, level, in_flight, of_size)
                return
        if self._trying:
            self._count(now, work, of_size)

    def _consider(self, now: float, level: int, in_flight: int, many: _Level) -> None:
        """Begin a trial, if there is a reason for one."""
        if now < self._again_at or in_flight < _FEWEST or abs(level - in_flight) > _NEAR * in_flight:
            return
        if many.answers < _RECENT:
            return
        if now - many.first_at < _UNBIASED * many.lately_s:
            return  # those that were answered first are those that took the least
        self._up = self.bound is not None
        if not self._up:
            if many.lately_s < _SHORTEST_S:
                return
            few = [each for of, each in self._levels.items() if of <= level.bit_length() - _APART]
            seconds, work = sum(each.seconds for each in few), sum(each.work for each in few)
            if sum(each.answers for each in few) < _FEW or (
                many.lately_s * work < _LONGER * seconds * many.lately_work
            ):
                return
        self._trying, self._good, self._rate = level + 1, self.bound, None
        self._began_at = now
        self._count_from(now, many.lately_s)

    def _count_from(self, at: float, usual_s: float) -> None:
        """Count for as long as an attempt takes, and until it is enough."""
        self._counts_from, self._counts_until = at, at + usual_s
        self._answers = 0
        self._work = 0.0

    def _count(self, now: float, work: float, of_size: _Level) -> None:
        if now < self._counts_from:
            return
        self._answers += 1
        self._work += work
        if self._answers < _COUNTED or now < self._counts_until:
            return
        of_size.average()
        rate = self._work / (now - self._counts_from)
        if self._rate is None:
            self._rate = rate
        elif self._up:
            if rate < _MORE * self._rate:
                self._end(now, self._good)
                return
            self._rate = rate
            self._good = self._trying = self.bound or self._trying
        else:
            if rate < _SAME * self._rate or self._trying < _FEWEST:
                # One step more than what was enough.
                self._end(now, None if self._good is None else round(self._good / _STEP))
                return
            self._good = self._trying = self.bound or self._trying
        self.bound = round(self._trying / _STEP if self._up else self._trying * _STEP)
        self._count_from(now + _SETTLED * of_size.lately_s, of_size.lately_s)

    def _end(self, now: float, bound: int | None) -> None:
        self.bound, self._trying = bound, 0
        # A step up costs nothing, and one down in vain what it took away.
        self._again_s = max(
            2.0 * self._again_s, _RARELY * (now - self._began_at) if bound is None else _AGAIN_S
        )
        if bound is not None:
            self._again_s = min(self._again_s, _LONGEST_S)
        self._again_at = now + self._again_s
