"""What is answered to a body, how late, and with which fault: a function of seed and body, nothing else.

So a run can be repeated and compared, whatever order its requests arrive in. Answers are sentences whose every word is
one token, the space before it included: any prefix of such a text has as many tokens as it has words and full stops,
so the count is known without counting, for an answer cut at its limit too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

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

_TOKENS = tuple((*(f" {word}" for word in sentence[:-1].split(" ")), ".") for sentence in SENTENCES)


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
        self._output = (math.log(settings.output_tokens), settings.output_sigma)
        self._first_token = (settings.first_token_s, settings.first_token_sigma)
        self._speed = (math.log(settings.tokens_per_s), settings.tokens_per_s_sigma)
        self._faults = [(kind, settings.faults[kind]) for kind in FaultKind if settings.faults.get(kind)]

    def identify(self, body: bytes) -> bytes:
        """What stands for a body under this seed: 16 bytes."""
        return blake2b(body, digest_size=16, key=self._key).digest()

    def plan(self, identity: bytes, *, max_tokens: int | None = None, choices: int = 1) -> Plan:
        """The plan for the body of that `identity`, which asks for so many `choices` of at most `max_tokens`."""
        random = Random(int.from_bytes(identity, "big"))
        fault = self._fault(random.random())
        median, sigma = self._first_token
        first_token_s = median * random.lognormvariate(0, sigma)
        tokens_per_s = random.lognormvariate(*self._speed)
        drawn = tuple(self._choose(random, max_tokens) for _ in range(choices))
        slowest = max(choice.tokens for choice in drawn)
        return Plan(drawn, first_token_s, first_token_s + slowest / tokens_per_s, fault)

    def _fault(self, drawn: float) -> FaultKind | None:
        for kind, share in self._faults:
            drawn -= share
            if drawn < 0:
                return kind
        return None

    def _choose(self, random: Random, max_tokens: int | None) -> Choice:
        wanted = min(LONGEST_ANSWER, max(1, round(random.lognormvariate(*self._output))))
        tokens: list[str] = []
        while len(tokens) < wanted:
            tokens += _TOKENS[int(random.random() * len(_TOKENS))]
        del tokens[wanted:]
        if wanted > 1 and tokens[-1] != ".":
            # An answer that ends by itself ends with one full stop: two in a row would be another token.
            if tokens[-2] == ".":
                tokens.pop()
            else:
                tokens[-1] = "."
        finish_reason = "stop"
        if max_tokens is not None and len(tokens) > max_tokens:
            del tokens[max_tokens:]
            finish_reason = "length"
        return Choice("".join(tokens)[1:], len(tokens), finish_reason)
