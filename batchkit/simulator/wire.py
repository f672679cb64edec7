"""OpenAI's spelling, seen from the provider: a chat request read, a completion, an error, their headers written.

Field names and messages follow the answers of OpenAI's own API, so that what a client makes of them is rehearsed too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batchkit.simulator.behaviour import Choice
from batchkit.simulator.limits import Refusal, Standing

__all__ = [
    "ChatRequest",
    "InvalidRequest",
    "completion",
    "error",
    "go_duration",
    "model_list",
    "portkey_headers",
    "rate_limit_headers",
    "read_request",
    "retry_headers",
]

_DATED = {
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
}
"""An alias is answered by the model it stands for, under that model's name."""

_UNNAMED_MODEL = "gpt-4o-mini"
"""Who answers a request without a model, as a gateway does whose config names one."""

_MOST_CHOICES = 128

_PROMPT_DETAILS = {"cached_tokens": 0, "audio_tokens": 0}
_COMPLETION_DETAILS = {
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "accepted_prediction_tokens": 0,
    "rejected_prediction_tokens": 0,
}

_PORTKEY_ECHOES = (
    "x-portkey-provider",
    "x-portkey-trace-id",
    "x-portkey-span-id",
    "x-portkey-parent-span-id",
    "x-portkey-span-name",
)


class InvalidRequest(Exception):
    """A body that is no chat request. `param` names the field that is wrong, None is all of it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a chat request asks for. `model` is the name to answer under; `max_tokens` None is no limit."""

    body: Mapping[str, Any]
    model: str
    max_tokens: int | None
    choices: int


def read_request(body: bytes) -> ChatRequest:
    """Read a chat request; raises `InvalidRequest` for what OpenAI answers with status 400."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as cause:
        raise InvalidRequest(f"We could not parse the JSON body of your request: {cause}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The JSON body of your request is not an object.")
    messages = fields.get("messages")
    if messages is None:
        raise InvalidRequest("Missing required parameter: 'messages'.", "messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("Invalid 'messages': expected an array with at least one message.", "messages")
    if not all(isinstance(message, dict) for message in messages):
        raise InvalidRequest("Invalid 'messages': expected an array of objects.", "messages")
    if fields.get("stream"):
        raise InvalidRequest("The simulator does not stream: leave 'stream' out.", "stream")
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("Invalid type for 'model': expected a string.", "model")
    limits = [_positive(fields, "max_tokens"), _positive(fields, "max_completion_tokens")]
    choices = _positive(fields, "n") or 1
    if choices > _MOST_CHOICES:
        raise InvalidRequest(f"Invalid 'n': expected a value <= {_MOST_CHOICES}, but got {choices}.", "n")
    return ChatRequest(fields, _answering_model(model), min(filter(None, limits), default=None), choices)


def _positive(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"Invalid '{name}': expected an integer of at least 1.", name)
    return value


def _answering_model(model: str | None) -> str:
    name = model or _UNNAMED_MODEL
    if name.startswith("@"):  # Portkey's @slug/model
        name = name.partition("/")[2] or name
    return _DATED.get(name, name)


def completion(
    *, identifier: str, created: int, model: str, prompt_tokens: int, choices: Iterable[Choice]
) -> bytes:
    """A chat completion object. `created` is Unix time in seconds."""
    drawn = tuple(choices)
    completion_tokens = sum(choice.tokens for choice in drawn)
    return orjson.dumps(
        {
            "id": f"chatcmpl-{identifier}",
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(drawn)
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
                "prompt_tokens_details": _PROMPT_DETAILS,
                "completion_tokens_details": _COMPLETION_DETAILS,
            },
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }
    )


def error(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """An error object; `kind` is its `type`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def model_list() -> bytes:
    """The models with a name of their own; any other name is answered too."""
    names = sorted({*_DATED, *_DATED.values()})
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in names]
    return orjson.dumps({"object": "list", "data": models})


def retry_headers(refusal: Refusal) -> dict[str, str]:
    """When to come again; nothing where that is never or not told."""
    if refusal.retry_after_s is None:
        return {}
    return {
        "retry-after": str(math.ceil(refusal.retry_after_s)),
        "retry-after-ms": str(math.ceil(refusal.retry_after_s * 1_000)),
    }


def rate_limit_headers(standings: Iterable[Standing]) -> dict[str, str]:
    """The `x-ratelimit-*` family."""
    headers = {}
    for standing in standings:
        headers[f"x-ratelimit-limit-{standing.limit}"] = str(standing.per_minute)
        headers[f"x-ratelimit-remaining-{standing.limit}"] = str(standing.remaining)
        headers[f"x-ratelimit-reset-{standing.limit}"] = go_duration(standing.reset_s)
    return headers


def portkey_headers(asked: Mapping[str, str]) -> dict[str, str]:
    """What Portkey answers to who speaks to it: the ids echoed, the provider named. Nothing to anyone else.

    A trace id that was not sent comes back empty, as from Portkey's own gateway.
    """
    if "\nx-portkey-" not in "\n".join(("", *asked)).lower():
        return {}
    headers = {"x-portkey-provider": "openai", "x-portkey-trace-id": ""}
    for name in _PORTKEY_ECHOES:
        value = asked.get(name)
        if value is not None:
            headers[name] = value.encode("utf-8", "replace").decode()  # what was no UTF-8 cannot be sent back
    return headers


def go_duration(seconds: float) -> str:
    """A duration as Go writes it and OpenAI's headers with it: `6m0s`, `1.5s`, `20ms`. Rounded up to whole ms."""
    milliseconds = math.ceil(seconds * 1_000 - 1e-6)
    if milliseconds < 1_000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, fraction = divmod(rest, 1_000)
    spelled = f"{whole}.{fraction:03d}".rstrip("0").rstrip(".") if fraction else str(whole)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{spelled}s"
