import pytest
from hypothesis import given, strategies as st
from told import failure, outcomes, result, tally_of

from batchkit.records import Usage
from batchkit.rules import groups as groups_module
from batchkit.rules.bill import Bill
from batchkit.rules.groups import Groups


def groups_of(*ended, superseded=()):
    groups = Groups("team")
    for each in ended:
        groups.add(each)
    for each in superseded:
        groups.add(each, superseded=True)
    return groups


def requests(groups):
    return {value: group.succeeded + group.failed for value, group in groups.by_value.items()}


def test_requests_are_counted_by_what_their_metadata_says():
    groups = groups_of(
        result(metadata={"team": "blue", "tier": "1"}, attempts=2),
        failure(1, metadata={"team": "blue"}, usage=Usage(5, 0, 5)),
        result(2, metadata={"tier": "1"}),
        result(3),
        superseded=[failure(4, metadata={"team": "red"}, usage=Usage(7, 0, 7), attempts=3)],
    )
    assert requests(groups) == {"blue": 2, "red": 0, "(none)": 2}
    blue, red = groups.by_value["blue"], groups.by_value["red"]
    assert (blue.succeeded, blue.failed, blue.attempts, blue.bill.total.usage.total_tokens) == (1, 1, 3, 17)
    assert (red.attempts, red.bill.outcomes["retries"].usage) == (3, Usage(7, 0, 7))


@pytest.mark.parametrize("order", [1, -1])
def test_the_smallest_values_are_kept_in_whatever_order_they_come(monkeypatch, order):
    monkeypatch.setattr(groups_module, "MAX_VALUES", 3)
    ended = [result(at, metadata={"team": team}) for at, team in enumerate("gfedcbaag")]
    assert requests(groups_of(*ended[::order], result(9))) == {
        "a": 2,
        "b": 1,
        "c": 1,
        "(none)": 1,
        "(other)": 5,
    }


@given(st.lists(st.tuples(outcomes, st.booleans())))
def test_groups_add_up_to_the_tally(ended):
    groups, tally = Groups("team"), tally_of()
    bound, groups_module.MAX_VALUES = groups_module.MAX_VALUES, 2
    try:
        for each, superseded in ended:
            groups.add(each, superseded=superseded)
            (tally.add_superseded if superseded else tally.add)(each)
    finally:
        groups_module.MAX_VALUES = bound
    found = groups.by_value.values()
    assert sum(group.succeeded for group in found) == tally.succeeded
    assert sum(group.failed for group in found) == tally.failed
    assert sum(group.attempts for group in found) == tally.attempts
    whole = Bill()
    for group in found:
        whole.merge(group.bill)
    assert whole == tally.bill
