from bisect import bisect_left

import pytest
from hypothesis import given, strategies as st
from told import failure, outcomes, result, tally_of

from batchkit.records import Billed, FailureKind, Usage
from batchkit.rules.bill import BAND_EDGES, OUTCOMES, Bill, band_of


def bill_of(*ended, superseded=()):
    bill = Bill()
    for each in ended:
        bill.add_outcome(each)
    for each in superseded:
        bill.add_outcome(each, superseded=True)
    return bill


def taken(bill):
    return {
        outcome: (each.answers, each.unknown, each.usage.total_tokens)
        for outcome, each in bill.outcomes.items()
    }


@pytest.mark.parametrize("edge", BAND_EDGES)
def test_a_band_ends_with_its_edge(edge):
    assert band_of(edge) + 1 == band_of(edge + 1)
    total = tally_of(result(usage=Usage(edge, 1, edge + 1)), result(1, usage=Usage(edge + 1, 1, 0))).models[
        "m"
    ]
    assert [each.usage.prompt_tokens for each in total.bands.values()] == [edge, edge + 1]
    assert total.usage.prompt_tokens == 2 * edge + 1


def test_bands_are_those_between_the_edges():
    assert list(BAND_EDGES) == sorted(set(BAND_EDGES))
    assert band_of(0) == 0
    assert band_of(10**9) == len(BAND_EDGES) == bisect_left(BAND_EDGES, 10**9)


def test_each_answer_is_a_result_or_a_failure_or_one_that_was_asked_for_again():
    bill = bill_of(
        result(
            model="a",
            usage=Usage(10, 2, 12),
            billed=(Billed("b", Usage(5, 1, 6)), Billed("a", Usage(4, 0, 4))),
        ),
        failure(1, model="a", usage=Usage(7, 0, 7)),
        superseded=[failure(2, model="a", usage=Usage(100), billed=(Billed("a", Usage(0, 0, 50)),))],
    )
    assert taken(bill) == {"results": (1, 0, 12), "failures": (1, 0, 7), "retries": (4, 0, 60)}
    assert bill.total.usage == Usage(126, 3, 79)
    assert {model: total.requests for model, total in bill.models.items()} == {"a": 2, "b": 0}
    assert bill.models["a"].outcomes["retries"].usage == Usage(104, 0, 54)
    assert bill.models["a"].answers == 5


def test_an_answer_without_usage_is_unknown_wherever_it_belongs_and_a_refusal_is_no_answer():
    bill = bill_of(
        result(usage=None),
        failure(1, kind=FailureKind.CONTENT_FILTER, status=200),
        failure(2, kind=FailureKind.CONTENT_FILTER, status=400),
        failure(3),
        superseded=[failure(4, kind=FailureKind.CONTENT_FILTER, status=200), failure(5)],
    )
    assert taken(bill) == {"results": (1, 1, 0), "failures": (1, 1, 0), "retries": (1, 1, 0)}


@given(st.lists(st.tuples(outcomes, st.booleans())))
def test_models_outcomes_and_bands_are_three_ways_to_split_one_total(ended):
    bill = Bill()
    for each, superseded in ended:
        bill.add_outcome(each, superseded=superseded)
    whole = bill.total
    for parts in (
        [*bill.models.values()],
        [*bill.outcomes.values()],
        [*whole.bands.values()],
        [total.outcomes[name] for total in bill.models.values() for name in OUTCOMES],
    ):
        assert sum(each.answers for each in parts) == whole.answers
        assert sum(each.unknown for each in parts) == whole.unknown
        assert sum((each.usage for each in parts), Usage()) == whole.usage


@given(st.lists(outcomes), st.lists(outcomes))
def test_a_merged_bill_is_that_of_all(some, others):
    merged = bill_of(*some)
    merged.merge(bill_of(*others))
    assert merged == bill_of(*some, *others)
