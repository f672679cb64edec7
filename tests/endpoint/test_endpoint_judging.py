"""Which answers' headers are read for the limits they announce: every refusal's, and of the others some."""

from __future__ import annotations

import orjson
import pytest

from batchkit.endpoint import judging
from batchkit.endpoint.judging import Head, Judge
from batchkit.formats.headers import endpoint_address
from batchkit.records import Announced, AnnouncedLimit, Failure, FailureKind, Reply

GOOD = orjson.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})
REFUSED = b'{"error": {"code": "rate_limit_exceeded"}}'
TELLING = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
}
TOLD = Announced(AnnouncedLimit(500, 499, 0.12))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(judging, "time", clock)
    return clock


@pytest.fixture
def judge():
    return Judge(
        endpoint_address("http://h/v1", version="0", timeout=10, openai_api_key="sk-canary-canary"), "h", 10
    )


def head(status=200, **more):
    headers = TELLING | more
    return Head(status, headers, "\n".join(headers.values()).encode())


def test_the_first_answers_are_all_read_and_then_twenty_a_second(judge, clock):
    assert [judge.whole(head(), GOOD).announced for _ in range(32)] == [TOLD] * 32
    read = 0
    for _ in range(1000):
        clock.now += 0.001
        read += judge.whole(head(), GOOD).announced is not None
    assert 18 <= read <= 20


def test_a_clock_that_is_set_back_stops_nothing(judge, clock):
    for _ in range(40):
        judge.whole(head(), GOOD)
    clock.now -= 3600
    assert judge.whole(head(), GOOD).announced == TOLD


def test_every_refusal_is_read(judge, clock):
    for _ in range(40):
        judge.whole(head(), GOOD)
    for _ in range(40):
        refused = judge.whole(head(429), REFUSED)
        assert isinstance(refused, Failure)
        assert refused.kind is FailureKind.RATE_LIMITED
        assert refused.announced == TOLD
    assert clock.now == 1000.0


def test_what_a_cache_answers_tells_nothing_of_the_provider(judge):
    answer = judge.whole(head(**{"x-portkey-cache-status": "HIT"}), GOOD)
    assert isinstance(answer, Reply)
    assert answer.from_cache
    assert answer.announced is None


def test_an_answer_without_such_headers_is_as_it_was(judge):
    assert judge.whole(Head(200, {}, b""), GOOD) == Reply(200, "", GOOD, finish_reason="stop")
