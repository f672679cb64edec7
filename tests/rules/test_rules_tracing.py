import re
from itertools import pairwise

import pytest

from batchkit.records import PortkeyFields, Request, Trace
from batchkit.rules.tracing import Tracer, derive_trace_id


def request(**portkey):
    return Request(7, "a", b"{}", portkey=PortkeyFields(**portkey) if portkey else None)


def test_a_trace_id_is_w3c_and_the_same_for_the_same_request_of_the_same_job():
    ids = {derive_trace_id(job, index) for job in ("a", "b", "é" * 64, "x" * 64) for index in range(1000)}
    assert len(ids) == 4000
    assert all(re.fullmatch("[0-9a-f]{32}", each) and each.strip("0") for each in ids)
    assert derive_trace_id("a", 7) == derive_trace_id("a", 7)


def test_a_records_own_trace_id_wins():
    assert Tracer("job", 1).trace_id(request(trace_id="mine")) == "mine"
    assert Tracer("job", 1).trace_id(request(span_id="s")) == derive_trace_id("job", 7)
    assert Tracer("job", 1).trace_id(request()) == derive_trace_id("job", 7)


@pytest.mark.parametrize("nonce", [0, 1, (1 << 64) - 1, 1 << 64, (-0x9E3779B97F4A7C15) % (1 << 64), 12345])
def test_every_attempt_has_a_valid_span_of_its_own(nonce):
    tracer = Tracer("job", nonce)
    spans = [tracer.attempt(request(), "t", attempt).span_id for attempt in range(1, 5001)]
    assert len(set(spans)) == 5000
    assert all(re.fullmatch("[0-9a-f]{16}", span) and span != "0" * 16 for span in spans)


def test_spans_look_random():
    tracer = Tracer("job", 99)
    spans = [int(tracer.attempt(request(), "t", 1).span_id, 16) for _ in range(100)]
    assert all((one ^ other).bit_count() > 8 for one, other in pairwise(spans))


def test_a_records_own_span_names_its_first_attempt_and_is_the_parent_of_the_others():
    tracer = Tracer("job", 5)
    own = request(span_id="s", parent_span_id="p")
    assert tracer.attempt(own, "t", 1) == Trace("t", "s", "p")
    second, third = tracer.attempt(own, "t", 2), tracer.attempt(own, "t", 3)
    assert (second.parent_span_id, third.parent_span_id) == ("s", "s")
    assert len({"s", second.span_id, third.span_id}) == 3


def test_a_records_own_parent_is_kept_without_a_span():
    assert Tracer("job", 5).attempt(request(parent_span_id="p"), "t", 2).parent_span_id == "p"


@pytest.mark.parametrize(
    "own", [{"trace_id": "t"}, {"span_id": "s"}, {"parent_span_id": "p"}, {"span_name": "n"}]
)
@pytest.mark.parametrize("resumed", [False, True])
def test_ids_are_all_derived_only_where_a_record_asks_for_nothing_itself(own, resumed):
    tracer = Tracer("job", 5, resumed=resumed)
    assert tracer.attempt(request(), tracer.trace_id(request()), 1).derived
    assert not any(tracer.attempt(request(**own), "t", attempt).derived for attempt in (1, 2))


def test_in_a_run_that_goes_on_a_records_own_span_is_the_parent_since_it_may_have_been_used():
    trace = Tracer("job", 5, resumed=True).attempt(request(span_id="s"), "t", 1)
    assert trace.span_id != "s"
    assert trace.parent_span_id == "s"
