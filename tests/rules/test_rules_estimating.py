"""What a job will take is a range that holds what is known, and says nothing of what is not."""

import json
import random
from decimal import Decimal
from math import inf
from statistics import NormalDist

import pytest
from hypothesis import given, strategies as st

from batchkit.records import Usage
from batchkit.rules.estimating import EXPECTED_TOKENS, Demand, Sample, forecast, seconds, t_quantile
from batchkit.rules.pricing import PriceList

AT = 1_794_800_000.0
OWN = {"mine": {"prompt": Decimal(1), "completion": Decimal(2), "max_output_tokens": Decimal(1000)}}
PRICES = PriceList(at=AT, given=OWN)


def demand_of(*requests):
    demand = Demand()
    for model, prompt_tokens, answers, max_tokens in requests:
        demand.add(model, prompt_tokens, exact=True, answers=answers, max_tokens=max_tokens)
    return demand


def test_a_bound_of_the_request_is_the_most_and_the_models_own_where_there_is_none():
    forecasts = forecast(demand_of(("mine", 100, 1, 50), ("mine", 100, 2, None)), PRICES)
    assert forecasts.total.completion_tokens.tokens == (3, 50 + 2 * EXPECTED_TOKENS, 50 + 2 * 1000)
    assert forecasts.total.prompt_tokens == 200
    assert forecasts.total.cost.low == Decimal("0.000206")
    assert forecasts.total.cost.high == Decimal("0.0043")
    assert forecasts.total == forecasts.models["mine"]


def test_a_model_that_can_say_little_is_not_expected_to_say_more():
    short = {"mine": {**OWN["mine"], "max_output_tokens": Decimal(100)}}
    forecasts = forecast(demand_of(("mine", 100, 1, None)), PriceList(at=AT, given=short))
    assert forecasts.total.completion_tokens.tokens == (1, 100, 100)


def test_nothing_is_said_of_what_no_one_bounds():
    open_ended = {"mine": {"prompt": Decimal(1), "completion": Decimal(2)}}
    forecasts = forecast(
        demand_of(("mine", 100, 1, None), ("gpt-4o", 5, 1, 5)), PriceList(at=AT, given=open_ended)
    )
    assert forecasts.total.unbounded_models == ("mine",)
    assert forecasts.total.completion_tokens.tokens == (2, EXPECTED_TOKENS + 5, None)
    assert forecasts.total.cost.high is None
    assert forecasts.total.cost.low is not None
    assert forecasts.models["gpt-4o"].completion_tokens.tokens == (1, 5, 5)


def test_a_model_without_a_price_is_named_and_never_free():
    forecasts = forecast(demand_of(("nobody-knows", 100, 1, 7), ("mine", 100, 1, 7), (None, 1, 1, 1)), PRICES)
    assert forecasts.total.unpriced_models == ("nobody-knows", "unknown")
    assert forecasts.total.cost is None
    assert forecasts.models["nobody-knows"].cost is None
    assert forecasts.total.known_cost == forecasts.models["mine"].cost


def test_long_prompts_cost_their_tier_and_so_do_their_answers():
    price = PRICES.find("gemini-2.5-pro")
    forecasts = forecast(demand_of(("gemini-2.5-pro", 10, 1, 9), ("gemini-2.5-pro", 300_000, 1, 9)), PRICES)
    each = price.cost(Usage(10, 9)) + price.cost(Usage(300_000, 9), 7)
    assert price.cost(Usage(300_000, 9), 7) > price.cost(Usage(300_000, 9))
    assert forecasts.total.cost.high == each


def test_the_batch_price_is_of_all_or_not_known():
    both = forecast(demand_of(("gpt-4o", 1_000_000, 1, 1), ("gpt-4o-mini", 1_000_000, 1, 1)), PRICES)
    assert both.total.batch_cost.low == both.total.cost.low / 2
    assert forecast(demand_of(("gpt-4o", 10, 1, 1), ("mine", 10, 1, 1)), PRICES).total.batch_cost is None


def test_an_empty_input_takes_nothing():
    forecasts = forecast(Demand(), PRICES)
    assert forecasts.total.requests == 0
    assert forecasts.total.completion_tokens.tokens == (0, 0, 0)
    assert (forecasts.total.cost.low, forecasts.total.cost.high) == (0, 0)
    assert forecasts.models == {}


