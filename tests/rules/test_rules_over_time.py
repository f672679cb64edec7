"""What happened when: a fold that is the same in any order, split and merged as one likes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st
from told import failure, outcome, result, tally_of

from batchkit.records import Billed, FoundLimit, RunHeader, TimeBin, Usage
from batchkit.rules import over_time as module
from batchkit.rules.over_time import MIN_EXPONENT, OverTime, is_news
from batchkit.rules.tally import Tally
from batchkit.rules.tally_state import state_of, tally_of as from_state


@pytest.fixture(scope="module", autouse=True)
def _few():
    """Bounds so low that a few lines reach them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_BINS", 5)
        patch.setattr(module, "MAX_MODELS", 2)
        yield


rates = st.none() | st.sampled_from([60.0, 480.0])
outcomes = st.builds(
    outcome,
    st.integers(0, 9),
    st.sampled_from([result().answer, result(usage=None).answer, failure().answer]),
    finished_at=st.floats(0, 200),
    retries=st.sampled_from(
        [{}, {}, {"rate_limited": 2}, {"timeout": 1}, {"overloaded": 1, "rate_limited": 1}]
    ),
    billed=st.sampled_from([(), (), (Billed("m", Usage(1, 2, 3)),)]),
    limits=st.lists(st.builds(FoundLimit, st.sampled_from("abc"), rates, rates, rates), max_size=2).map(
        tuple
    ),
)
lines = st.lists(st.tuples(outcomes, st.booleans()), max_size=15)
few_examples = settings(max_examples=50)


def fold(told, tally=None):
    tally = tally or Tally()
    for each, superseded in told:
        tally.add_all((each,), superseded=superseded)
    return tally.over_time


@few_examples
@given(lines, st.data())
def test_it_is_the_same_in_any_order(told, data):
    assert fold(told) == fold(data.draw(st.permutations(told)))


@few_examples
@given(st.lists(lines, min_size=1, max_size=4), st.data())
def test_parts_merged_in_any_order_are_the_whole(parts, data):
    merged = OverTime()
    for part in data.draw(st.permutations(parts)):
        merged.merge(fold(part))
    assert merged == fold([each for part in parts for each in part])


@few_examples
@given(lines, lines)
def test_what_was_kept_and_what_came_behind_it_are_the_whole(before, behind):
    kept = Tally()
    fold(before, kept)
    assert fold(behind, from_state(state_of(kept))) == fold(before + behind)


