import json
from bisect import bisect_left
from math import ceil

import pytest
from hypothesis import given, settings, strategies as st

from batchkit.records import Failure, FailureKind, Outcome, Reply, RunHeader, Usage
from batchkit.rules import tally as tally_module
from batchkit.rules.tally import BAND_EDGES, ErrorTotal, Tally, band_of


def result(index=0, *, model="m", usage=Usage(10, 2, 12), finish_reason="stop", **more):  # noqa: B008 - frozen
    return outcome(
        index, Reply(200, "r", b"{}", model=model, usage=usage, finish_reason=finish_reason), **more
    )


def failure(index=0, *, code="timeout", usage=None, model="", **more):
    return outcome(index, Failure(FailureKind.TIMEOUT, code, "it failed", usage=usage, model=model), **more)


def outcome(index, answer, *, attempts=1, latency=1.0, finished_at=100.0, retries=None):
    return Outcome(index, f"line-{index}", answer, "t", attempts, latency, finished_at, retries or {})


def tally_of(*outcomes, runs=()):
    tally = Tally()
    for start in runs:
        tally.start_run(start)
    for each in outcomes:
        tally.add(each)
    return tally


usages = st.none() | st.builds(
    Usage,
    st.integers(0, 600_000),
    st.integers(0, 999),
    st.integers(0, 700_000),
    st.integers(0, 99),
    st.integers(0, 99),
)
names = st.sampled_from(["", "a", "b", "c", "d", "e", "other", "unknown", "x" * 300])
answers = st.builds(
    Reply,
    st.just(200),
    st.just("r"),
    st.just(b"{}"),
    model=names,
    usage=usages,
    finish_reason=st.sampled_from(["stop", "length", None]),
    from_cache=st.booleans(),
) | st.builds(Failure, st.sampled_from(FailureKind), names, st.just("m"), model=names, usage=usages)
outcomes = st.builds(
    Outcome,
    st.integers(0, 50),
    st.sampled_from(["p", "q", "r"]),
    answers,
    st.just("t"),
    st.integers(0, 5),
    st.floats(0, 1e7),
    st.floats(0, 200),
    st.dictionaries(names, st.integers(1, 5), max_size=3),
    maybe_billed=st.integers(0, 3),
    gateway_retries=st.integers(0, 3),
)


@pytest.fixture
def few(monkeypatch):
    """Bounds so low that a few names reach them."""
    monkeypatch.setattr(tally_module, "MAX_MODELS", 3)
    monkeypatch.setattr(tally_module, "MAX_CODES", 3)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_order_of_outcomes_gives_an_equal_tally(data):
    ended = data.draw(st.lists(outcomes, max_size=30))
    shuffled = data.draw(st.permutations(ended))
    starts = data.draw(st.lists(st.floats(0, 200), max_size=5))
    bounds = tally_module.MAX_MODELS, tally_module.MAX_CODES
    tally_module.MAX_MODELS = tally_module.MAX_CODES = 3
    try:
        one, other = tally_of(*ended, runs=starts), tally_of(*shuffled, runs=reversed(starts))
    finally:
        tally_module.MAX_MODELS, tally_module.MAX_CODES = bounds
    assert one == other
    assert one.state() == other.state()
    assert json.loads(json.dumps(one.state())) == one.state()
    assert Tally.from_state(json.loads(json.dumps(one.state()))).state() == one.state()


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


@pytest.mark.parametrize("edge", BAND_EDGES)
def test_a_band_ends_with_its_edge(edge):
    assert band_of(edge) + 1 == band_of(edge + 1)
    total = tally_of(result(usage=Usage(edge, 1, edge + 1)), result(1, usage=Usage(edge + 1, 1, 0))).models[
        "m"
    ]
    assert [each.usage.prompt_tokens for each in total.bands.values()] == [edge, edge + 1]
    assert total.usage.prompt_tokens == 2 * edge + 1


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=300))
def test_percentiles_are_within_one_percent_of_a_measured_latency(latencies):
    measured = tally_of(*(result(i, latency=s) for i, s in enumerate(latencies))).latency
    assert measured is not None
    ordered = sorted(latencies)
    for q, told in ((0.5, measured.p50), (0.9, measured.p90), (0.99, measured.p99)):
        true = ordered[ceil(q * (len(ordered) - 1) - 1e-9)], ordered[int(q * (len(ordered) - 1))]
        assert any(abs(told - each) <= 0.0101 * each for each in true)
    assert measured.max == ordered[-1]