def test_a_pilot_makes_a_mean_and_its_interval_of_the_assumption():
    sample = Sample.of([10, 20, 30])
    assert (sample.count, sample.mean) == (3, 20)
    assert sample.half_width == pytest.approx(4.3027 * 10 / 3**0.5, rel=1e-4)
    demand = demand_of(*[("mine", 100, 1, None)] * 50)
    forecasts = forecast(demand, PRICES, {"mine": Sample.of([100, 101, 102, 103])})
    low, expected, high = forecasts.total.completion_tokens.tokens
    assert expected == 5075
    assert 4960 < low < 4980
    assert 5170 < high < 5190
    cost = forecasts.total.cost
    assert cost.expected == Decimal(50 * 100 + 2 * 5075) / 1_000_000
    assert cost.measured


def test_a_measured_range_stays_within_what_is_possible():
    wide = {"mine": Sample.of([1, 1000])}
    assert forecast(demand_of(("mine", 1, 1, None)), PRICES, wide).total.completion_tokens.tokens == (
        1,
        500,
        1000,
    )


def test_one_answer_is_no_measurement():
    assert Sample.of([7]).half_width == inf
    demand = demand_of(("mine", 100, 1, 50))
    assert forecast(demand, PRICES, {"mine": Sample.of([7])}) == forecast(demand, PRICES)
    assert forecast(demand, PRICES, {"mine": Sample.of([])}) == forecast(demand, PRICES)


def test_models_do_not_err_to_the_same_side_by_chance():
    demand = demand_of(*[("mine", 1, 1, None)] * 100, *[("gpt-4o", 1, 1, None)] * 100)
    samples = {"mine": Sample.of([300, 320, 340]), "gpt-4o": Sample.of([300, 320, 340])}
    forecasts = forecast(demand, PRICES, samples)
    one, total = forecasts.models["mine"].completion_tokens, forecasts.total.completion_tokens
    assert total.expected == 2 * one.expected
    assert float(total.above) == pytest.approx(2**0.5 * float(one.above), rel=1e-3)
    assert float(total.below) == pytest.approx(2**0.5 * float(one.below), rel=1e-3)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    dice = random.Random(7)
    answers = [max(1, round(dice.gauss(400, 120))) for _ in range(2000)]
    truth = sum(answers)
    demand = demand_of(*[("gpt-4o", 1, 1, None)] * len(answers))
    held = 0
    for _ in range(200):
        low, _, high = forecast(
            demand, PRICES, {"gpt-4o": Sample.of(dice.sample(answers, 8))}
        ).total.completion_tokens.tokens
        held += low <= truth <= high
    assert 0.91 <= held / 200 <= 0.99


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (29, 2.0452), (999, 1.9623)],
)
def test_the_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_many_degrees_of_freedom_are_the_normal_distribution():
    assert t_quantile(1e7) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-5)
    assert t_quantile(5, 0.99) == pytest.approx(4.0321, abs=1e-4)


def test_a_job_takes_as_long_as_the_tightest_bound():
    assert seconds(100, 5000) is None
    assert seconds(100, 5000, rpm=60) == 100
    assert seconds(100, 5000, rpm=60, tpm=1000) == 300
    assert seconds(100, 5000, latency_s=2, concurrency=10) == 20
    assert seconds(3, 5000, latency_s=2, concurrency=10) == 2
    assert seconds(0, 0, rpm=60, latency_s=2) == 0


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", "c" * 300]),
        st.integers(0, 600_000),
        st.booleans(),
        st.integers(1, 10**12),
        st.none() | st.integers(1, 10**20),
    )
)


@given(REQUESTS, st.integers(0, 20))
def test_parts_that_are_added_up_apart_come_to_the_whole(requests, cut):
    def add_up(some):
        demand = Demand()
        for model, tokens, exact, answers, limit in some:
            demand.add(model, tokens, exact=exact, answers=answers, max_tokens=limit)
        return demand

    whole, first = add_up(requests), add_up(requests[:cut])
    first.merge(Demand.from_state(json.loads(json.dumps(add_up(requests[cut:]).state()))))
    assert first == whole
    assert whole.requests == len(requests)
    assert whole.prompt_tokens == sum(tokens for _, tokens, *_ in requests)


def test_no_figure_outgrows_64_bits():
    demand = demand_of(*[("m", 1, 10**30, 10**30)] * 100)
    assert all(value < 2**53 for cell in demand.models["m"].values() for value in cell)


def test_more_models_than_are_kept_are_counted_together():
    demand = demand_of(*((f"m{number:05}", 1, 1, 1) for number in range(1500)))
    assert len(demand.models) <= 1001
    assert demand.requests == 1500
