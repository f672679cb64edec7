"""What an answer's headers say of the provider's limits, in the spellings that there are.

- OpenAI: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; a reset is a duration as Go writes it (`12ms`, `6m0s`) until
  all is there again (https://platform.openai.com/docs/guides/rate-limits).
- Groq: the same, but requests are counted by the day and tokens by the minute (https://console.groq.com/docs/rate-limits).
- Azure: the same with resets in plain seconds, often without limits; -1 and 0 stand for what it does not know
  (https://learn.microsoft.com/azure/ai-services/openai/how-to/quota, https://github.com/openai/openai-dotnet/issues/838).
- Anthropic: `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`, the tokens those of prompts and answers together and
  rounded to thousands; a reset is a moment in RFC 3339 (https://docs.anthropic.com/en/api/rate-limits).
- Cerebras and Mistral name the window: `x-ratelimit-limit-tokens-minute`, Cerebras `-requests-day`, Mistral `-req-minute`
  (https://inference-docs.cerebras.ai/support/rate-limits, https://github.com/mistralai/client-ts/issues/169).
- Together, OpenRouter and many gateways: `x-ratelimit-{limit,remaining,reset}` are requests; a reset may be Unix time, in seconds or
  in milliseconds (https://docs.together.ai/docs/rate-limits, https://openrouter.ai/docs/api-reference/limits).
- The IETF's draft: `RateLimit-Policy: "default";q=100;w=60`, or `100;w=60` as it was before
  (https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers).

Fireworks' limits on prompts and on answers apart (`x-ratelimit-limit-tokens-prompt`) are of no use to who paces both together. A
gateway may join a header that came twice (`500, 500`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from batchkit.records import Announced, AnnouncedLimit

__all__ = ["read_announced"]

_MINUTE_S, _DAY_S = 60.0, 86_400.0
_HIGHEST = 1e9
"""What is as high as that means that there is no limit."""
_LONGEST_S = 31 * _DAY_S
_CHARS = 64
_UNIX_S, _UNIX_MS = 1e9, 1e12


class _Spelling(NamedTuple):
    limit: str
    remaining: str
    reset: str
    window_s: float | None = None


def _openai(unit: str, window_s: float | None = None) -> _Spelling:
    return _Spelling(
        f"x-ratelimit-limit{unit}", f"x-ratelimit-remaining{unit}", f"x-ratelimit-reset{unit}", window_s
    )


def _anthropic(unit: str) -> _Spelling:
    start = f"anthropic-ratelimit-{unit}"
    return _Spelling(f"{start}-limit", f"{start}-remaining", f"{start}-reset")


_REQUESTS = (
    _openai("-requests"),
    _anthropic("requests"),
    _openai("-req-minute", _MINUTE_S),
    _openai("-requests-minute", _MINUTE_S),
    _openai("-requests-day", _DAY_S),
    _openai(""),
)
_TOKENS = (_openai("-tokens"), _anthropic("tokens"), _openai("-tokens-minute", _MINUTE_S))


def read_announced(headers: Mapping[str, str], now: float) -> Announced | None:
    """The limits that `headers`, looked up by lower-case names, tell of; None where they tell of none that makes sense.

    `now` is Unix time in seconds, for moments where the answer has no `Date` of its own.
    """
    requests = _first(headers, _REQUESTS, now) or _policy(headers)
    tokens = _first(headers, _TOKENS, now)
    return None if requests is None and tokens is None else Announced(requests, tokens)


def _first(headers: Mapping[str, str], spellings: tuple[_Spelling, ...], now: float) -> AnnouncedLimit | None:
    for names in spellings:
        said = headers.get(names.limit)
        if said is None:
            continue
        limit = _count(said)
        if limit is None or not 1.0 <= limit < _HIGHEST:
            return None
        remaining = _count(headers.get(names.remaining, ""))
        if remaining is not None and remaining > limit:
            return None
        reset_s, rounded = _reset(headers, names.reset, now)
        return AnnouncedLimit(limit, remaining, reset_s, names.window_s, rounded)
    return None


_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,20})?")
_GO_DURATION = re.compile(
    r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6}(?:\.[0-9]{1,12})?)s)?(?:([0-9]{1,9}(?:\.[0-9]{1,12})?)ms)?"
)
_POLICY = re.compile(r'(?:"[^"]*";q=)?([0-9]{1,9});w=([0-9]{1,7})')


def _value(said: str) -> str:
    """The first of several, without the blanks."""
    return said[:_CHARS].partition(",")[0].strip()


def _count(said: str) -> float | None:
    value = _value(said)
    return float(value) if _NUMBER.fullmatch(value) else None


def _reset(headers: Mapping[str, str], name: str, now: float) -> tuple[float | None, bool]:
    """Seconds, however they are told, and whether they are rounded; None for what is past, or too far away to be meant."""
    value = _value(headers.get(name, ""))
    if not value:
        return None, False
    rounded = True
    if _NUMBER.fullmatch(value):
        rounded = "." not in value
        seconds = float(value)
        if seconds >= _UNIX_S:
            seconds = (seconds / 1000.0 if seconds >= _UNIX_MS else seconds) - round(now)
    elif duration := _GO_DURATION.fullmatch(value):
        hours, minutes, rest, milliseconds = (float(part or 0.0) for part in duration.groups())
        rounded = False
        seconds = 3600.0 * hours + 60.0 * minutes + rest + milliseconds / 1000.0
    else:
        moment = _moment(value)
        if moment is None:
            return None, False
        seconds = moment - _date(headers, now)
    return (seconds, rounded) if 0.0 <= seconds <= _LONGEST_S else (None, False)


def _moment(value: str) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def _date(headers: Mapping[str, str], now: float) -> float:
    """When the answer was given, in whole seconds: by the clock that its moments are told by, if it shows."""
    try:
        return parsedate_to_datetime(headers["date"][:_CHARS]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError, IndexError):
        return float(round(now))


def _policy(headers: Mapping[str, str]) -> AnnouncedLimit | None:
    """The IETF's policy of so many requests in so many seconds, where there is but one, and nothing else is counted."""
    said = headers.get("ratelimit-policy")
    if said is None:
        return None
    policies = {each.strip() for each in said[: 4 * _CHARS].split(",")}
    found = _POLICY.fullmatch(policies.pop())
    if found is None or policies:
        return None
    limit, window_s = float(found[1]), float(found[2])
    if not (1.0 <= limit < _HIGHEST and window_s):
        return None
    return AnnouncedLimit(limit, _count(headers.get("ratelimit-remaining", "")), None, window_s)
