"""A rate, kept evenly."""

import pytest

from batchkit.rules.bucket import Bucket


def starts(bucket, since, until, cost=1.0):
    """How many start in that time if somebody asks each millisecond."""
    count = 0
    for step in range(int((until - since) * 1000)):
        now = since + step / 1000
        if bucket.wait(now, cost) == 0.0:
            bucket.spend(now, cost)
            count += 1
    return count


def test_starts_come_evenly_at_the_rate():
    bucket = Bucket(10.0)
    bucket.empty(100.0)
    assert [starts(bucket, now, now + 1.0) for now in (100.0, 101.0, 102.0)] == [10, 10, 10]


def test_no_more_than_a_second_is_saved_up_and_a_large_start_waits_no_longer_for_itself():
    bucket = Bucket(10.0)
    bucket.empty(100.0)
    assert bucket.wait(100.0, 500.0) == pytest.approx(0.95)
    bucket.spend(200.0, 500.0)
    assert bucket.wait(200.0, 1.0) == pytest.approx(49.0 + 0.1 - 0.05)


def test_what_is_owed_is_paid_off_at_the_new_rate():
    bucket = Bucket(1.0)
    bucket.empty(100.0)
    for _ in range(10):
        bucket.spend(100.0, 1.0)
    bucket.change(100.0, 10.0)
    assert bucket.wait(100.0, 1.0) == pytest.approx(0.9 + 0.1 - 0.05, abs=0.11)


def test_another_unit_changes_no_wait():
    requests, tokens = Bucket(10.0), Bucket(10.0)
    for bucket in (requests, tokens):
        bucket.empty(100.0)
        bucket.spend(100.0, 5.0)
    tokens.scale(400.0)
    assert tokens.wait(100.0, 400.0) == pytest.approx(requests.wait(100.0, 1.0))
