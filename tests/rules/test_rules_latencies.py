from math import ceil

from hypothesis import given, strategies as st

from batchkit.rules.latencies import Latencies


def latencies_of(*seconds):
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    return latencies


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=300))
def test_percentiles_are_within_one_percent_of_a_measured_latency(latencies):
    measured = latencies_of(*latencies).percentiles
    assert measured is not None
    ordered = sorted(latencies)
    for q, told in ((0.5, measured.p50), (0.9, measured.p90), (0.99, measured.p99)):
        true = ordered[ceil(q * (len(ordered) - 1) - 1e-9)], ordered[int(q * (len(ordered) - 1))]
        assert any(abs(told - each) <= 0.0101 * each for each in true)
    assert measured.max == ordered[-1]


@given(st.lists(st.floats(0, 1e7)), st.lists(st.floats(0, 1e7)))
def test_merged_latencies_are_those_of_all(some, others):
    merged = latencies_of(*some)
    merged.merge(latencies_of(*others))
    assert merged == latencies_of(*others, *some)
    assert merged != latencies_of(1.0, *some, *others)
    assert merged != "latencies"
