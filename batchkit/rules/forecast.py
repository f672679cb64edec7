"""How many tokens a request will take, learned from those that were answered."""

from __future__ import annotations

from dataclasses import dataclass

from batchkit.records import Request, Usage

__all__ = ["TokenForecast"]

_LEARNED = 20
_REMEMBERED = 200
_GUESSED_COMPLETION = 1024


@dataclass(slots=True)
class TokenForecast:
    """What requests to one model take, learned from those that were answered lately, since anybody asks for tokens.

    Prompts are forecast from the bytes of the body, completions from their mean and the request's own limit. Before
    twenty answers the guesses are on the high side: a quarter of the bytes is typical, a third is reserved. Later ones are
    averages over some two hundred answers, since a file may be sorted by length.
    """

    prompt_tokens_per_byte: float = 0.0
    completion_tokens: float = 0.0
    answers: int = 0
    """Those that were learned from, up to as many as are remembered."""

    def learn(self, body_bytes: int, usage: Usage) -> None:
        """Take in what an answered body of `body_bytes` really took."""
        if self.answers < _REMEMBERED:
            self.answers += 1
        share = 1.0 / self.answers
        self.prompt_tokens_per_byte += share * (
            usage.prompt_tokens / body_bytes - self.prompt_tokens_per_byte
        )
        self.completion_tokens += share * (usage.completion_tokens - self.completion_tokens)

    def tokens(self, request: Request, prompt_tokens: int | None = None) -> float:
        """Prompt and completion tokens to reserve for `request`; `prompt_tokens` where they were counted."""
        size = len(request.body)
        if self.answers >= _LEARNED:
            prompt, completion = size * self.prompt_tokens_per_byte, self.completion_tokens
        else:
            prompt, completion = size / 3, float(request.max_tokens or _GUESSED_COMPLETION)
        if prompt_tokens is not None:
            prompt = prompt_tokens
        return prompt + (min(completion, request.max_tokens) if request.max_tokens else completion)
