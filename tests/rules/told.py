"""Outcomes for the tests of what adds them up."""

from hypothesis import strategies as st

from batchkit.records import Billed, Failure, FailureKind, FoundLimit, Outcome, Reply, RunHeader, Usage
from batchkit.rules.tally import Tally


def result(index=0, *, model="m", usage=Usage(10, 2, 12), finish_reason="stop", **more):  # noqa: B008 - frozen
    return outcome(
        index, Reply(200, "r", b"{}", model=model, usage=usage, finish_reason=finish_reason), **more
    )


def failure(index=0, *, code="timeout", usage=None, model="", kind=FailureKind.TIMEOUT, status=None, **more):
    return outcome(index, Failure(kind, code, "it failed", status, usage=usage, model=model), **more)


def outcome(index, answer, *, attempts=1, latency=1.0, finished_at=100.0, retries=None, **more):
    return Outcome(index, f"line-{index}", answer, "t", attempts, latency, finished_at, retries or {}, **more)


def tally_of(*outcomes, runs=()):
    tally = Tally()
    for start in runs:
        tally.begin_run(RunHeader(start, "http://x"))
    for each in outcomes:
        tally.add(each)
    return tally


usages = st.none() | st.builds(
    Usage,
    st.integers(0, 600_000),
    st.integers(0, 999),
    st.integers(0, 700_000),
    st.integers(0, 99),
    st.integers(0, 99),
)
names = st.sampled_from(["", "a", "b", "c", "d", "e", "other", "unknown", "x" * 300])
answers = st.builds(
    Reply,
    st.just(200),
    st.just("r"),
    st.just(b"{}"),
    model=names,
    usage=usages,
    finish_reason=st.sampled_from(["stop", "length", None]),
    from_cache=st.booleans(),
) | st.builds(
    Failure,
    st.sampled_from(FailureKind),
    names,
    st.just("m"),
    st.sampled_from([None, 200, 400]),
    model=names,
    usage=usages,
)
outcomes = st.builds(
    Outcome,
    st.integers(0, 50),
    st.sampled_from(["p", "q", "r"]),
    answers,
    st.just("t"),
    st.integers(0, 5),
    st.floats(0, 1e7),
    st.floats(0, 200),
    st.dictionaries(names | st.sampled_from(["rate_limited", "overloaded"]), st.integers(1, 5), max_size=3),
    maybe_billed=st.integers(0, 3),
    gateway_retries=st.integers(0, 3),
    billed=st.lists(st.builds(Billed, names, usages.filter(bool)), max_size=2).map(tuple),
    maybe_cost=st.decimals(0, 1, places=9),
    metadata=st.dictionaries(st.just("team"), st.sampled_from(["a", "b", "c", "d", "(none)", "(other)"])),
    limits=st.sampled_from(
        [(), (FoundLimit("a", 60.0),), (FoundLimit("b"), FoundLimit("a", in_flight=20.0))]
    ),
)
