"""A limit on how many are in flight, told from one on the rate."""

import pytest

from batchkit.rules.crowding import Crowd


def refused(crowd, levels, *, apart_s=1.0):
    """One refusal after the other, each of an attempt that began when the last had been heard of."""
    return [
        crowd.refused(apart_s * number, apart_s * number - 0.1, level) for number, level in enumerate(levels)
    ]


def test_refusals_at_one_number_beyond_which_nothing_is_taken_are_a_bound():
    crowd = Crowd()
    assert not any(refused(crowd, [203, 200, 201, 200, 202, 201, 200]))
    assert [crowd.taken(2.0, 199) for _ in range(400)] == [False] * 399 + [True]
    assert crowd.bound == 200


@pytest.mark.parametrize("limit", [1, 2, 10, 24])
def test_a_bound_so_low_that_one_less_is_far_below_it_is_found_as_well(limit):
    crowd = Crowd()
    refused(crowd, [limit] * 8)
    for _ in range(max(40, 2 * limit)):
        crowd.taken(2.0, limit - 1)
    assert crowd.bound == limit


def test_a_low_number_that_others_pass_is_no_bound():
    crowd = Crowd()
    refused(crowd, [4, 3, 5, 6, 3, 4, 7])
    for level in [2, 2, 2, 3, 3, 4, 5] * 20:
        assert not crowd.taken(2.0, level)
    assert crowd.bound is None


def test_where_others_are_taken_beyond_the_number_there_is_no_bound():
    crowd = Crowd()
    refused(crowd, [203, 200, 201, 200, 202, 201, 200])
    for level in [199, 220] * 30:
        assert not crowd.taken(2.0, level)
    assert crowd.bound is None


def test_attempts_far_below_the_number_tell_nothing():
    crowd = Crowd()
    refused(crowd, [200] * 8)
    assert not any(crowd.taken(2.0, 150) for _ in range(1000))


def test_refusals_of_one_moment_are_one():
    crowd = Crowd()
    refused(crowd, [200] * 50, apart_s=0.01)
    assert not any(crowd.taken(2.0, 199) for _ in range(1000))


def test_one_more_is_tried_after_a_while_and_a_refusal_takes_it_back():
    crowd = Crowd()
    refused(crowd, [200] * 8)
    for _ in range(400):
        crowd.taken(2.0, 199)
    assert not crowd.grow(1.0)
    assert crowd.bound == 200
    assert not crowd.grow(1.8)
    assert crowd.bound == 201
    assert crowd.refused(20.0, 19.9, 200)
    assert crowd.bound == 200


def test_a_bound_that_is_never_met_again_is_raised_for_good():
    crowd = Crowd()
    refused(crowd, [200] * 8)
    for _ in range(400):
        crowd.taken(2.0, 199)
    assert crowd.grow(3.0)
    assert crowd.bound == 250


def test_a_refusal_far_below_the_bound_is_not_explained_by_it():
    crowd = Crowd()
    refused(crowd, [200] * 8)
    for _ in range(400):
        crowd.taken(2.0, 199)
    assert not crowd.refused(20.0, 19.9, 100)
    crowd.let_go()
    assert crowd.bound is None
