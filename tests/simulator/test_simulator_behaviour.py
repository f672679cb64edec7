"""Answers follow from seed and body, and have exactly the tokens they are said to have."""

import statistics

import pytest
from hypothesis import given, settings, strategies as st

from batchkit.rules.tokens import count_text
from batchkit.simulator.behaviour import LONGEST_ANSWER, SENTENCES, Behaviour
from batchkit.simulator.settings import FaultKind, SimulatorSettings

ENCODINGS = ("o200k_base", "cl100k_base")


def behaviour(**options: object) -> Behaviour:
    return Behaviour(SimulatorSettings(**options))


def plans(rules: Behaviour, n: int = 400, **asked: int) -> list:
    return [rules.plan(rules.identify(b"body %d" % index), **asked) for index in range(n)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_word_is_one_token_with_the_space_before_it_and_at_the_start(encoding):
    words = {word for sentence in SENTENCES for word in sentence[:-1].split(" ")}
    assert {word for word in words if count_text(f" {word}", encoding) != 1} == set()
    openers = {sentence[:-1].split(" ")[0] for sentence in SENTENCES}
    assert {word for word in openers if count_text(word, encoding) != 1} == set()
    assert all(sentence.endswith(".") and "." not in sentence[:-1] for sentence in SENTENCES)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=20), st.one_of(st.none(), st.integers(1, 200)), st.sampled_from([1, 2, 3, 10, 60, 900])
)
def test_the_tokens_named_are_the_tokens_of_the_text(body, max_tokens, median):
    rules = behaviour(output_tokens=median)
    (choice,) = rules.plan(rules.identify(body), max_tokens=max_tokens).choices
    for encoding in ENCODINGS:
        assert count_text(choice.text, encoding) == choice.tokens
    if choice.finish_reason == "length":
        assert choice.tokens == max_tokens
    else:
        assert choice.finish_reason == "stop"
        assert max_tokens is None or choice.tokens <= max_tokens


def test_a_limit_cuts_the_answer_that_would_have_been_given():
    rules = behaviour()
    whole = rules.plan(rules.identify(b"a")).choices[0]
    cut = rules.plan(rules.identify(b"a"), max_tokens=whole.tokens - 1).choices[0]
    assert whole.finish_reason == "stop"
    assert cut.finish_reason == "length"
    assert whole.text.startswith(cut.text)
    assert rules.plan(rules.identify(b"a"), max_tokens=whole.tokens).choices[0] == whole


def test_the_plan_depends_on_seed_and_body_alone():
    assert plans(behaviour(seed=7)) == plans(behaviour(seed=7))
    assert plans(behaviour(seed=7)) != plans(behaviour(seed=8))
    rules = behaviour(seed=7)
    assert list(reversed(plans(rules))) == [
        rules.plan(rules.identify(b"body %d" % index)) for index in reversed(range(400))
    ]


def test_a_fault_changes_nothing_about_the_answer_that_follows_it():
    hit = plans(behaviour(faults={"500": 1.0}))
    assert {plan.fault for plan in hit} == {FaultKind.SERVER_ERROR}
    assert [plan.choices for plan in hit] == [plan.choices for plan in plans(behaviour())]


def test_faults_hit_their_shares_of_the_bodies():
    hit = [plan.fault for plan in plans(behaviour(faults={"cut": 0.1, "500": 0.2}), 4_000)]
    assert hit.count(FaultKind.CUT) == pytest.approx(400, rel=0.2)
    assert hit.count(FaultKind.SERVER_ERROR) == pytest.approx(800, rel=0.2)
    assert hit.count(None) + hit.count(FaultKind.CUT) + hit.count(FaultKind.SERVER_ERROR) == 4_000


def test_the_longest_answer_can_be_given_from_every_place():
    drawn = plans(behaviour(output_tokens=1e9, output_sigma=0), 200)
    assert {plan.completion_tokens for plan in drawn} <= {LONGEST_ANSWER, LONGEST_ANSWER - 1}
    assert len({plan.choices[0].text[:200] for plan in drawn}) > 150
    text = drawn[0].choices[0].text
    assert count_text(text) == drawn[0].completion_tokens


def test_bodies_that_are_alike_are_answered_differently():
    texts = [plan.choices[0].text for plan in plans(behaviour(), 2_000)]
    assert len(set(texts)) > 1_900


@pytest.mark.parametrize("sigma", [0, 5, 1_000])
def test_any_spread_can_be_lived_with(sigma):
    rules = behaviour(output_sigma=sigma, first_token_sigma=sigma, tokens_per_s_sigma=sigma)
    for plan in plans(rules):
        assert 1 <= plan.completion_tokens <= LONGEST_ANSWER
        assert plan.latency_s >= plan.first_token_s >= 0


def test_latencies_and_lengths_are_drawn_apart():
    drawn = plans(behaviour(), 2_000)
    lengths = [plan.completion_tokens for plan in drawn]
    waits = [plan.first_token_s for plan in drawn]
    assert abs(statistics.correlation(lengths, waits)) < 0.1


@pytest.mark.parametrize("median", [3, 60, 700])
def test_lengths_have_the_median_asked_for(median):
    lengths = [plan.completion_tokens for plan in plans(behaviour(output_tokens=median))]
    assert statistics.median(lengths) == pytest.approx(median, rel=0.15)
    assert max(lengths) > 1.5 * median


def test_latency_is_the_first_token_and_then_the_speed():
    drawn = plans(behaviour(first_token_s=0.4, tokens_per_s=50))
    assert statistics.median(plan.first_token_s for plan in drawn) == pytest.approx(0.4, rel=0.15)
    speeds = [plan.completion_tokens / (plan.latency_s - plan.first_token_s) for plan in drawn]
    assert statistics.median(speeds) == pytest.approx(50, rel=0.1)
    steady = plans(behaviour(first_token_s=0.4, first_token_sigma=0, tokens_per_s=50, tokens_per_s_sigma=0))
    assert all(plan.latency_s == pytest.approx(0.4 + plan.completion_tokens / 50) for plan in steady)


def test_several_choices_differ():
    (plan,) = plans(behaviour(), 1, choices=3)
    assert len({choice.text for choice in plan.choices}) == 3
    assert plan.completion_tokens == sum(choice.tokens for choice in plan.choices)
