"""How fast requests may start: known limits kept, hidden ones found.

A limit of requests or tokens a minute is a rate, so the rate is what is controlled; concurrency only guards memory and
sockets. `rules.budget` keeps a limit that is known.

Until a server refuses, only `--rpm` and `--tpm` hold. A refusal sets the rate a little below what was taken lately; while
refusals stay away and it is the pacer that holds work back, the rate grows again, by 2 % a second at first. What was taken
is told by the starts that were not refused, not by the answers: a refusal comes at once, an answer seconds later.

The clock is an argument in seconds, so an hour of pacing is tested in a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchkit.records import Request, Usage
from batchkit.rules.budget import Budget, Reservation

__all__ = ["Pacer", "Reservation", "TokenForecast"]

_WINDOW_S = 3.0
"""Over how long the rate that was taken is measured."""
_CLEAN_S = 2.0
_GROWTH_PER_S = 0.02
_BACK_OFF = 0.9
_PAUSE_S = 0.25
_SHUT = 0.9
"""Above this share of refusals a server takes nothing, and is left alone for as long as it asks."""
_LOWEST_PER_S = 0.02


_LEARNED = 20
_REMEMBERED = 200
_GUESSED_COMPLETION = 1024


@dataclass(slots=True)
class TokenForecast:
    """How many tokens a request will take, learned from those that were answered lately.

    Prompts are forecast from the bytes of the body, completions from their mean and the request's own limit. Before
    twenty answers the guesses are on the high side: a quarter of the bytes is typical, a third is reserved. Later ones are
    averages over some two hundred answers, since a file may be sorted by length.
    """

    prompt_tokens_per_byte: float = 0.0
    completion_tokens: float = 0.0
    answers: int = 0

    def learn(self, body_bytes: int, usage: Usage) -> None:
        """Take in what an answered body of `body_bytes` really took."""
        self.answers += 1
        share = 1.0 / min(self.answers, _REMEMBERED)
        self.prompt_tokens_per_byte += share * (
            usage.prompt_tokens / body_bytes - self.prompt_tokens_per_byte
        )
        self.completion_tokens += share * (usage.completion_tokens - self.completion_tokens)

    def tokens(self, request: Request) -> float:
        """Prompt and completion tokens to reserve for `request`."""
        size = len(request.body)
        if self.answers >= _LEARNED:
            prompt, completion = size * self.prompt_tokens_per_byte, self.completion_tokens
        else:
            prompt, completion = size / 3, float(request.max_tokens or _GUESSED_COMPLETION)
        return prompt + (min(completion, request.max_tokens) if request.max_tokens else completion)


class _Recent:
    """How much happened in the last three seconds, in slots of a quarter second: constant memory at any rate."""

    __slots__ = ("_counts", "_slot")

    _SLOTS_PER_S = 4

    def __init__(self) -> None:
        self._counts = [0] * int(_WINDOW_S * self._SLOTS_PER_S)
        self._slot = 0

    def add(self, now: float) -> None:
        self._advance(now)
        self._counts[self._slot % len(self._counts)] += 1

    def total(self, now: float) -> int:
        self._advance(now)
        return sum(self._counts)

    def _advance(self, now: float) -> None:
        slot = int(now * self._SLOTS_PER_S)
        for passed in range(max(self._slot + 1, slot - len(self._counts) + 1), slot + 1):
            self._counts[passed % len(self._counts)] = 0
        self._slot = max(self._slot, slot)


class Pacer:
    """The pace of one endpoint. `rpm` and `tpm` are ceilings a minute; None leaves them to be found.

    Call `reserve` before an attempt, and `accepted` or `refused` when its answer is there.
    """

    def __init__(self, rpm: float | None = None, tpm: float | None = None) -> None:
        self._requests = Budget(rpm, exact=True)
        self._tokens = Budget(tpm)
        self._ceiling = self._requests.per_s
        self._began_at: float | None = None
        self._paused_until = 0.0
        self._started = _Recent()
        self._refused = _Recent()
        self._lowered_at = float("-inf")
        self._lowered_from: float | None = None
        self._held_back_at = float("-inf")
        self._grown_at = 0.0
        self._found = False

    @property
    def per_s(self) -> float | None:
        """Requests a second that may start now; None while no limit is known or found."""
        return self._requests.per_s

    @property
    def found(self) -> bool:
        """Whether the rate in force was found by a refusal rather than given."""
        return self._found

    @property
    def counts_tokens(self) -> bool:
        """Whether a token limit is in force, so that a forecast is worth making."""
        return self._tokens.per_s is not None

    def paused_for(self, now: float) -> float:
        """Seconds until a pause that the server asked for is over; 0.0 when there is none."""
        return max(0.0, self._paused_until - now)

    def reserve(self, now: float, tokens: float = 0.0) -> float:
        """0.0 when a request of so many `tokens` may start, and is then counted; else the seconds until asking again.

        Who was let start tells of it, as a `Reservation` of this moment, when its answer is there.
        """
        if self._began_at is None:
            self._began_at = now
        if self._found:
            self._grow(now)
        wait = max(self._paused_until - now, self._requests.wait(now, 1.0), self._tokens.wait(now, tokens))
        if wait > 0.0:
            self._held_back_at = now
            return wait
        self._started.add(now)
        self._requests.spend(now, 1.0)
        self._tokens.reserve(now, tokens)
        return 0.0

    def accepted(self, now: float, reserved: Reservation, actual: float | None = None) -> None:
        """The server took a request; settle the tokens `reserved` with the `actual` ones where they are known."""
        self._tokens.settle(now, reserved.at, reserved.tokens, actual)

    def refused(self, now: float, hint: float | None, reserved: Reservation) -> None:
        """The server refused a request for its rate, asking for a wait of `hint` seconds, or of nothing in particular.

        The refused request waits out its own hint; everyone waits a quarter of a second, or the whole hint while nearly all
        that started in the last seconds was refused.
        """
        self._tokens.settle(now, reserved.at, reserved.tokens, 0.0, usual=False)
        self._refused.add(now)
        started, refused = self._started.total(now), self._refused.total(now)
        shut = 0.0 < _SHUT * started <= refused
        self._paused_until = max(self._paused_until, now + (hint if shut and hint is not None else _PAUSE_S))
        if not started:
            # It was started too long ago to tell of the present rate.
            return
        current = self._requests.per_s
        if now - self._lowered_at >= 1.0:
            self._lowered_at = now
            self._lowered_from = current
        self._grown_at = now
        # The refusals of one second are of one kind: they make the estimate of that second better, not the rate lower
        # with each of them. Where nothing was taken the limit stays unknown, hence never below the half at once, but for
        # the first time, when there is no rate to halve.
        began_at = now if self._began_at is None else self._began_at
        window = max(0.5, min(_WINDOW_S, now - began_at))
        taken = _BACK_OFF * (started - refused) / window
        before = self._lowered_from
        if before is not None:
            taken = max(before / 2, min(before * _BACK_OFF, taken))
        elif taken <= 0.0:
            taken = started / window / 2 if current is None else current
        self._requests.change(now, max(_LOWEST_PER_S, taken))
        self._found = True

    def _grow(self, now: float) -> None:
        rate = self._requests.per_s
        if rate is None or now - self._grown_at < 1.0:
            return
        # A pause is not clean time: nothing could be refused in it.
        clean = now - max(self._lowered_at, self._paused_until)
        if clean >= _CLEAN_S and now - self._held_back_at <= 1.0:
            # Doubled every five clean seconds, so that a rate far below the limit does not stay there for minutes.
            growth = min(0.5, _GROWTH_PER_S * 2.0 ** ((clean - _CLEAN_S) / 5.0))
            grown = rate * (1.0 + growth)
            self._requests.change(now, grown if self._ceiling is None else min(grown, self._ceiling))
        self._grown_at = now
