from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st
from told import answers, failure, outcome, outcomes, result, tally_of

from batchkit.records import RunHeader, Usage
from batchkit.rules import (
    bill as bill_module,
    over_time as over_time_module,
    runs as runs_module,
    tally as tally_module,
)
from batchkit.rules.tally import ErrorTotal, Tally
from batchkit.rules.tally_state import state_of


@pytest.fixture
def few(monkeypatch):
    """Bounds so low that a few names reach them."""
    monkeypatch.setattr(bill_module, "MAX_MODELS", 3)
    monkeypatch.setattr(tally_module, "MAX_CODES", 3)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_order_of_outcomes_gives_an_equal_tally(data):
    ended = data.draw(st.lists(outcomes, max_size=30))
    shuffled = data.draw(st.permutations(ended))
    starts = data.draw(st.lists(st.floats(0, 200), max_size=5))
    bounds = bill_module.MAX_MODELS, tally_module.MAX_CODES
    bill_module.MAX_MODELS = tally_module.MAX_CODES = 3
    try:
        one, other = tally_of(*ended, runs=starts), tally_of(*shuffled, runs=reversed(starts))
    finally:
        bill_module.MAX_MODELS, tally_module.MAX_CODES = bounds
    assert one == other
    assert state_of(one) == state_of(other)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_outcomes_that_are_added_together_give_the_tally_of_one_after_the_other(data):
    ended = data.draw(st.lists(outcomes, max_size=30))
    starts = data.draw(st.lists(st.floats(0, 200), max_size=3))
    batches = data.draw(st.lists(st.integers(0, 30), max_size=4))
    together, singly = tally_of(runs=starts), tally_of(runs=starts)
    with pytest.MonkeyPatch.context() as patch:
        # Bounds so low that they are reached amid what is added together.
        for module, bound in ((bill_module, "MAX_MODELS"), (tally_module, "MAX_CODES"),
                              (over_time_module, "MAX_BINS"), (over_time_module, "MAX_MODELS")):  # fmt: skip
            patch.setattr(module, bound, data.draw(st.sampled_from([1, 3, 100])))
        for start, end in pairwise([0, *sorted(batches), 30]):
            superseded = data.draw(st.booleans())
            together.add_all(ended[start:end], superseded=superseded)
            for each in ended[start:end]:
                (singly.add_superseded if superseded else singly.add)(each)
    assert together == singly
    assert state_of(together) == state_of(singly)


def test_a_tally_differs_from_one_that_was_told_more():
    assert tally_of(result()) != tally_of(result(), result())
    assert tally_of(result()) != "a tally"


def test_results_failures_and_truncated_results_are_counted_apart():
    tally = tally_of(result(finish_reason="length"), result(1), failure(2), failure(3, attempts=0))
    assert (tally.succeeded, tally.failed, tally.truncated, tally.attempts) == (2, 2, 1, 3)


@given(st.data())
@settings(deadline=None)
def test_a_merged_tally_is_that_of_all_runs_told_to_one(data):
    def run(number):
        return [
            outcome(index, data.draw(answers), finished_at=number * 1000.0 + data.draw(st.integers(0, 900)))
            for index in range(number * 10, number * 10 + data.draw(st.integers(0, 5)))
        ]

    earlier, later = run(1), run(2)
    merged = tally_of(*later, runs=(2000.0,))
    merged.merge(tally_of(*earlier, runs=(1000.0,)))
    assert merged == tally_of(*earlier, *later, runs=(1000.0, 2000.0))


def test_attempts_are_repeated_for_the_reasons_that_outcomes_tell():
    tally = tally_of(
        result(attempts=4, retries={"rate_limited": 2, "timeout": 1}),
        failure(1, attempts=2, retries={"timeout": 1}),
    )
    assert tally.attempts == 6
    assert sum(tally.by_reason.values()) == 4
    assert tally.by_reason == {"rate_limited": 2, "timeout": 2}


def test_usage_is_summed_by_the_model_that_answered():
    tally = tally_of(
        result(model="a", usage=Usage(10, 2, 12, 4, 1)),
        result(1, model="a", usage=Usage(5, 1, 6)),
        result(2, model="", usage=Usage(7, 1, 8)),
        failure(3, model="b", usage=Usage(3, 0, 3)),
    )
    assert tally.models["a"].usage == Usage(15, 3, 18, 4, 1)
    assert tally.models["a"].requests == 2
    assert tally.models["unknown"].usage == Usage(7, 1, 8)
    assert tally.models["b"].usage == Usage(3, 0, 3)
    assert tally.usage == Usage(25, 4, 29, 4, 1)


def test_a_result_without_usage_is_counted_as_unknown_and_not_as_nothing():
    tally = tally_of(result(model="a", usage=None), result(1, model="a"), failure(2))
    assert tally.unknown == 1
    assert tally.models["a"].unknown == 1
    assert tally.models["a"].requests == 2


def test_latency_is_of_all_that_was_sent_and_memory_stays_bounded():
    assert tally_of(failure(attempts=0, latency=9)).latency is None
    assert tally_of(failure(latency=9)).latency.max == 9
    wild = tally_of(*(result(latency=10.0**exponent) for exponent in range(-12, 12)), result(latency=0.0))
    buckets = [int(bucket) for bucket in state_of(wild)["latency"]["buckets"]]
    assert max(buckets) - min(buckets) < 1200


def test_errors_are_counted_by_code_with_the_first_of_the_input_as_example():
    tally = tally_of(failure(9, code="a"), failure(4, code="a"), failure(7, code="a"), failure(1, code="b"))
    assert tally.errors == {"a": ErrorTotal(3, "line-4"), "b": ErrorTotal(1, "line-1")}


