from zlib import crc32

import pytest
from hypothesis import given, strategies as st

from batchkit.formats.checkpoint import (
    Checkpoint,
    Standing,
    decode_checkpoint,
    decode_standing,
    encode_checkpoint,
)
from batchkit.records import RunHeader

CHECKPOINT = Checkpoint(
    job_id="job",
    results_bytes=100,
    errors_bytes=20,
    superseded=1,
    done=((0, 5), (7, 9)),
    tally={"succeeded": 7, "by_reason": {'",crc32":"': 1}},
    run=RunHeader(
        1763820000.5,
        "http://x/v1",
        {"model": "m", "stop": ["a"]},
        "/in.jsonl",
        12,
        simulated=True,
        version="1",
    ),
    input_index=5,
    input_offset=500,
    input_size=1000,
    input_mtime_ns=1763820000_123456789,
    total=10,
    limit=8,
    status="stopped",
    stop_reason="insufficient_quota",
)
counts = st.integers(0, 2**62)
checkpoints = st.builds(
    Checkpoint,
    st.text(st.characters(exclude_categories=["Cs"])),
    counts,
    counts,
    counts,
    st.lists(st.tuples(counts, counts)).map(tuple),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), counts),
    st.none() | st.just(CHECKPOINT.run),
    counts,
    counts,
    st.none() | counts,
    st.none() | counts,
    st.none() | counts,
    st.none() | counts,
    st.sampled_from(["running", "completed"]),
    st.none() | st.just("why"),
)


@given(checkpoints)
def test_what_was_written_is_read_back(checkpoint):
    assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


def test_a_flipped_bit_is_found_wherever_it_is():
    data = encode_checkpoint(CHECKPOINT)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(ValueError):
                decode_checkpoint(bytes(flipped))


def test_a_part_is_found():
    data = encode_checkpoint(CHECKPOINT)
    for end in range(len(data) - 1):
        with pytest.raises(ValueError):
            decode_checkpoint(data[:end])


def test_another_version_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr("batchkit.formats.checkpoint._VERSION", 99)
    data = encode_checkpoint(CHECKPOINT)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 99"):
        decode_checkpoint(data)


def test_how_the_job_stood_is_read_from_any_version(monkeypatch):
    monkeypatch.setattr("batchkit.formats.checkpoint._VERSION", 99)
    data = encode_checkpoint(CHECKPOINT)
    assert decode_standing(data) == Standing(100, 20, 10, 8, "stopped", "insufficient_quota")


@pytest.mark.parametrize("covered", [b'{"version":1', b'{"total":1,"limit":2', b'[{"version":1}'])
def test_what_does_not_say_how_the_job_stood_is_refused(covered):
    with pytest.raises(ValueError):
        decode_standing(b'%b,"crc32":"%08x"}' % (covered, crc32(covered)))
    with pytest.raises(ValueError, match="checksum"):
        decode_standing(covered)
