"""How long an attempt is waited for, learned from its peers: the answers to attempts on the same model.

One that hangs is found by comparison. Its like are the answers that were as long as its own may become (`max_tokens`), since a
long answer takes long; lengths are told apart by powers of two. It is overdue after several times what 99 of 100 of the slowest
kind of its like took, and given up only where that cannot be the server's pace:

- Many more of its peers were answered since it began than are overdue. Where all wait, at a server that stands still or has
  become much slower, nobody is given up; and what was slow and is answered is learned at once.
- Those that were given up before were rightly so. Each is asked again, with the whole timeout; answered in less time than the
  first attempt had, it was right to give that up, and until then it is a doubt. There are no more doubts than ten and one for each
  that was right, so little is paid twice in vain.

Times are arguments, in seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

from batchkit.records import Usage

__all__ = ["LEAST_S", "Limit", "Patience"]

LEAST_S = 30.0
"""Nobody is given up before. Read from here at the time of use."""
_TIMES = 5.0
"""So many times as long as 99 of 100 took an attempt is waited for. Latencies that are spread as widely as any known (a lognormal
distribution with a sigma of 1) pass that once in twenty thousand answers."""
_ENOUGH = 100
"""Fewer answers tell too little."""
_RARE = 500
"""Of a length that fewer than one in so many have nobody knows how slow it is; what is so rare may be given up once."""
_REMEMBERED = 2000
"""What a server does changes by the hour."""
_NEWS = 0.05
"""What is slow is found anew when so many of those are new."""
_OUTNUMBERED = 4
"""So many peers were answered for each that is overdue."""
_DOUBTS = 10
"""Attempts given up that may be wrong before any turned out to be right: so many are paid twice in vain at most."""
_ANY_SIZE = 64
"""The power of two of an answer that may be of any length: longer than all there are."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An attempt that is under way for `seconds` is overdue: 99 of 100 of its like took `usual_s` at most."""

    seconds: float
    usual_s: float


class Patience:
    """What the answers of one model tell in one run."""

    __slots__ = (
        "_answers",
        "_doubts",
        "_known",
        "_known_at",
        "_limits",
        "_right",
        "_slow_s",
        "answered",
        "answering_s",
    )

    def __init__(self) -> None:
        self.answered = 0
        """All answers there were."""
        self.answering_s = 0.0
        """The seconds that they took, together."""
        # With seconds, usage and the most that the request allowed. They are sorted when somebody asks.
        self._answers: deque[tuple[float, Usage | None, int | None]] = deque(maxlen=_REMEMBERED)
        self._doubts = self._right = 0
        self._known: dict[int, list[float]] = {}
        self._known_at = 0
        self._limits: dict[int, Limit | None] = {}
        self._slow_s: dict[int, tuple[int, float | None]] = {}

    def learn(self, seconds: float, usage: Usage | None, most_tokens: int | None) -> None:
        """An answer came after `seconds` that took this; its request allowed `most_tokens`, None for any."""
        self.answered += 1
        self.answering_s += seconds
        self._answers.append((seconds, usage, most_tokens))

    def limit(self, most_tokens: int | None) -> Limit | None:
        """How long to wait for an answer of up to `most_tokens`; None while too little is known."""
        self._look()
        size = _size(None, most_tokens)
        if size not in self._limits:
            like = self._like(size)
            least = sum(map(len, like)) / _RARE
            usual_s = max((_quantile(took, 0.99) for took in like if len(took) >= least), default=0.0)
            self._limits[size] = Limit(max(LEAST_S, _TIMES * usual_s), usual_s) if like else None
        return self._limits[size]

    def slow_s(self, most_tokens: int | None) -> float | None:
        """In how many seconds 95 of 100 of the answers came that may be as long; None while too little is known.

        It is asked ten times a second for each attempt under way, and found anew once there are a twentieth more answers.
        """
        size = _size(None, most_tokens)
        answered, slow_s = self._slow_s.get(size, (0, None))
        if self.answered - answered > _NEWS * min(answered, _REMEMBERED):
            self._look()
            took = sorted(seconds for alike in self._like(size) for seconds in alike)
            slow_s = _quantile(took, 0.95) if took else None
            self._slow_s[size] = (self.answered, slow_s)
        return slow_s

    def gives_up(self, *, overdue: int, answered: int) -> bool:
        """Whether an attempt that is overdue is to be given up, and counts as a doubt from then on.

        So many attempts are `overdue`, this one included, and so many of its peers were `answered` since it began.
        """
        if answered < _OUTNUMBERED * overdue or self._doubts >= _DOUBTS + self._right:
            return False
        self._doubts += 1
        return True

    def was_right(self) -> None:
        """The request of an attempt that was given up was answered in less time than that had."""
        self._doubts -= 1
        self._right += 1

    def _look(self) -> None:
        """Sort the latest answers by length, unless there is none that was not seen yet."""
        if self._known_at == self.answered:
            return
        self._known_at = self.answered
        self._known, self._limits = {}, {}
        for seconds, usage, allowed in self._answers:
            tokens = None if usage is None else usage.completion_tokens
            self._known.setdefault(_size(tokens, allowed), []).append(seconds)
        for took in self._known.values():
            took.sort()

    def _like(self, most: int) -> list[list[float]]:
        """What those took, in order, that may be compared with one of up to that size, by their own; [] if they are too few."""
        like = [took for size, took in self._known.items() if size <= most]
        if sum(map(len, like)) < _ENOUGH:
            # Longer ones take longer, which is on the safe side.
            like = list(self._known.values())
        return like if sum(map(len, like)) >= _ENOUGH else []


def _size(tokens: int | None, most_tokens: int | None) -> int:
    """The power of two of an answer's length; one that is not known is as long as it may be."""
    if tokens is None or (most_tokens is not None and most_tokens < tokens):
        tokens = most_tokens
    return _ANY_SIZE if tokens is None else tokens.bit_length()


def _quantile(took: list[float], share: float) -> float:
    """What that share of values in order is not above."""
    return took[ceil(share * len(took)) - 1]