def test_codes_models_and_reasons_beyond_the_bound_are_counted_as_other(few):
    tally = tally_of(
        *(
            failure(i, code=code, model=code, usage=Usage(1), retries={code: 1})
            for i, code in enumerate("gfedcba")
        )
    )
    assert {code: error.count for code, error in tally.errors.items()} == {"a": 1, "b": 1, "c": 1, "other": 4}
    assert tally.errors["other"].example == "line-0"
    assert {name: total.usage.prompt_tokens for name, total in tally.models.items()} == {
        "a": 1, "b": 1, "c": 1, "other": 4,
    }  # fmt: skip
    assert tally.by_reason == {"a": 1, "b": 1, "c": 1, "other": 4}


def test_what_a_superseded_failure_cost_stays_and_nothing_else():
    tally = Tally()
    tally.add_superseded(
        failure(
            model="a", usage=Usage(5, 0, 5), attempts=3, retries={"timeout": 2}, latency=9.0, finished_at=50.0
        )
    )
    assert (tally.succeeded, tally.failed, tally.errors, tally.latency) == (0, 0, {}, None)
    assert (tally.attempts, tally.by_reason) == (3, {"timeout": 2})
    assert tally.usage == Usage(5, 0, 5)
    assert tally.models["a"].requests == 0
    assert {name: each.answers for name, each in tally.outcomes.items()} == {
        "results": 0, "failures": 0, "retries": 1,
    }  # fmt: skip
    assert tally.finished_at == 50.0


def test_what_may_have_been_billed_is_added_up_exactly_over_lines_superseded_lines_and_runs_that_left_one():
    tally = tally_of(
        result(maybe_cost=Decimal("0.1"), finished_at=110.0), failure(1, maybe_cost=Decimal("0.2"))
    )
    tally.add_superseded(failure(2, maybe_cost=Decimal("0.0000000001"), finished_at=120.0))
    for started_at, unseen_cost in ((100.0, Decimal("0.7")), (115.0, Decimal("0.01")), (900.0, Decimal(5))):
        tally.begin_run(RunHeader(started_at, "http://x", unseen_cost=unseen_cost))
    assert tally.maybe_cost == Decimal("0.3000000001")
    assert tally.unseen_cost == Decimal("0.71")
    merged = tally_of(result(maybe_cost=Decimal("1e-30")))
    merged.merge(tally)
    assert merged.maybe_cost == Decimal("0.300000000100000000000000000001")
    assert merged.unseen_cost == tally.unseen_cost


def test_time_at_work_leaves_out_the_pauses_between_runs():
    tally = tally_of(
        result(finished_at=110.0),
        result(1, finished_at=105.0),
        result(2, finished_at=1003.0),
        runs=(100.0, 1000.0),
    )
    assert (tally.started_at, tally.finished_at, tally.active_s) == (100.0, 1003.0, 13.0)


def test_a_second_file_credits_its_outcomes_to_the_runs_of_the_first():
    tally = Tally()
    for start, finish in ((100.0, 110.0), (1000.0, 1003.0)):
        tally.begin_run(RunHeader(start, "http://x"))
        tally.add(result(finished_at=finish))
    for start, finish in ((100.0, 120.0), (1000.0, 1002.0)):
        tally.begin_run(RunHeader(start, "http://x"))
        tally.add(failure(finished_at=finish))
    assert tally.active_s == 23.0


def test_a_run_that_is_met_late_takes_its_outcomes_over():
    late = tally_of(result(finished_at=110.0), result(1, finished_at=1003.0))
    late.begin_run(RunHeader(100.0, "http://x"))
    assert late.active_s == 903.0
    late.begin_run(RunHeader(1000.0, "http://x"))
    assert late.finished_at == 1003.0
    assert late.active_s == 903.0  # the pause cannot be told from work any more


def test_a_run_in_which_nothing_ended_leaves_no_trace():
    tally = tally_of(result(finished_at=110.0), runs=(50.0, 100.0, 900.0))
    assert tally.started_at == 100.0
    assert tally.active_s == 10.0
    assert tally == tally_of(result(finished_at=110.0), runs=(100.0,))


def test_outcomes_without_any_run_are_timed_by_themselves():
    tally = tally_of(result(finished_at=110.0), result(1, finished_at=140.0))
    assert (tally.started_at, tally.finished_at, tally.active_s) == (110.0, 140.0, 30.0)
    assert Tally().started_at is None
    assert Tally().active_s == 0


@pytest.mark.parametrize("order", [1, -1])
def test_runs_beyond_the_bound_are_taken_into_the_first(monkeypatch, order):
    monkeypatch.setattr(runs_module, "MAX_RUNS", 3)
    tally = tally_of(runs=[100.0, 200.0, 300.0, 400.0, 500.0][::order])
    for finish in (150.0, 250.0, 350.0, 450.0, 550.0)[::order]:
        tally.add(result(finished_at=finish))
    assert [run[:2] for run in state_of(tally)["runs"]] == [[100.0, 350.0], [400.0, 450.0], [500.0, 550.0]]


def test_a_job_is_simulated_if_all_its_runs_are():
    tally = Tally()
    tally.begin_run(RunHeader(100.0, "http://x", simulated=True))
    assert not tally.simulated
    tally.add(result(finished_at=110.0))
    assert tally.simulated
    tally.begin_run(RunHeader(200.0, "http://x"))
    tally.add(result(finished_at=210.0))
    assert not tally.simulated