@few_examples
@given(lines)
def test_the_bins_are_as_narrow_as_can_be(told):
    folded = fold(told)
    assert len(folded.bins) <= 5
    assert folded.exponent >= MIN_EXPONENT
    if folded.exponent > MIN_EXPONENT:
        narrower = 2.0 ** (folded.exponent - 1)
        counted = [
            each
            for each, again in told
            if not again
            or each.limits
            or each.billed
            or (each.answer.usage or Usage()).total_tokens
            or {"rate_limited", "overloaded"} & set(each.retries)
        ]
        assert len({each.finished_at // narrower for each in counted}) > 5


@few_examples
@given(lines, st.lists(st.floats(0, 200), max_size=4))
def test_the_timeline_adds_up_to_what_the_tally_counts(told, starts):
    tally = tally_of(runs=starts)
    for each, superseded in told:
        (tally.add_superseded if superseded else tally.add)(each)
    width, bins = tally.timeline()
    assert sum(each.results for each in bins) == tally.succeeded
    assert sum(each.failures for each in bins) == tally.failed
    assert sum(each.tokens for each in bins) == tally.usage.total_tokens
    refused = (tally.by_reason.get(reason, 0) for reason in ("rate_limited", "overloaded"))
    assert sum(each.refused for each in bins) == sum(refused)
    assert len(bins) <= 5
    assert all(one.start + width <= other.start for one, other in pairwise(bins))


def starts_of(tally):
    width, bins = tally.timeline()
    return width, [each.start for each in bins]


def test_a_silence_within_a_run_is_told_and_a_pause_between_runs_is_not():
    silent = tally_of(result(finished_at=100.2), result(1, finished_at=100.9), runs=[100.0])
    assert starts_of(silent) == (0.25, [100.0, 100.25, 100.5, 100.75])
    paused = tally_of(result(finished_at=100.2), result(1, finished_at=1000.1), runs=[100.0, 1000.0])
    assert starts_of(paused) == (0.25, [100.0, 1000.0])


def test_a_pause_that_is_short_beside_the_work_is_told_as_a_silence():
    tally = tally_of(result(finished_at=200.0), result(1, finished_at=300.0), runs=[100.0, 204.0])
    width, starts = starts_of(tally)
    assert starts == [starts[0] + width * place for place in range(len(starts))]


def test_few_answers_make_few_bins(monkeypatch):
    monkeypatch.setattr(module, "MAX_BINS", 120)
    seconds = range(1, 101)
    sparse = tally_of(*(result(each, finished_at=1000.0 + each) for each in seconds), runs=[1000.0])
    assert starts_of(sparse)[0] == 4.0
    dense = tally_of(
        *(result(each * 20 + more, finished_at=1000.0 + each) for each in seconds for more in range(20)),
        runs=[1000.0],
    )
    assert starts_of(dense)[0] == 1.0


def test_days_without_an_answer_are_not_counted_one_by_one():
    tally = tally_of(result(finished_at=1.0), result(1, finished_at=1e15), runs=[0.0])
    assert len(tally.timeline()[1]) <= 5


def test_nothing_has_no_timeline():
    assert Tally().timeline()[1] == []


def test_a_failure_that_was_asked_again_counts_with_what_it_took_and_is_no_request():
    tally = tally_of(result(finished_at=50.0), runs=[49.9])
    failed = failure(1, finished_at=50.1, usage=Usage(1, 1, 2), billed=(Billed("m", Usage(2, 3, 5)),), retries={"overloaded": 3})  # fmt: skip
    tally.add_superseded(failed)
    tally.add_superseded(failure(2, finished_at=50.0))
    bins = tally.timeline()[1]
    assert bins[0] == TimeBin(49.75)
    assert bins[1] == TimeBin(50.0, results=1, failures=0, refused=3, tokens=19)


def limits_of(tally):
    return [[(each.model, each.requests_per_min) for each in one.limits] for one in tally.timeline()[1]]


def test_a_limit_is_known_from_the_line_that_tells_it_to_the_end_of_its_run():
    tally = tally_of(runs=[10.0, 500.0])
    for index, at in enumerate((10.0, 10.3, 10.9)):
        tally.add(result(index, finished_at=at, limits=(FoundLimit("m", 480.0),) if index == 1 else ()))
    tally.add(result(4, finished_at=500.1))
    assert limits_of(tally) == [[], [("m", 480.0)], [("m", 480.0)], [("m", 480.0)], []]


def test_a_limit_that_is_found_no_more_is_known_no_more():
    tally = tally_of(runs=[10.0])
    for index, limit in enumerate((FoundLimit("m", 480.0), FoundLimit("m", in_flight=20), FoundLimit("m"))):
        tally.add(result(index, finished_at=10.0 + index / 4, limits=(limit,)))
    bins = tally.timeline()[1]
    assert [each.limits for each in bins] == [(FoundLimit("m", 480.0),), (FoundLimit("m", None, None, 20.0),), ()]  # fmt: skip


def test_of_two_limits_in_one_bin_the_later_is_kept():
    tally = tally_of(
        result(7, finished_at=10.2, limits=(FoundLimit("m", 500.0),)),
        result(3, finished_at=10.1, limits=(FoundLimit("m", 900.0),)),
        runs=[10.0],
    )
    assert limits_of(tally) == [[("m", 500.0)]]


def test_of_many_models_those_with_the_smallest_names_are_kept():
    tally = tally_of(runs=[10.0])
    tally.add(result(finished_at=10.0, limits=tuple(FoundLimit(name, 60.0) for name in "cadb")))
    assert limits_of(tally) == [[("a", 60.0), ("b", 60.0)]]


@pytest.mark.parametrize(
    ("before", "now", "news"),
    [
        (None, FoundLimit("m"), False),
        (None, FoundLimit("m", 480.0), True),
        (FoundLimit("m", 480.0), FoundLimit("m", 500.0), False),
        (FoundLimit("m", 480.0), FoundLimit("m", 505.0), True),
        (FoundLimit("m", 480.0), FoundLimit("m", 455.0), True),
        (FoundLimit("m", 480.0), FoundLimit("m"), True),
        (FoundLimit("m", 480.0), FoundLimit("m", None, 480.0), True),
        (FoundLimit("m", 480.0), FoundLimit("m", 480.0, None, 20), True),
        (FoundLimit("m", in_flight=20), FoundLimit("m", in_flight=21), False),
        (FoundLimit("m", in_flight=20), FoundLimit("m", in_flight=22), True),
    ],
)
def test_a_limit_is_news_when_it_changed_by_more_than_a_twentieth(before, now, news):
    assert is_news(before, now) is news


def test_a_run_that_left_no_line_changes_nothing():
    tally = tally_of(result(finished_at=10.0), runs=[9.9])
    before = tally.timeline()
    tally.begin_run(RunHeader(500.0, "http://x"))
    assert tally.timeline() == before
