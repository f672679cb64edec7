"""How a rate that was found is kept at its limit, and tries now and then whether that has risen.

While nothing is refused the rate rises to the limit, stays there for long, and then leaves it, as CUBIC (RFC 9438) does but
flatter: limit * (1 + 0.02 * x^5), where x passes from -1 to 0 in three seconds at first, and in twice as many starts each time the
limit turns out to be what it was, up to ten seconds or 150 starts. So a limit of 50 a second costs one refusal in five hundred
starts, and one that rises is followed in half a minute.

A rate far below its limit, or without one to rise to, doubles each second once two were clean. Nothing rises while it is not the
rate that holds work back, as nothing is learned of a higher one then.
"""

from __future__ import annotations

__all__ = ["Curve"]

_BELOW = 0.02
"""The share of the limit that the curve begins below it, and by which it has left it when x is 1. With less a limit that was measured
a little too high refuses at once; with more is given away what the server would take."""
_POWER = 5
"""Of x; odd, so that it rises from below the limit to above it. CUBIC's is 3, with which more time is spent below and beyond."""
_NEARLY = 0.999
"""Of where the curve begins: a rate below this was lowered for other reasons, and doubles until it is there."""

_FIRST_STARTS, STARTS = 30.0, 150.0
"""The starts in which the limit is reached at first, and at most. So each refusal of a low limit is paid by as many answers as one of
a high limit; with fewer more are refused, with more a limit that rose is followed later."""
_SHORTEST_S, _STEADY_S, _LONGEST_S = 3.0, 10.0, 60.0
"""And the seconds: at least; at most where many start; and at most where few do, so that they are no starts without end."""
_FASTEST = 1.2
"""The most the rate grows in a second, as a factor, beyond a limit: with more a refusal comes too late to tell where that was."""
_SAME = 1.03
"""A limit that was measured below this multiple of the old one is the same, and tried more rarely from then on."""
_LARGEST_X = 10.0
"""The most that x comes to: long before, `_FASTEST` is what holds the rate."""
_FAR_BEYOND = 10.0
"""The multiple of a limit at which it was none, if nothing was refused all the way there: the next one is looked for from here. With
a larger one, a limit that was found in a bad hour is told for longer, and a single refusal leads back to near it."""
_CLEAN_S = 2.0
"""Seconds without a refusal after which a rate doubles; also, seconds since somebody was last held back by the rate, after
which it is not the rate that holds work back."""


class Curve:
    """The rate around a `limit`; None is a rate that was guessed from refusals, whose limit is not known yet.

    Both are what is counted, a second. All times are seconds on the pacer's clock.
    """

    __slots__ = ("_clean_since", "_starts", "limit")

    def __init__(self) -> None:
        self.limit: float | None = None
        self._starts = _FIRST_STARTS
        self._clean_since = 0.0

    def begin(self, now: float) -> None:
        """Begin anew at the lower end, as slowly as before."""
        self._clean_since = now

    def quicken(self) -> None:
        """Of a limit that is another it is not known how long it holds."""
        self._starts = _FIRST_STARTS

    def announced(self, limit: float) -> None:
        """The limit is known for good: try rarely whether it is another."""
        self.limit = limit
        self._starts = STARTS

    def met(self, limit: float) -> None:
        """The limit was met, and is this."""
        before, self.limit = self.limit, limit
        self._starts = 2.0 * self._starts if before is not None and limit < _SAME * before else _FIRST_STARTS

    @staticmethod
    def beginning(limit: float) -> float:
        """The rate with which the curve to a limit begins."""
        return (1.0 - _BELOW) * limit

    def grown(
        self,
        now: float,
        rate: float,
        cost: float,
        passed_s: float,
        *,
        paused_until: float,
        held_back_at: float,
        halved: bool,
        more_left: bool,
    ) -> float:
        """What `rate` comes to after so many seconds; at a usual `cost` of a start, and if nothing was refused meanwhile.

        `held_back_at` is when somebody last waited; `halved` says that the rate was lowered because most was refused, and `more_left`
        that the server says there is more.
        """
        if now - held_back_at > _CLEAN_S:
            self._clean_since += passed_s
            return rate
        limit = self.limit
        if limit is None or rate < self.beginning(limit) * _NEARLY:
            doubled_s = 1.0 if limit is not None or halved else max(1.0, cost / rate)
            if now - max(self._clean_since, paused_until) < _CLEAN_S * doubled_s:
                return rate
            grown: float = rate * 2.0 ** (min(1.0, passed_s) / doubled_s)
            if limit is not None and grown >= self.beginning(limit):
                grown = self.beginning(limit)
                self._clean_since = now
            return grown
        fastest: float = rate * _FASTEST ** min(1.0, passed_s)
        if more_left:
            return fastest
        x = min(_LARGEST_X, self._clean_for(now, limit, cost, paused_until) - 1.0)
        grown = min(limit * (1.0 + _BELOW * x**_POWER), fastest)
        if grown > _FAR_BEYOND * limit:
            self.limit, self._clean_since, self._starts = grown, now, _FIRST_STARTS
        return grown

    def _clean_for(self, now: float, limit: float, cost: float, paused_until: float) -> float:
        """For how long nothing was refused beyond the limit, where 1 is the time in which the limit is reached."""
        each_s = cost / limit
        most_s = min(_LONGEST_S, max(_STEADY_S, STARTS * each_s))
        return (now - max(self._clean_since, paused_until)) / min(
            most_s, max(_SHORTEST_S, self._starts * each_s)
        )
