"""How many may start while nothing is known of a server.

One without a limit must not feel that. So a few may start, and twice as many after each quarter second in which the last were not
refused; each answer lets dozens more start. A thousand are in flight after two seconds, or as soon as answers come; a low limit
costs some refusals instead of a thousand.
"""

from __future__ import annotations

from math import inf

__all__ = ["PER_ANSWER", "Beginning"]

_FIRST = 4.0
"""Starts at once when nothing is known. More are refused where a limit is low; with fewer the beginning takes longer for everyone."""
PER_ANSWER = 31.0
"""Starts more for each answer, beside the one in its place. It decides how soon a fast server is fully used: with few, a job of short
answers feels its beginning; with hundreds, one answer looses a flood upon a low limit."""
_PROVEN_S = 0.25
"""Seconds after which what was not refused is taken to be accepted: a refusal comes at once, and an answer need not. Below a round trip
nothing is proven; above it the doubling takes longer."""
_ENOUGH = 4096
"""Starts in a row after which no limit is expected any more: more than are in flight at once in any job."""
_FEW, _SHARE = 3, 1.0 / 3.0
"""So many refusals, if they are this share of all starts, are no strays: where one in a hundred is refused for no reason, so many come
together once in ten thousand jobs. With fewer a stray slows such a job down; with more a low limit is run into for longer."""


class Beginning:
    """So many starts are `free`, of which as many as `unproven` are neither answered nor older than a quarter second.

    Its pacer counts both up and down with each start and answer; here that would cost a call.
    """

    __slots__ = ("free", "over", "proven_at", "unproven")

    def __init__(self) -> None:
        self.free = _FIRST
        self.unproven = 0
        self.proven_at = -inf
        """When those that were started until now will have been proven."""
        self.over = False
        """Whether so many were taken in a row that nothing has to be proven any more."""

    def wait(self, now: float) -> float:
        """Seconds until the next start; 0.0 is at once."""
        if now < self.proven_at:
            return self.proven_at - now if self.unproven >= self.free else 0.0
        if self.unproven >= self.free:
            self.free *= 2.0
            self.over = self.free > _ENOUGH
        self.unproven = 0
        self.proven_at = now + _PROVEN_S
        return 0.0

    def refused(self, refused: int, started: int) -> bool:
        """A start was refused. Whether as many as `refused` of all that were `started` are too many for strays."""
        # Growing goes on when this quarter second is over, if it was a stray.
        self.unproven = min(self.unproven, int(self.free) - 1)
        return refused >= max(_FEW, _SHARE * started)
