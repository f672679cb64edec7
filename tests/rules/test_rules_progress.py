import pytest
from hypothesis import given, strategies as st

from batchkit.rules.progress import DoneIndexes


@given(st.lists(st.integers(0, 60)))
def test_it_is_a_set_of_indexes(indexes):
    done, model = DoneIndexes(), set()
    for index in indexes:
        assert done.add(index) is (index not in model)
        model.add(index)
        assert len(done) == len(model)
    assert [index in done for index in range(-2, 65)] == [index in model for index in range(-2, 65)]
    assert [done.below(index) for index in range(65)] == [len([i for i in model if i < n]) for n in range(65)]
    assert done.end == max(model, default=-1) + 1
    again = DoneIndexes(done.intervals())
    assert list(again.intervals()) == list(done.intervals())
    assert len(again) == len(done)


@given(st.permutations(range(40)))
def test_touching_intervals_become_one(indexes):
    done = DoneIndexes()
    for index in indexes:
        done.add(index)
    assert list(done.intervals()) == [(0, 40)]


@pytest.mark.parametrize(
    "intervals", [[(3, 3)], [(5, 4)], [(-1, 2)], [(0, 2), (2, 4)], [(4, 6), (0, 2)], [(0, 5), (3, 8)]]
)
def test_what_are_no_ascending_intervals_is_refused(intervals):
    with pytest.raises(ValueError, match="ascending"):
        DoneIndexes(intervals)


@given(st.lists(st.lists(st.integers(0, 60) | st.integers(0, 10_000), max_size=20), max_size=6))
def test_adding_many_at_once_is_adding_one_after_the_other(batches):
    at_once, singly = DoneIndexes(), DoneIndexes()
    for batch in batches:
        twice = next((index for index in sorted(batch) if not singly.add(index)), None)
        assert at_once.add_all(batch) == twice
        if twice is not None:
            return
        assert list(at_once.intervals()) == list(singly.intervals())
        assert len(at_once) == len(singly)


@given(st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)))
def test_two_files_of_one_job_fill_each_others_gaps(results, failures):
    failures -= results
    done = DoneIndexes()
    assert done.add_all(sorted(results)) is None
    assert done.add_all(sorted(failures, reverse=True)) is None
    assert len(done) == len(results | failures)
    assert [index for index in range(201) if index in done] == sorted(results | failures)
    assert list(DoneIndexes(done.intervals()).intervals()) == list(done.intervals())
