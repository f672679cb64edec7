"""The most that an attempt can cost: by what its body says, and refused where that has no bound."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from batchkit.records import Usage
from batchkit.rules.pricing import PriceList
from batchkit.rules.tokens import count_prompt
from batchkit.rules.worst_case import (
    IMAGE_TOKENS,
    PART_TOKENS,
    TOOLS_TOKENS,
    UnboundedCostError,
    WorstCases,
)

D = Decimal
PRICES = PriceList(at=1_763_820_000.0)
CASES = WorstCases(PRICES)
PROMPT, COMPLETION = D("0.15e-6"), D("0.60e-6")
"""What gpt-4o-mini costs for a token."""


def body(**fields: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Say yes."}],
        "max_tokens": 100,
        **fields,
    }


@pytest.mark.parametrize(
    ("fields", "prompt", "completion"),
    [
        ({}, 1000, 100),
        ({"max_completion_tokens": 30}, 1000, 100),
        ({"max_completion_tokens": 300}, 1000, 300),
        ({"max_tokens": None, "max_completion_tokens": 30}, 1000, 30),
        ({"n": 4}, 1000, 400),
        ({"n": 2, "best_of": 5}, 1000, 500),
        ({"n": 0}, 1000, 100),
        ({"max_tokens": None}, 1000, 16_384),
        ({"max_tokens": "20"}, 1000, 16_384),
        ({"max_tokens": True}, 1000, 16_384),
        ({"tools": [{"type": "function"}]}, 1000 + TOOLS_TOKENS, 100),
    ],
)
def test_a_prompt_of_as_many_tokens_as_bytes_and_all_answers_as_long_as_may_be(fields, prompt, completion):
    assert CASES.of(body(**fields), 1000) == prompt * PROMPT + completion * COMPLETION


def test_parts_whose_size_the_body_does_not_tell_have_an_allowance():
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]
    worst = CASES.of(body(messages=[{"role": "user", "content": parts}]), 500)
    assert worst == (500 + 2 * IMAGE_TOKENS + PART_TOKENS) * PROMPT + 100 * COMPLETION


def test_a_part_of_no_kind_at_all_is_one_that_we_do_not_know():
    parts = [{"type": ["text"]}, {"type": {}}, "text", None]
    worst = CASES.of(body(messages=[{"role": "user", "content": parts}, "text", None]), 500)
    assert worst == (500 + 4 * PART_TOKENS) * PROMPT + 100 * COMPLETION


def test_what_is_nested_deeper_than_can_be_measured_is_refused():
    value = 1
    for _ in range(100_000):  # later Pythons measure more than earlier ones
        value = [value]
    with pytest.raises(UnboundedCostError, match="nested too deep"):
        CASES.check(body(prediction=value))


def test_of_two_limits_one_that_is_no_number_bounds_nothing():
    assert CASES.of(body(max_tokens=5, max_completion_tokens="100000"), 1000) == CASES.of(
        body(max_tokens=None), 1000
    )
    assert CASES.of(body(n=5.0), 1000) == CASES.of(body(n=5), 1000)


def test_what_was_predicted_and_not_used_is_billed_on_top():
    predicted = CASES.of(body(prediction={"type": "content", "content": "x" * 500}), 1000)
    assert predicted >= CASES.of(body(), 1000) + 500 * COMPLETION


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "no-such-model"}, "'no-such-model', which has no known price"),
        ({"model": None}, "names no model"),
        ({"modalities": ["text", "audio"]}, "sound"),
        ({"audio": {"voice": "alloy"}}, "sound"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "sound"),
        ({"web_search_options": {}}, "web search"),
        ({"search_parameters": {"mode": "on"}}, "web search"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tool of the provider's own"),
        ({"service_tier": "priority"}, "service tier 'priority'"),
        ({"service_tier": ["priority"]}, "a service tier"),
        ({"n": "5"}, "n that is no whole number"),
        ({"n": 2.5}, "n that is no whole number"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "sound"),
    ],
)
def test_what_has_no_bound_is_refused_and_says_why(fields, why):
    for look in (CASES.check, lambda sent: CASES.of(sent, 1000)):
        with pytest.raises(UnboundedCostError, match=why):
            look(body(**fields))


def test_an_answer_whose_length_is_not_known_is_refused_unless_the_record_bounds_it():
    given = {"mine": {"prompt": D(1), "completion": D(2)}}
    cases = WorstCases(PriceList(at=0.0, given=given))
    with pytest.raises(UnboundedCostError, match="--set max_tokens=N"):
        cases.of(body(model="mine", max_tokens=None), 1000)
    assert cases.of(body(model="mine"), 1000) == D("0.0012")
    given["mine"]["max_output_tokens"] = D(7)
    assert WorstCases(PriceList(at=0.0, given=given)).of(body(model="mine", max_tokens=None), 1000) == D(
        "0.001014"
    )


def test_a_gateway_may_ask_several_times_and_put_another_model_into_the_body():
    thrice = WorstCases(PRICES, attempts=3)
    assert thrice.of(body(), 1000) == 3 * CASES.of(body(), 1000)
    assert thrice.share(thrice.of(body(), 1000), 2) == 2 * CASES.of(body(), 1000)
    assert thrice.share(thrice.of(body(), 1000), -1) == 2 * CASES.of(body(), 1000)
    dearer = WorstCases(PRICES, overrides=[{"model": "gpt-4o"}, {"max_tokens": 3}])
    assert dearer.of(body(), 1000) > CASES.of(body(model="gpt-4o"), 1000) > CASES.of(body(), 1000)
    unknown = WorstCases(PRICES, overrides=[{"model": "no-such-model"}])
    for look in (unknown.check, lambda sent: unknown.of(sent, 1000)):
        with pytest.raises(UnboundedCostError):
            look(body())


def test_an_answer_costs_what_its_own_model_does_and_one_without_a_price_is_not_known():
    usage = Usage(1000, 10, 1010)
    assert CASES.cost("gpt-4o-mini-2024-07-18", usage) == 1000 * PROMPT + 10 * COMPLETION
    assert CASES.cost("gpt-4o", usage) == D("0.0026")
    assert CASES.cost("no-such-model", usage) is None
    assert CASES.cost("", usage) is None
    assert CASES.cost("gpt-4o", Usage(0, 10, 10)) is None, "there is no answer to nothing"


@pytest.mark.parametrize(
    ("model", "usage", "more"),
    [
        # The thoughts stand in the total alone.
        ("gpt-4o-mini", Usage(1000, 10, 1510), 500 * COMPLETION),
        # The cache stands in the total alone: written at twice the price of a prompt, at most.
        ("claude-sonnet-4-5", Usage(1000, 10, 1510), 500 * D("6e-6")),
        ("gpt-4o-mini", Usage(1000, 10, 1010), D(0)),
        ("gpt-4o-mini", Usage(1000, 10, 7), D(0)),
        ("no-such-model", Usage(1000, 10, 1510), D(0)),
    ],
)
def test_tokens_in_the_total_alone_may_have_been_billed(model, usage, more):
    assert CASES.unlisted(model, usage) == more


@pytest.mark.parametrize(
    ("model", "usage", "sent", "more"),
    [
        ("gpt-4o-mini", Usage(2000, 1, 2001), b"{}", D(0)),
        ("claude-sonnet-4-6", Usage(2000, 1, 2001), b"{}", D(0)),
        (
            "claude-sonnet-4-6",
            Usage(2000, 1, 2001, cached_tokens=500),
            b'{"cache_control":1}',
            1500 * D("3e-6"),
        ),
        ("claude-sonnet-4-6", Usage(1000, 1, 1001), b'{"cache_control":1}', D(0)),
        ("gpt-6-cyber", Usage(2000, 1, 2001), b"{}", 2000 * D("5e-6")),
        ("no-such-model", Usage(2000, 1, 2001), b"{}", D(0)),
    ],
)
def test_a_prompt_that_a_provider_may_have_put_into_its_cache_may_have_cost_more(model, usage, sent, more):
    assert CASES.cache_writes(model, usage, sent) == more


def test_a_prompt_is_counted_out_where_the_count_is_the_billed_one():
    counted = CASES.counted(body())
    assert counted == count_prompt(body()).tokens * PROMPT + 100 * COMPLETION
    assert CASES.counted(body(model="o3")) is None
    assert WorstCases(PRICES, overrides=[{"max_tokens": 3}]).counted(body()) is None


@given(
    st.lists(st.tuples(st.sampled_from(["user", "system"]), st.text(max_size=200)), min_size=1, max_size=5)
)
def test_no_prompt_of_texts_has_more_tokens_than_its_body_has_bytes(messages):
    sent = body(messages=[{"role": role, "content": text} for role, text in messages])
    try:
        size = len(orjson.dumps(sent))
    except TypeError:  # half of a surrogate pair: no such body is sent
        return
    count = count_prompt(sent)
    assert count.exact
    assert count.tokens <= size
    counted = CASES.counted(sent)
    assert counted is not None
    assert counted <= CASES.of(sent, size)
