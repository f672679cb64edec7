import json

import pytest
from hypothesis import given, strategies as st
from told import failure, outcomes, result, tally_of

from batchkit.records import RunHeader
from batchkit.rules.tally_state import state_of, tally_of as from_state

TALLY = tally_of(result(), failure(1), runs=(90.0,))


def spoiled(**change):
    return {**state_of(TALLY), **change}


def models(**outcomes):
    return {"results": {}, "failures": {}, "retries": {}, **outcomes}


def over_time(**change):
    return {"exponent": -2, "bins": {}, "limits": {}, **change}


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        spoiled(succeeded=-1),
        spoiled(succeeded=True),
        spoiled(succeeded=1.0),
        spoiled(models={"m": models(results={"99": [1, 0, 0, 0, 0, 0, 0, 0, 0]})}),
        spoiled(models={"m": models(results={"0": [1]})}),
        spoiled(models={"m": {"results": {}, "failures": {}}}),
        spoiled(models={"m": {"0": [1, 0, 0, 0, 0, 0, 0, 0, 0]}}),
        spoiled(maybe_cost=0.5),
        spoiled(maybe_cost="a cent"),
        spoiled(maybe_cost="NaN"),
        spoiled(maybe_cost="-1"),
        spoiled(models=[]),
        spoiled(latency={"max": "x", "buckets": {}}),
        spoiled(latency={"max": 1, "buckets": {"999999": 1}}),
        spoiled(latency={"max": 1, "buckets": {"x": 1}}),
        spoiled(by_reason={3: 1}),
        spoiled(stray=[float("nan"), 1]),
        spoiled(over_time=None),
        spoiled(over_time=over_time(exponent=-3)),
        spoiled(over_time=over_time(exponent=1.0)),
        spoiled(over_time=over_time(bins={"x": [0, 0, 0, 0]})),
        spoiled(over_time=over_time(bins={"1": [0, 0, 0]})),
        spoiled(over_time=over_time(bins={"1": [0, 0, 0, -1]})),
        spoiled(over_time=over_time(bins={str(number): [1, 0, 0, 0] for number in range(121)})),
        spoiled(over_time=over_time(limits={"m": {"1": [1.0, 0, 480.0, 0.0]}})),
        spoiled(over_time=over_time(limits={"m": {"1": ["x", 0, 480.0, 0.0, 0.0]}})),
        spoiled(over_time=over_time(limits={str(number): {} for number in range(21)})),
        spoiled(errors={"a": [1, 2]}),
        spoiled(errors={"a": [1, 2, 3]}),
        spoiled(runs=[[5, 6, False]]),
        spoiled(runs=[[5, 4, False, 0, "0"]]),
        spoiled(runs=[[5, 6, False, 0, "0"], [1, 2, False, 0, "0"]]),
        spoiled(runs=[[5, 6, False, 0, "0"], [5, 7, False, 0, "0"]]),
        spoiled(runs=[[5, 6, 0, 0, "0"]]),
        spoiled(runs=[[5, 6, False, -1, "0"]]),
        spoiled(runs=[[5, 6, False, 0, 0]]),
        spoiled(stray=[1]),
    ],
)
def test_nonsense_is_no_state(state):
    with pytest.raises(ValueError, match="not the state of a tally"):
        from_state(state)


@given(
    st.lists(outcomes, max_size=20), st.lists(outcomes, max_size=5), st.lists(st.floats(0, 200), max_size=5)
)
def test_what_was_written_is_read_back(ended, again, starts):
    tally = tally_of(*ended, runs=starts)
    for each in again:
        tally.add_superseded(each)
    written = json.loads(json.dumps(state_of(tally)))
    assert written == state_of(tally)
    assert from_state(written) == tally
    assert state_of(from_state(written)) == written


def test_a_run_that_began_when_the_one_before_ended_keeps_its_own_end():
    tally = tally_of(result(finished_at=1000.0), result(1, finished_at=1100.0), runs=(90.0,))
    tally.begin_run(RunHeader(1000.0, "http://x"))
    tally.add(result(2, finished_at=1200.0))
    assert from_state(state_of(tally)) == tally


def test_a_tally_that_was_kept_goes_on_like_one_that_was_not():
    went_on = from_state(json.loads(json.dumps(state_of(TALLY))))
    went_on.add(result(2, model="n", finished_at=120.0))
    assert went_on == tally_of(result(), failure(1), result(2, model="n", finished_at=120.0), runs=(90.0,))
