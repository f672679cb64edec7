"""What is answered to a body, how late, and with which fault: a function of seed and body, nothing else.

So a run can be repeated and compared, whatever order its requests arrive in. Answers are sentences whose every word is
one token, the space before it included: any prefix of such a text has as many tokens as it has words and full stops,
so the count is known without counting, for an answer cut at its limit too. All are read out of one book, written when
this module is imported: an answer is a place in it and a length, and costs no more for being long.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, chain, takewhile
from random import Random
from statistics import NormalDist
from struct import Struct

from batchkit.simulator.settings import FaultKind, SimulatorSettings

__all__ = ["SENTENCES", "Behaviour", "Choice", "Plan"]

LONGEST_ANSWER = 32_768
"""Tokens: the tail of a lognormal distribution has no end of its own."""

SENTENCES = (
    "The answer depends on the question and on the data behind it.",
    "Yes.",
    "There are three reasons for this result.",
    "First we look at the general case and then at the special one.",
    "A small change can have a large effect over time.",
    "Most people would agree with the first option.",
    "The second option is less common but still possible.",
    "In other words the model works as expected.",
    "This is true for every number in the list.",
    "For example the price of the product may change every day.",
    "It is important to check the source before you use it.",
    "The text describes a positive experience with the service.",
    "The customer was happy with the quality and the price.",
    "However the delivery took more time than expected.",
    "We can see that both values are equal.",
    "No further information is needed to answer this.",
    "The best way to learn is to try it and see what happens.",
    "Each step should be simple and easy to follow.",
    "The company was founded in the last century.",
    "Water moves from a high place to a low place.",
    "The program reads each line and writes the result.",
    "If the first attempt fails then try again after a short time.",
    "The law gives every person the right to a fair process.",
    "Please note that this is only a simulated answer.",
)
"""Plain words, each one token in every encoding of `rules.tokens`; a test holds them to it."""

_BOOK_SENTENCES = 8_192


def _write_book() -> tuple[str, array[int], array[int]]:
    """A text, where each of its tokens ends, and at which tokens an answer may begin: the longest has room behind it."""
    split = [(*(f" {word}" for word in sentence[:-1].split(" ")), ".") for sentence in SENTENCES]
    sentences = Random(0).choices(split, k=_BOOK_SENTENCES)
    tokens = list(chain.from_iterable(sentences))
    starts = accumulate(map(len, sentences[:-1]), initial=0)
    room = len(tokens) - LONGEST_ANSWER
    return (
        "".join(tokens),
        array("L", accumulate(map(len, tokens), initial=0)),
        array("L", takewhile(lambda start: start <= room, starts)),
    )


_BOOK, _ENDS, _STARTS = _write_book()

_DRAWS = Struct("<IHHHHxxxx")
"""What is drawn for a body, out of its identity: the fault, two latencies; the length and the place of an answer."""

_DRAWN_BITS = 16
_QUANTILE_BITS = 10
_UNUSED_BITS = _DRAWN_BITS - _QUANTILE_BITS
_NORMAL_QUANTILES = tuple(
    NormalDist().inv_cdf((number + 0.5) / 2**_QUANTILE_BITS) for number in range(2**_QUANTILE_BITS)
)


def _lognormal(median: float, sigma: float) -> list[float]:
    """That distribution as values that are equally likely, in order: to draw from them costs next to nothing."""
    # Beyond e to the 700 there is no float; sigmas are not bounded.
    powers = (max(-700, min(700, sigma * quantile)) for quantile in _NORMAL_QUANTILES)
    return [median * math.exp(power) for power in powers]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: its text, that text's tokens, and why it ends ("stop" or "length")."""

    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a body is treated. Times are seconds at the speed of life; `fault` is what the body suffers before."""

    choices: tuple[Choice, ...]
    first_token_s: float
    latency_s: float
    fault: FaultKind | None

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)


class Behaviour:
    """Plans answers as `settings` say."""

    def __init__(self, settings: SimulatorSettings) -> None:
        # blake2b takes a key of at most 64 bytes, and seeds of any size are to differ.
        self._key = blake2b(str(settings.seed).encode()).digest()
        lengths = _lognormal(settings.output_tokens, settings.output_sigma)
        self._lengths = [round(min(LONGEST_ANSWER, max(1, length))) for length in lengths]
        self._first_token_s = _lognormal(settings.first_token_s, settings.first_token_sigma)
        self._tokens_per_s = _lognormal(settings.tokens_per_s, settings.tokens_per_s_sigma)
        self._faults = [(kind, settings.faults[kind]) for kind in FaultKind if settings.faults.get(kind)]

    def identify(self, body: bytes) -> bytes:
        """What stands for a body under this seed: 16 bytes."""
        return blake2b(body, digest_size=16, key=self._key).digest()

    def plan(self, identity: bytes, *, max_tokens: int | None = None, choices: int = 1) -> Plan:
        """The plan for the body of that `identity`, which asks for so many `choices` of at most `max_tokens`."""
        hit, first, speed, length, place = _DRAWS.unpack(identity)
        given = [self._choose(length, place, max_tokens)]
        for number in range(1, choices):
            drawn = blake2b(identity, digest_size=_DRAWS.size, salt=b"%d" % number).digest()
            *_, length, place = _DRAWS.unpack(drawn)
            given.append(self._choose(length, place, max_tokens))
        slowest = max([choice.tokens for choice in given])
        first_token_s = self._first_token_s[first >> _UNUSED_BITS]
        latency_s = first_token_s + slowest / self._tokens_per_s[speed >> _UNUSED_BITS]
        return Plan(tuple(given), first_token_s, latency_s, self._fault(hit / 2**32))

    def _fault(self, drawn: float) -> FaultKind | None:
        for kind, share in self._faults:
            drawn -= share
            if drawn < 0:
                return kind
        return None

    def _choose(self, length: int, place: int, max_tokens: int | None) -> Choice:
        wanted = self._lengths[length >> _UNUSED_BITS]
        start = _STARTS[place * len(_STARTS) >> _DRAWN_BITS]
        begin = _ENDS[start] + 1  # past the space before its first word
        end, stop = start + wanted, ""
        if wanted > 1 and not _ends_sentence(end):
            # An answer that ends by itself ends with one full stop: two in a row would be another token.
            end -= 1
            stop = "" if _ends_sentence(end) else "."
        tokens = end - start + len(stop)
        if max_tokens is not None and tokens > max_tokens:
            return Choice(_BOOK[begin : _ENDS[start + max_tokens]], max_tokens, "length")
        return Choice(_BOOK[begin : _ENDS[end]] + stop, tokens, "stop")


def _ends_sentence(token: int) -> bool:
    """Whether the token before that place in the book is a full stop."""
    return _BOOK[_ENDS[token] - 1] == "."