def test_latency_is_of_all_that_was_sent_and_memory_stays_bounded():
    assert tally_of(failure(attempts=0, latency=9)).latency is None
    assert tally_of(failure(latency=9)).latency.max == 9
    wild = tally_of(*(result(latency=10.0**exponent) for exponent in range(-12, 12)), result(latency=0.0))
    buckets = [int(bucket) for bucket in wild.state()["latency"]["buckets"]]
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
    assert tally.finished_at == 50.0


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
    late.start_run(100.0)
    assert late.active_s == 903.0
    late.start_run(1000.0)
    assert late.finished_at == 1003.0
    assert late.active_s == 903.0  # the pause cannot be told from work any more


def test_a_run_in_which_nothing_ended_leaves_no_trace():
    tally = tally_of(result(finished_at=110.0), runs=(50.0, 100.0, 900.0))
    assert tally.started_at == 100.0
    assert tally.active_s == 10.0
    assert Tally.from_state(tally.state()) == tally


def test_outcomes_without_any_run_are_timed_by_themselves():
    tally = tally_of(result(finished_at=110.0), result(1, finished_at=140.0))
    assert (tally.started_at, tally.finished_at, tally.active_s) == (110.0, 140.0, 30.0)
    assert Tally().started_at is None
    assert Tally().active_s == 0


@pytest.mark.parametrize("order", [1, -1])
def test_runs_beyond_the_bound_are_taken_into_the_first(monkeypatch, order):
    monkeypatch.setattr(tally_module, "MAX_RUNS", 3)
    tally = tally_of(runs=[100.0, 200.0, 300.0, 400.0, 500.0][::order])
    for finish in (150.0, 250.0, 350.0, 450.0, 550.0)[::order]:
        tally.add(result(finished_at=finish))
    assert [run[:2] for run in tally.state()["runs"]] == [[100.0, 350.0], [400.0, 450.0], [500.0, 550.0]]


def test_a_job_is_simulated_if_all_its_runs_are():
    tally = Tally()
    tally.begin_run(RunHeader(100.0, "http://x", simulated=True))
    assert not tally.simulated
    tally.add(result(finished_at=110.0))
    assert tally.simulated
    tally.begin_run(RunHeader(200.0, "http://x"))
    tally.add(result(finished_at=210.0))
    assert not tally.simulated


def spoiled(**change):
    return {**tally_of(result(), failure(1), runs=(90.0,)).state(), **change}


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        spoiled(succeeded=-1),
        spoiled(succeeded=True),
        spoiled(succeeded=1.0),
        spoiled(models={"m": {"99": [1, 0, 0, 0, 0, 0, 0]}}),
        spoiled(models={"m": {"0": [1]}}),
        spoiled(models=[]),
        spoiled(latency={"max": "x", "buckets": {}}),
        spoiled(latency={"max": 1, "buckets": {"999999": 1}}),
        spoiled(latency={"max": 1, "buckets": {"x": 1}}),
        spoiled(by_reason={3: 1}),
        spoiled(stray=[float("nan"), 1]),
        spoiled(errors={"a": [1, 2]}),
        spoiled(errors={"a": [1, 2, 3]}),
        spoiled(runs=[[5, 4, False]]),
        spoiled(runs=[[5, 6, False], [1, 2, False]]),
        spoiled(runs=[[5, 6, 0]]),
        spoiled(stray=[1]),
    ],
)
def test_nonsense_is_no_state(state):
    with pytest.raises(ValueError, match="not the state of a tally"):
        Tally.from_state(state)


def test_a_tally_that_was_kept_goes_on_like_one_that_was_not():
    went_on = Tally.from_state(json.loads(json.dumps(tally_of(result(), failure(1), runs=(90.0,)).state())))
    went_on.add(result(2, model="n", finished_at=120.0))
    assert went_on == tally_of(result(), failure(1), result(2, model="n", finished_at=120.0), runs=(90.0,))


def test_bands_are_those_between_the_edges():
    assert list(BAND_EDGES) == sorted(set(BAND_EDGES))
    assert band_of(0) == 0
    assert band_of(10**9) == len(BAND_EDGES) == bisect_left(BAND_EDGES, 10**9)
