"""What may still be spent: a table, and that the cap holds whatever happens."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from batchkit.rules.spending import Spending

D = Decimal


def test_what_is_reserved_is_not_left_and_comes_back_for_what_it_cost():
    spending = Spending(D("1.00"), D("0.10"), authorised=D("1.00"))
    assert spending.left == D("0.90")
    assert spending.reserve(D("0.30"))
    assert (spending.spent, spending.reserved, spending.left) == (D("0.10"), D("0.30"), D("0.60"))
    assert spending.settle(D("0.30"), D("0.02")) == 0
    assert (spending.spent, spending.reserved, spending.left) == (D("0.12"), 0, D("0.88"))


def test_what_nobody_can_tell_counts_as_spent_at_its_most_and_is_named():
    spending = Spending(D(1), authorised=D(1))
    assert spending.reserve(D("0.25"))
    assert spending.settle(D("0.25"), None) == D("0.25")
    assert spending.reserve(D("0.25"))
    assert spending.settle(D("0.25"), D("0.05"), D("0.10")) == D("0.10")
    assert (spending.spent, spending.unsure, spending.reserved) == (D("0.40"), D("0.35"), 0)


def test_nothing_is_reserved_that_does_not_fit_and_the_last_cent_can_be():
    spending = Spending(D("0.03"), authorised=D("0.03"))
    assert spending.reserve(D("0.02"))
    assert not spending.fits(D("0.011"))
    assert not spending.reserve(D("0.011"))
    assert spending.fits(D("0.01"))
    assert spending.reserve(D("0.01"))
    assert spending.left == 0


def test_what_fits_waits_until_it_is_authorised():
    spending = Spending(D(100))
    assert spending.fits(D(2))
    assert not spending.reserve(D(2))
    # What is needed, and a hundredth of the cap.
    assert spending.mark_for(D(2)) == 3
    spending.authorised = spending.mark_for(D(2))
    assert spending.reserve(D(2))
    assert spending.reserve(D(1))
    assert not spending.reserve(D("0.01"))
    assert spending.mark_for(D(96)) == 100, "never more than the cap"


def test_a_smaller_cap_than_was_spent_leaves_nothing():
    spending = Spending(D(1), D(5))
    assert spending.left == 0
    assert not spending.fits(D(0))


def test_an_answer_that_cost_more_than_its_worst_is_spent_as_it_is():
    spending = Spending(D(1), authorised=D(1))
    assert spending.reserve(D("0.1"))
    spending.settle(D("0.1"), D("0.4"))
    assert (spending.spent, spending.left) == (D("0.4"), D("0.6"))


amounts = st.decimals(min_value=0, max_value=10, places=12)


@given(
    cap=st.decimals(min_value=D("0.000001"), max_value=20, places=12),
    before=amounts,
    steps=st.lists(st.tuples(amounts, st.sampled_from(["known", "part", "unknown"]), st.integers(0, 9))),
)
def test_spent_and_reserved_never_pass_the_cap_nor_what_is_authorised(cap, before, steps):
    spending = Spending(cap, before)
    on_their_way: list[Decimal] = []
    marks = 0
    true_bill = Decimal(0)
    for worst, outcome, place in steps:
        while not spending.reserve(worst):
            if spending.fits(worst):
                mark = spending.mark_for(worst)
                assert spending.authorised < mark <= cap
                spending.authorised = mark
                marks += 1
            elif on_their_way:
                reserved = on_their_way.pop(place % len(on_their_way))
                cost = {"known": reserved, "part": reserved / 3, "unknown": None}[outcome]
                true_bill += reserved if cost is None else cost
                spending.settle(reserved, cost)
            else:
                break
        else:
            on_their_way.append(worst)
        assert before > cap or spending.used <= max(before, spending.authorised) <= cap
        assert spending.reserved == sum(on_their_way, Decimal(0))
        # Whoever is killed here may owe this much, and it stands written down.
        assert before > cap or before + true_bill + spending.reserved <= max(before, spending.authorised)
    assert marks <= 101


def test_a_job_of_many_attempts_writes_down_a_hundred_times_at_most():
    spending = Spending(D(1))
    marks = 0
    for _ in range(100_000):
        if not spending.reserve(D("0.00001")):
            assert spending.fits(D("0.00001"))
            spending.authorised = spending.mark_for(D("0.00001"))
            marks += 1
            assert spending.reserve(D("0.00001"))
        spending.settle(D("0.00001"), D("0.00001"))
    assert spending.left == 0
    assert marks <= 100


@pytest.mark.parametrize("amount", ["0.1", "0.123456789012345678901234567890123456789"])
def test_sums_are_exact(amount):
    spending = Spending(D(1000), authorised=D(1000))
    for _ in range(300):
        assert spending.reserve(D(amount))
        spending.settle(D(amount), D(amount))
    assert Fraction(spending.spent) == 300 * Fraction(amount)
