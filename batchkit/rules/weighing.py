"""Which of the two is limited, requests or tokens.

The larger a request, the sooner a limit on tokens refuses it; a limit on requests knows no sizes. So requests are what is counted,
until those that were refused are clearly larger than the others. Where tokens are counted although requests are limited, the small
ones are refused, as they come faster, and it is requests again.
"""

from __future__ import annotations

__all__ = ["Unit"]

_USUAL, _TELLING = 0.05, 2.5
"""Sizes, from 0 to 1, by which what was refused is larger than the usual, are summed up, less the first for each, until they come to
the second. With a lower sum chance changes the unit to and fro; with a higher one the wrong one is kept for dozens of refusals more."""
_TELLING_BACK = 5.0
"""The sum that tells that it is requests after all: twice as much, since sizes are but forecast."""
_AVERAGED = 100.0
"""Starts over which sizes are averaged: a file may be sorted by length."""


class Unit:
    """What a start costs: one request, or its tokens once `in_tokens` is True. A request has `tokens_each` on average, 0.0 unknown."""

    __slots__ = ("_odd", "_size", "in_tokens", "tokens_each")

    def __init__(self) -> None:
        self.in_tokens = False
        self.tokens_each = 0.0
        self._size = 0.5
        self._odd = 0.0

    @property
    def cost(self) -> float:
        """Of the usual request."""
        return max(1.0, self.tokens_each) if self.in_tokens else 1.0

    def requests(self, per_s: float) -> float:
        """What comes to `per_s`, in requests."""
        return per_s / max(1.0, self.tokens_each) if self.in_tokens else per_s

    def started(self, tokens: float) -> None:
        """A request of so many tokens, which is not 0, was started."""
        self.tokens_each += (tokens - self.tokens_each) / (_AVERAGED if self.tokens_each else 1.0)
        self._size += (_size(tokens, self.tokens_each) - self._size) / _AVERAGED

    def refused(self, tokens: float) -> bool:
        """A request of so many tokens was refused. Whether that makes it plain that the other unit is limited."""
        if not tokens or not self.tokens_each:
            return False
        larger = _size(tokens, self.tokens_each) - self._size
        self._odd = max(0.0, self._odd - _USUAL + (-larger if self.in_tokens else larger))
        return self._odd >= (_TELLING_BACK if self.in_tokens else _TELLING)

    def change(self) -> float:
        """Count requests instead of tokens, or these instead of those. So many of the new unit are one of the old one."""
        each = max(1.0, self.tokens_each)
        factor = 1.0 / each if self.in_tokens else each
        self._odd = 0.0
        self.in_tokens = not self.in_tokens
        return factor


def _size(tokens: float, usual: float) -> float:
    """Of a request, from 0 to 1, and 0.5 where it is as large as usual."""
    return tokens / (tokens + usual)
