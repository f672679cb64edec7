"""How many may start while nothing is known of a server.

One without a limit must not feel that, and a low limit is to cost some refusals instead of a thousand. So a few may start, then twice
as many in each step of a quarter second in which the last were not refused: not in one burst, since a refusal that comes back while
the others of its step have not left yet keeps them from it. An answer that comes at once lets some more start as soon. A thousand
are in flight after two seconds.
"""

from __future__ import annotations

from math import inf

__all__ = ["BRISK_S", "Beginning"]

_FIRST = 4.0
"""Starts at once when nothing is known. More are refused where a limit is low; with fewer the beginning takes longer for everyone."""
_STEP_S = 0.25
"""Seconds after which what was not refused is taken to be accepted: a refusal comes at once, and an answer need not. Below a round trip
nothing is proven; above it the doubling takes longer."""
BRISK_S = 0.1
"""Answers within so many seconds come at once: in a job of such answers steps are felt."""
_PER_ANSWER = 16.0
"""Starts more for each of these, beside the one in its place. With fewer such a job feels its beginning; with more, some answers of a
cache would let ever more start on their own."""
_USED = 0.5
"""The share of what may start in a step that has to, for twice as many to start in the next."""
_MANY = 256.0
"""From so many on it is four times as many: what is above a thousand a second is seldom limited, and is the sooner reached."""
_HUSH_S = 0.05
"""Seconds without a start after the first refusal in a step: if it was for a limit, those of the others tell so by then."""
_ENOUGH = 4096
"""Starts in a row after which no limit is expected any more: more than are in flight at once in any job."""
_FEW, _SHARE, _ROW = 3, 1.0 / 3.0, 0.75
"""So many refusals, if they are the first share of all starts, or the second of those from the first to the last refused one in a step,
are no strays: where one in a hundred is refused for no reason, so many come together once in ten thousand jobs. With fewer a stray
slows such a job down; with more a limit is run into for longer."""


class Beginning:
    """So many starts are `free`, of which as many as `unproven` were made in this step and are not answered.

    Its pacer counts these up and down with each start and answer; here that would cost a call.
    """

    __slots__ = (
        "_first",
        "_free_at",
        "_growing",
        "_last",
        "_most",
        "_refused",
        "_resumes_at",
        "free",
        "over",
        "unproven",
        "until",
    )

    def __init__(self) -> None:
        self.unproven = 0
        self.free = _FIRST
        self._free_at = 0.0
        self._most = _FIRST
        """Starts that are free at the end of the step."""
        self.until = -inf
        """When the step ends."""
        self._growing = True
        """Whether more may start in this step than in the last, and none was refused in it."""
        self._resumes_at = -inf
        self._refused = 0
        """Refusals since the first in the last such step."""
        self._first = self._last = 0.0
        """Which starts the first and the last of them were, in the order of starts."""
        self.over = False
        """Whether so many were taken in a row that nothing has to be proven any more."""

    def wait(self, now: float) -> float:
        """Seconds until the next start; 0.0 is at once."""
        if now < self._resumes_at:
            return self._resumes_at - now
        if now >= self.until:
            self._take_step(now)
        if self.unproven < self.free:
            return 0.0
        if self.free < self._most:
            per_s = self._most / _STEP_S
            self.free = min(self._most, self.free + per_s * (now - self._free_at))
            self._free_at = now
            if self.unproven < self.free:
                return 0.0
            if self.free < self._most:
                return min(self.until - now, (self.unproven + 1 - self.free) / per_s)
        return self.until - now

    def _take_step(self, now: float) -> None:
        self._growing = self.unproven >= _USED * self._most
        if self._growing:
            self._most *= 2.0 if self._most < _MANY else 4.0
            self.over = self._most > _ENOUGH
        self.free = _FIRST if self._growing else self._most
        self.unproven = 0
        self._free_at = now
        self.until = now + _STEP_S

    def answered_soon(self) -> None:
        """An answer came within `BRISK_S`."""
        self._most += _PER_ANSWER
        self.free += _PER_ANSWER

    def refused(self, now: float, start: float, refused: int, started: int) -> bool:
        """One was refused that was the so manieth `start`.

        Whether refusals are too many for strays: as many as `refused` of all that were `started`, or those that came in a row.
        """
        if self._growing:
            # Once in a step: a stray is to cost next to nothing, and growing goes on with the next.
            self._growing = False
            self._resumes_at = self._free_at = now + _HUSH_S
            self._refused, self._first, self._last = 0, start, start
        self._refused += 1
        self._first, self._last = min(self._first, start), max(self._last, start)
        row = self._last - self._first + 1.0
        return self._refused >= max(_FEW, _ROW * row) or refused >= max(_FEW, _SHARE * started)
