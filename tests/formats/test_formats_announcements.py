"""The headers of answers as providers really spelled them, and what no limit can be read from."""

import pytest
from hypothesis import given, strategies as st

from batchkit.formats.announcements import read_announced
from batchkit.records import Announced, AnnouncedLimit as Limit

NOW = 1_740_429_483.4
"""2025-02-24T20:38:03Z and a little."""

OPENAI = {  # https://community.openai.com/t/how-to-get-rate-limit-reset-time-for-response-api/1268905
    "x-ratelimit-limit-requests": "5000",
    "x-ratelimit-limit-tokens": "160000",
    "x-ratelimit-limit-tokens_usage_based": "160000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-remaining-tokens": "159976",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-reset-tokens": "9ms",
}
OPENAI_DOCS = {  # https://platform.openai.com/docs/guides/rate-limits
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}
GROQ = {  # https://console.groq.com/docs/rate-limits
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-requests": "14370",
    "x-ratelimit-remaining-tokens": "17997",
    "x-ratelimit-reset-requests": "2m59.56s",
    "x-ratelimit-reset-tokens": "7.66s",
}
AZURE_WITHOUT_LIMITS = {  # https://github.com/EvolvingPrograms/oaib/issues/11
    "x-ms-region": "North Central US",
    "x-ratelimit-remaining-requests": "79",
    "x-ratelimit-remaining-tokens": "61353",
}
AZURE_UNKNOWN = {  # https://github.com/openai/openai-dotnet/issues/838
    "x-ratelimit-limit-tokens": "-1",
    "x-ratelimit-remaining-tokens": "-1",
    "x-ratelimit-reset-tokens": "0",
}
AZURE = {  # as it spells resets there, and in https://github.com/openai/openai-python/issues/937
    "x-ratelimit-limit-tokens": "50000",
    "x-ratelimit-remaining-tokens": "47210",
    "x-ratelimit-reset-tokens": "55",
}
ANTHROPIC = {  # https://github.com/anthropics/anthropic-sdk-typescript/issues/357
    "anthropic-ratelimit-requests-limit": "5",
    "anthropic-ratelimit-requests-remaining": "0",
    "anthropic-ratelimit-requests-reset": "2024-03-26T20:00:00Z",
    "anthropic-ratelimit-tokens-limit": "25000",
    "anthropic-ratelimit-tokens-remaining": "16000",
    "anthropic-ratelimit-tokens-reset": "2024-03-26T20:00:00Z",
    "date": "Tue, 26 Mar 2024 19:59:59 GMT",
}
ANTHROPIC_PAST = {  # https://github.com/bespokelabsai/curator/issues/535
    "date": "Mon, 24 Feb 2025 20:38:03 GMT",
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2025-02-24T20:37:51Z",
    "anthropic-ratelimit-output-tokens-limit": "80000",
    "anthropic-ratelimit-output-tokens-remaining": "80000",
    "anthropic-ratelimit-output-tokens-reset": "2025-02-24T20:38:03Z",
}
MISTRAL = {  # https://github.com/mistralai/client-ts/issues/169
    "x-ratelimit-limit-tokens-minute": "5000000",
    "x-ratelimit-remaining-tokens-minute": "4999911",
    "x-ratelimit-tokens-query-cost": "52",
    "x-ratelimit-limit-req-minute": "720",
    "x-ratelimit-remaining-req-minute": "717",
}
CEREBRAS = {  # https://inference-docs.cerebras.ai/support/rate-limits
    "x-ratelimit-limit-requests-day": "14400",
    "x-ratelimit-limit-tokens-minute": "60000",
    "x-ratelimit-remaining-requests-day": "14390",
    "x-ratelimit-remaining-tokens-minute": "58298",
    "x-ratelimit-reset-requests-day": "33011.382867097855",
    "x-ratelimit-reset-tokens-minute": "11.382867097854614",
}
OPENROUTER = {  # https://openrouter.ai/docs/api-reference/limits, on a 429
    "x-ratelimit-limit": "50",
    "x-ratelimit-remaining": "0",
    "x-ratelimit-reset": "1740441600000",
}
FIREWORKS = {  # https://docs.fireworks.ai/serverless/rate-limits
    "x-ratelimit-limit-tokens-prompt": "3600000",
    "x-ratelimit-limit-tokens-generated": "36000",
}


