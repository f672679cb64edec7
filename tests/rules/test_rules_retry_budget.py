"""How many retries a server gets: by the rule alone, a request after another."""

from math import inf
from random import Random

import pytest

from batchkit.records import Failure, FailureKind
from batchkit.rules.retry_budget import RetryBudget

FAULT = Failure(FailureKind.SERVER_ERROR, "server_error", "out of order", 500)


def spent(workers=256):
    """A budget that paid for all it could at a server that fails everything."""
    budget = RetryBudget(workers)
    while not budget.spent:
        assert budget.ask(0.0) == 0.0
        budget.failed(FAULT, 0.0, 0.0)
        budget.ended()
    return budget


def test_two_hundred_requests_may_spend_six_attempts_each_without_a_wait():
    budget = RetryBudget(workers=1)
    for _ in range(200 * 5):
        budget.failed(FAULT, 0.0, 0.5)
        assert budget.ask(0.0) == 0.0
        budget.ended()


def test_a_hiccup_that_meets_each_of_thousands_of_workers_is_paid_for():
    budget = RetryBudget(workers=5000)
    assert [budget.ask(0.0) for _ in range(5000)] == [0.0] * 5000


def test_ten_answers_earn_one_retry():
    budget = spent()
    for _ in range(9):
        budget.answered()
        assert budget.spent
    budget.answered()
    assert not budget.spent
    assert budget.ask(0.0) == 0.0
    assert budget.spent


def test_no_more_is_saved_up_than_the_beginning_allowance():
    budget = RetryBudget(workers=8)
    for _ in range(1_000_000):
        budget.answered()
    allowed = 0
    while not budget.spent:
        budget.ask(0.0)
        allowed += 1
    assert allowed == 1000


def test_new_requests_at_a_server_that_fails_everything_bring_a_tenth_more_attempts_not_six_times_as_many():
    budget = RetryBudget(workers=256)
    attempts = due = 0
    for _ in range(10_000):
        attempts += 1
        budget.failed(FAULT, 0.0, 0.5)
        due += 1
        while due and budget.ask(0.0) == 0.0:
            attempts, due = attempts + 1, due - 1
            budget.failed(FAULT, 0.0, 0.5)
            budget.ended()
            due += 1
    assert attempts <= 1.1 * 10_000


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_server_that_answers_more_than_it_fails_gets_its_retries_at_once(share, seed):
    """Whatever the budget: they are needed, and most of them succeed."""
    random, budget, refused = Random(seed), RetryBudget(workers=256), 0
    requests = 20_000
    for _ in range(requests):
        while random.random() < share:
            budget.failed(FAULT, 0.0, 0.5)
            refused += budget.ask(0.0) > 0.0
            budget.ended()
        budget.answered()
    assert refused < requests / 1000


def test_while_it_is_spent_one_retry_goes_at_a_time():
    budget = spent()
    wait = budget.ask(0.0)
    assert wait > 0.0
    assert budget.ask(wait) == 0.0
    assert budget.ask(1e9) == inf
    budget.ended()
    assert budget.ask(1e9) == 0.0


def test_and_after_longer_and_longer_waits_up_to_half_a_minute():
    budget = RetryBudget(workers=1)
    while not budget.spent:
        budget.ask(0.0)
        budget.ended()
    now, waits = 0.0, []
    for _ in range(9):
        budget.failed(FAULT, now, 0.0)
        waits.append(budget.ask(now))
        now += waits[-1]
        assert budget.ask(now) == 0.0
        budget.ended()
    assert waits == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 15, 15, 15])


def test_jitter_makes_a_wait_longer_and_no_longer_than_half_a_minute():
    budget = spent()
    budget.failed(FAULT, 0.0, 0.999)
    assert 29.9 < budget.ask(0.0) <= 30.0


def test_the_first_good_answer_ends_the_waits_and_each_one_lets_more_go():
    budget, under_way = spent(), 0
    for answers in (1, 8, 60):
        for _ in range(answers):
            budget.answered()
        before = under_way
        while budget.ask(0.0) == 0.0:
            under_way += 1
        assert under_way > before
    assert under_way > 200


def test_retries_that_fail_tell_of_their_own_requests_and_not_of_the_server():
    budget = spent()
    for _ in range(100):
        budget.answered()
    for _ in range(1000):
        assert budget.ask(0.0) == 0.0
        budget.failed(FAULT, 0.0, 0.5, retry=True)
        budget.ended()


def test_the_last_requests_of_a_job_come_to_their_end_with_nothing_to_earn_from():
    """Ten requests, each with five retries to go, at a server that answers nothing: no deadlock, and no storm."""
    budget, now, left = spent(), 0.0, 10 * 5
    while left:
        wait = budget.ask(now)
        assert wait <= 30.0
        if wait:
            now += wait
            continue
        left -= 1
        assert budget.failed(FAULT, now, 0.5) is None
        budget.ended()
    assert 10 * 60 < now < 50 * 31


def test_an_hour_of_nothing_but_failures_ends_the_run():
    budget = spent()
    assert budget.failed(FAULT, 3599.0, 0.5) is None
    verdict = budget.failed(FAULT, 3600.0, 0.5)
    assert verdict is not None
    assert verdict.code == "server_failing"
    assert "out of order" in verdict.message


def test_an_hour_with_an_answer_in_it_does_not():
    budget = spent()
    budget.answered()
    assert budget.failed(FAULT, 3000.0, 0.5) is None
    assert budget.failed(FAULT, 6500.0, 0.5) is None
    assert budget.failed(FAULT, 6600.0, 0.5) is not None


def test_a_small_job_on_a_server_that_hangs_is_not_ended_by_the_hour():
    budget = RetryBudget(workers=256)
    assert [budget.failed(FAULT, 600.0 * n, 0.5) for n in range(60)] == [None] * 60
