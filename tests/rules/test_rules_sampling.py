"""A sample is spread over all there was, however much that is."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from batchkit.rules.sampling import EvenSample, spread


@given(st.integers(1, 20), st.integers(0, 5_000))
def test_what_is_kept_is_bounded_and_evenly_spaced(size, count):
    sample = EvenSample(size)
    for number in range(count):
        sample.add(number)
    kept = sample.kept
    assert min(count, 2 * size) <= len(kept) <= 4 * size
    steps = {later - earlier for earlier, later in pairwise(kept)}
    assert len(steps) <= 1
    assert not kept or (kept[0] == 0 and kept[-1] + max(steps, default=1) >= count)


@pytest.mark.parametrize(
    ("count", "size", "taken"),
    [(10, 2, [2, 7]), (10, 1, [5]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]), (0, 2, []), (5, 4, [0, 1, 3, 4])],
)
def test_as_many_as_are_wanted_are_taken_from_everywhere(count, size, taken):
    assert spread(range(count), size) == taken