@pytest.mark.parametrize(
    ("headers", "announced"),
    [
        (OPENAI, Announced(Limit(5000, 4999, 0.012), Limit(160_000, 159_976, 0.009))),
        (OPENAI_DOCS, Announced(Limit(60, 59, 1.0), Limit(150_000, 149_984, 360.0))),
        (GROQ, Announced(Limit(14_400, 14_370, 179.56), Limit(18_000, 17_997, 7.66))),
        (AZURE, Announced(None, Limit(50_000, 47_210, 55.0, rounded=True))),
        (
            ANTHROPIC,
            Announced(Limit(5, 0, 1.0, rounded=True), Limit(25_000, 16_000, 1.0, rounded=True)),
        ),
        (ANTHROPIC_PAST, Announced(Limit(4000, 3999))),
        (MISTRAL, Announced(Limit(720, 717, window_s=60.0), Limit(5_000_000, 4_999_911, window_s=60.0))),
        (
            CEREBRAS,
            Announced(
                Limit(14_400, 14_390, 33011.382867097855, 86_400.0),
                Limit(60_000, 58_298, 11.382867097854614, 60.0),
            ),
        ),
        (OPENROUTER, Announced(Limit(50, 0, 1_740_441_600 - 1_740_429_483, rounded=True))),
        ({"ratelimit-policy": '"default";q=100;w=60'}, Announced(Limit(100, window_s=60.0))),
        (
            {"ratelimit-policy": "300;w=5", "ratelimit-remaining": "219"},
            Announced(Limit(300, 219, window_s=5.0)),
        ),
    ],
)
def test_every_spelling_is_read(headers, announced):
    assert read_announced(headers, NOW) == announced


@pytest.mark.parametrize(
    "headers", [{}, AZURE_WITHOUT_LIMITS, AZURE_UNKNOWN, FIREWORKS, {"retry-after": "3"}]
)
def test_an_answer_without_a_limit_announces_none(headers):
    assert read_announced(headers, NOW) is None


@pytest.mark.parametrize("headers", [OPENAI, GROQ, MISTRAL, {"ratelimit-policy": "300;w=5"}])
def test_what_a_gateway_joined_is_read_once(headers):
    twice = {name: f"{value}, {value}" for name, value in headers.items()}
    assert read_announced(twice, NOW) == read_announced(headers, NOW)


@pytest.mark.parametrize(
    "limit",
    [
        "",
        "0",
        "-1",
        "nan",
        "inf",
        "1e6",
        "1_000",
        "\u0665\u0660\u0660",
        "0x10",
        "unlimited",
        "1000000000",
        "9" * 400,
        "4998",
    ],
)
def test_a_limit_that_is_none_or_less_than_what_is_left_of_it_is_not_announced(limit):
    assert read_announced(OPENAI | {"x-ratelimit-limit-requests": limit}, NOW) == Announced(
        None, Limit(160_000, 159_976, 0.009)
    )


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("20ms", 0.02),
        ("1m30.5s", 90.5),
        ("1h0m0s", 3600.0),
        ("1740429490", 7.0),
        ("2025-02-24T20:38:13.250Z", 10.25),
        ("2025-02-24T22:38:13+02:00", 10.0),
        ("2025-02-24T20:38:13", None),
        ("2024-02-24T20:38:13Z", None),
        ("2999-01-01T00:00:00Z", None),
        ("-5", None),
        ("soon", None),
        ("99999999h", None),
        ("", None),
    ],
)
def test_a_reset_is_seconds_a_duration_or_a_moment(reset, seconds):
    told = read_announced(OPENAI | {"x-ratelimit-reset-requests": reset}, NOW)
    assert told is not None
    assert told.requests is not None
    assert told.requests.reset_s == (None if seconds is None else pytest.approx(seconds))


def test_a_moment_is_told_by_the_clock_of_the_answer():
    """Ours may be wrong by hours."""
    told = read_announced(ANTHROPIC, NOW)
    assert told is not None
    assert told.requests is not None
    assert told.requests.reset_s == 1.0


@pytest.mark.parametrize(
    "policy", ["100;w=60, 1000;w=3600", '"a";q=5;qu="content-bytes";w=1', "100", "100;w=0"]
)
def test_a_policy_of_several_limits_or_of_other_things_is_not_heeded(policy):
    assert read_announced({"ratelimit-policy": policy}, NOW) is None


@given(
    st.dictionaries(
        st.sampled_from(sorted({*OPENAI, *ANTHROPIC, *MISTRAL, *CEREBRAS, *OPENROUTER, "ratelimit-policy"})),
        st.text(max_size=40) | st.from_regex(r"[0-9]{1,20}[smh]{0,2}", fullmatch=True),
    )
)
def test_whatever_headers_say_is_read_without_an_error_and_within_reason(headers):
    told = read_announced(headers, NOW)
    for limit in () if told is None else (told.requests, told.tokens):
        if limit is not None:
            assert 1 <= limit.limit < 1e9
            assert limit.remaining is None or limit.remaining >= 0
            assert limit.reset_s is None or 0 <= limit.reset_s <= 31 * 86_400
