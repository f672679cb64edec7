"""What was started and refused in the last one or two seconds, of counts that only grow: two looks at them are kept."""

from __future__ import annotations

from math import inf

__all__ = ["Lately"]

_EVERY_S = 1.0
"""Seconds between two looks. What a server did longer ago says little of now; in less, a slow one has not answered yet."""
_LAST_S = 2.0
"""Seconds after which the look before is too old to be looked back to: nobody came meanwhile."""
_SHUT = 0.9
"""The share of the last seconds' starts from which on, if it is refused, a server takes nothing, and is left alone for as long as it
asks. Lower, one that is merely full would be left alone as well, and a pause of everyone is what a job loses most by."""


class Lately:
    """Looks back upon the counts of one model."""

    __slots__ = ("_before", "_last", "look_at")

    def __init__(self) -> None:
        self._last = (0.0, 0, 0)
        self._before = (-inf, 0, 0)
        self.look_at = _EVERY_S
        """When `look` is to be called again."""

    def look(self, now: float, started: int, refused: int) -> None:
        """So many were started and refused by now."""
        look = (now, started, refused)
        self._before = self._last if now < self._last[0] + _LAST_S else look
        self._last = look
        self.look_at = now + _EVERY_S

    def since(self, now: float, started: int, refused: int) -> tuple[float, int, int]:
        """The seconds looked back upon, and how many of those that were `started` and `refused` by now were so in them."""
        at, started_then, refused_then = self._before if self._before[0] > -inf else self._last
        return now - at, started - started_then, refused - refused_then

    def is_shut(self, now: float, started: int, refused: int) -> bool:
        """Whether the server takes next to nothing; False while nothing was started."""
        _, started, refused = self.since(now, started, refused)
        return started > 0 and refused >= _SHUT * started
