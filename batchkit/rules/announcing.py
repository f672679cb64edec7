"""What to believe of the limits that answers announce.

A limit is told without the time that it is for: OpenAI's requests are by the minute and Groq's by the day, under one name. Where the
bucket fills evenly the other figures tell: what is missing in it takes (limit - remaining) / limit of that time to come back, and
that is the reset. Where all comes back at once, at the end of a window, no reset is longer than the window. A provider may also
keep a minute's limit by the second: then the bucket holds a second's worth of it.

One answer proves nothing. Several have to agree, about a limit that does not change to and fro as it does where a gateway spreads
requests over several keys; and then it is still a belief: `rules.believing` puts it in force, and
what is refused or taken tells more.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from batchkit.records import Announced, AnnouncedLimit

__all__ = ["MINUTE_S", "Announcements", "Told"]

MINUTE_S = 60.0
"""The window in seconds that limits are told for here, whatever window a provider tells them for."""
_WINDOWS_S = (MINUTE_S, 3600.0, 86_400.0)
"""The windows in seconds that providers have: a minute, an hour, a day. Only the first is a pace; the others would let a day's worth
begin at once, or hold a job to an hour's average that nobody asks for."""
_AGREEING = 3
"""So many answers, one after the other, have to agree on a window. With fewer one odd reset is believed, with more a limit is run into
before it is."""
_RETURNS = 2
"""A limit that came back so often after another was announced is one of several."""
_LOW, _HIGH = 0.75, 1.33
"""Counts and resets are rounded, so the window that they come to is off by so much; the windows there are lie far apart."""
_WHOLE_S = 3.0
"""A reset in whole seconds is rounded too coarsely to be used below this."""
_BINDING = 0.9
"""Requests are counted instead of tokens, or these instead of those, where the others would allow less than this share."""
_SHORT_WINDOWS_S = 10.0
"""Windows of up to ten seconds are known; a longer reset is not of one of them."""


class Told(NamedTuple):
    """A believed limit: so many a minute, of which as many as `left` were left when that was said."""

    per_minute: float
    left: float


class Announcements:
    """What the answers of one model announced, and what of it is believed; `requests` and `tokens` are None where nothing is."""

    __slots__ = ("_requests", "_tokens", "changed", "requests", "tokens")

    def __init__(self) -> None:
        self._requests, self._tokens = _Limit(), _Limit()
        self.requests: Told | None = None
        self.tokens: Told | None = None
        self.changed = False
        """Whether a limit that was believed was another before what was heard last."""

    def hear(self, announced: Announced) -> bool:
        """Take in what an answer announced. Whether any of it is believed."""
        requests, tokens = self._requests.hear(announced.requests), self._tokens.hear(announced.tokens)
        self.changed = _is_other(self.requests, requests) or _is_other(self.tokens, tokens)
        self.requests, self.tokens = requests or self.requests, tokens or self.tokens
        return requests is not None or tokens is not None

    def left(self, tokens_each: float) -> float:
        """How many requests of so many tokens were left at last."""
        left = inf if self.requests is None else self.requests.left
        if self.tokens is not None and tokens_each:
            left = min(left, self.tokens.left / tokens_each)
        return left

    @property
    def left_share(self) -> float:
        """The share of a minute's limit that was left at last, of requests or tokens, whichever is less."""
        return min(told.left / told.per_minute for told in (self.requests, self.tokens) if told is not None)

    def binding(self, tokens_each: float, *, in_tokens: bool) -> tuple[float, bool]:
        """The limit a second that allows less, and whether it is the one on tokens; `in_tokens` is which of them binds so far."""
        requests, tokens = self.requests, self.tokens
        if tokens is None or (requests is not None and not tokens_each):
            return (inf if requests is None else requests.per_minute) / MINUTE_S, False
        if requests is None:
            return tokens.per_minute / MINUTE_S, True
        share = tokens.per_minute / tokens_each / requests.per_minute
        if share < (1.0 / _BINDING if in_tokens else _BINDING):
            return tokens.per_minute / MINUTE_S, True
        return requests.per_minute / MINUTE_S, False


def _is_other(before: Told | None, told: Told | None) -> bool:
    return before is not None and told is not None and before.per_minute != told.per_minute


class _Limit:
    """One of a provider's limits."""

    __slots__ = (
        "_agreeing",
        "_before",
        "_limit",
        "_longest_s",
        "_most_left",
        "_returns",
        "_window_s",
        "_within",
    )

    def __init__(self) -> None:
        self._limit = 0.0
        self._returns = 0
        self._forget(0.0)

    def _forget(self, limit: float) -> None:
        self._before, self._limit = self._limit, limit
        self._window_s: float | None = None
        self._agreeing = 0
        self._within = 0
        self._longest_s = 0.0
        self._most_left = 0.0

    def hear(self, said: AnnouncedLimit | None) -> Told | None:
        if said is None:
            return None
        if said.limit != self._limit:
            self._returns += said.limit == self._before
            self._forget(said.limit)
        window_s = said.window_s or self._window_of(said)
        if window_s is not None:
            if window_s != self._window_s and self._agreeing:
                self._agreeing -= 1
            else:
                self._window_s = window_s
                self._agreeing = min(_AGREEING, self._agreeing + 1)
        if (
            self._agreeing < _AGREEING
            or self._returns >= _RETURNS
            or self._window_s is None
            or self._window_s > MINUTE_S
        ):
            return None
        return Told(said.limit * MINUTE_S / self._window_s, said.remaining or 0.0)

    def _window_of(self, said: AnnouncedLimit) -> float | None:
        """The window that this one answer speaks for; None if it speaks for none."""
        limit, left, reset_s = said.limit, said.remaining, said.reset_s
        if left is None:
            return None
        self._most_left = max(self._most_left, left)
        if reset_s is None or left >= limit or reset_s <= 0.0:
            return None
        if said.rounded and reset_s < _WHOLE_S:
            return None
        comes_to = reset_s * limit / (limit - left)
        for window_s in _WINDOWS_S:
            if _LOW <= comes_to / window_s <= _HIGH:
                return window_s
        seconds_worth = max(1.0, limit / MINUTE_S)
        if left < seconds_worth >= self._most_left:
            comes_to = reset_s * limit / (seconds_worth - left)
            if _LOW <= comes_to / MINUTE_S <= _HIGH:
                return MINUTE_S
        return self._fixed_window(reset_s) if said.rounded else None

    def _fixed_window(self, reset_s: float) -> float | None:
        """A minute, where resets in whole seconds follow from nothing and never pass it."""
        self._longest_s = max(self._longest_s, reset_s)
        self._within += 1
        told = self._within >= _AGREEING and _SHORT_WINDOWS_S < self._longest_s <= MINUTE_S
        return MINUTE_S if told else None
