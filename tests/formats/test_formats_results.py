"""Output lines: what is written is read back, and what is not whole is found."""

from __future__ import annotations

import json
from array import array
from decimal import Decimal
from zlib import crc32

import orjson
import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from batchkit.formats.completions import read_answer
from batchkit.formats.results import (
    BrokenLineError,
    OutputLine,
    check_lines,
    decode,
    encode,
    headed_lines,
    is_whole,
    run_from_json,
    run_to_json,
    scan_lines,
)
from batchkit.records import Billed, Failure, FailureKind, FoundLimit, Outcome, Reply, RunHeader, Usage

TRAPS = [
    ',"batchkit":{"index":7,"x":1',
    '},"error":null',
    '},"error":{"code":',
    ',"body":',
    ',"crc32":"00000000"}}',
    '"',
    "\\",
    '\\"',
    "\n\r\u2028\x00\x1b",
    "😀é",
]
texts = st.lists(st.sampled_from(TRAPS) | st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(
    "".join
)
# The same traps as keys and objects, where no quote is escaped.
TRAP_OBJECTS = [
    {"batchkit": {"index": 7, "crc32": "00000000"}},
    {"a": {}, "batchkit": {"index": 7}, "error": None},
    {"x": {}, "error": None, "batchkit": {"index": 1}},
    {"x": {}, "error": {"code": "a", "message": "b"}},
    {"body": {}, "request_id": 1, "response": {"status_code": 1, "body": {}}},
    {"a": 1, "body": None},
]
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(TRAP_OBJECTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def spelled(document, spaced):
    """As a provider may send it: with spaces between its tokens, or none."""
    return json.dumps(document, ensure_ascii=False).encode() if spaced else orjson.dumps(document)


@st.composite
def replies(draw):
    document = {
        **draw(st.dictionaries(texts, documents, max_size=3)),
        **draw(st.sampled_from(TRAP_OBJECTS)),
        "model": draw(texts | st.none()),
        "choices": [
            {
                "message": {"content": draw(texts)},
                "finish_reason": draw(st.sampled_from(["stop", "length", None])),
            }
        ],
        "usage": draw(
            st.sampled_from([None, {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}])
        ),
        "error": None,
    }
    status = draw(st.sampled_from([200, 201, 246]))
    cache = {"x-portkey-cache-status": draw(st.sampled_from(["HIT", "MISS"]))}
    answer = read_answer(status, cache, spelled(document, draw(st.booleans())), 0.0)
    assert isinstance(answer, Reply)
    return replace(answer, request_id=draw(texts))


@st.composite
def failures(draw):
    kind, code, message = draw(st.sampled_from(FailureKind)), draw(texts), draw(texts)
    if draw(st.booleans()):
        return Failure(kind, code, message)
    document = draw(documents.filter(lambda each: each is not None))
    body = spelled(document, draw(st.booleans()))
    read = read_answer(400, {}, body, 0.0)
    status, body = draw(st.sampled_from([(200, body), (400, body), (503, None)]))
    return Failure(
        kind,
        code,
        message,
        status,
        draw(texts),
        body,
        model="" if body is None else read.model,
        usage=None if body is None else read.usage,
    )


dollars = st.decimals(0, 10**9, places=12)
moments = st.floats(0, 2e9, allow_nan=False)
headers = st.builds(
    RunHeader,
    moments,
    texts,
    st.dictionaries(texts, documents, max_size=3).map(lambda each: orjson.loads(orjson.dumps(each))),
    texts,
    st.none() | st.integers(0, 2**60),
    st.booleans(),
    texts,
    max_cost=st.none() | dollars,
    unseen_cost=dollars,
    prices=st.dictionaries(texts, st.dictionaries(texts, texts, max_size=2), max_size=2),
)
outcomes = st.builds(
    Outcome,
    st.integers(0, 2**40),
    texts,
    replies() | failures(),
    texts,
    st.integers(0, 100),
    moments,
    moments,
    st.dictionaries(st.sampled_from([kind.value for kind in FailureKind]), st.integers(1, 99), max_size=3),
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(st.builds(Billed, texts, st.builds(Usage, *[st.integers(0, 2**50)] * 5)), max_size=2).map(tuple),
    dollars,
    st.dictionaries(
        texts | st.sampled_from(["run", "batchkit", "index", "error", "crc32"]), texts, max_size=3
    ),
    st.lists(
        st.builds(
            FoundLimit,
            texts | st.sampled_from(["run", "batchkit"]),
            st.none() | st.sampled_from([480.0, 1e18, 0.001]),
            in_flight=st.none() | st.integers(1, 9),
        ),
        max_size=2,
    ).map(tuple),
)
lines = st.builds(OutputLine, outcomes, texts, st.none() | headers)

REPLY = Reply(200, "req_1", b'{"choices": [{"message": {}}]}')
OUTCOME = Outcome(12, "a", REPLY, "t" * 32, 1, 0.81, 1763820000.1, {"timeout": 1}, 0xBEEF)
LINE = OutputLine(OUTCOME, "job-1", RunHeader(1763820000.0, "http://x/v1", {"model": "m"}))


def sealed(text):
    """Another program's line with a checksum as ours have it."""
    covered = text.encode()
    return covered + b',"crc32":"%08x"}}' % crc32(covered)


@given(lines)
def test_what_was_written_is_read_back(line):
    written = encode(line)
    assert written.endswith(b"\n")
    assert written.count(b"\n") == 1
    assert is_whole(written[:-1])
    assert decode(written[:-1]) == line


# --- many lines at a time ------------------------------------------------------------------------------------------


@given(st.lists(lines, max_size=5))
def test_a_scan_reads_of_many_lines_what_reading_each_tells(several):
    written = [encode(line) for line in several]
    check_lines(written)
    indexes, input_crc32s = scan_lines(written)
    assert indexes == [line.outcome.index for line in several]
    assert list(input_crc32s) == [line.outcome.input_crc32 for line in several]
    assert headed_lines(written) == [line for line in several if line.run is not None]


def test_a_flipped_bit_is_found_in_its_line_by_a_scan_and_by_a_check():
    written = [encode(OutputLine(replace(OUTCOME, index=index), "job")) for index in range(3)]
    for place in range(len(written[1])):
        for bit in range(8):
            flipped = bytearray(written[1])
            flipped[place] ^= 1 << bit
            for look in (check_lines, scan_lines):
                with pytest.raises(BrokenLineError, match="checksum") as broken:
                    look([written[0], bytes(flipped), written[2]])
                assert broken.value.at == 1, (place, bit)


def test_a_limit_stands_in_its_line_with_the_model_it_is_of():
    found = FoundLimit("gpt-4o-mini", 480.0), FoundLimit("", None, 2.5, 20)
    own = json.loads(encode(replace(LINE, outcome=replace(OUTCOME, limits=found))))["batchkit"]
    assert json.dumps(own["limits"]) == (
        '[{"model": "gpt-4o-mini", "requests_per_min": 480}, {"model": "", "tokens_per_min": 2.5, "in_flight": 20}]'
    )
    assert "limits" not in json.loads(encode(LINE))["batchkit"]


@pytest.mark.parametrize("limit", ['{"model":"m","in_flight":0}', '{"in_flight":1}', '{"model":"m","in_flight":[]}', "1",
                                   '{"model":"m","requests_per_min":-5}'])  # fmt: skip
def test_a_limit_that_is_none_is_no_line_of_ours(limit):
    written = encode(replace(LINE, outcome=replace(OUTCOME, limits=(FoundLimit("m", in_flight=7),))))[:-1]
    covered = written.replace(b'{"model":"m","in_flight":7}', limit.encode()).decode()
    assert limit in covered
    with pytest.raises(BrokenLineError, match="it is not a line of batchkit's"):
        decode(sealed(covered.rpartition(',"crc32"')[0]))


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity", "much", ""])
def test_an_amount_that_is_none_is_no_line_of_ours(amount):
    written = encode(replace(LINE, outcome=replace(OUTCOME, maybe_cost=Decimal(7))))[:-1]
    covered = written.replace(b'"maybe_cost":"7"', f'"maybe_cost":"{amount}"'.encode()).decode()
    with pytest.raises(BrokenLineError, match="is no amount"):
        decode(sealed(covered.rpartition(',"crc32"')[0]))


@pytest.mark.parametrize("at", [-1.0, 253402300800.0, 1e300])
def test_a_time_without_a_date_is_no_line_of_ours(at):
    with pytest.raises(BrokenLineError, match="is no time"):
        decode(encode(replace(LINE, outcome=replace(OUTCOME, finished_at=at)))[:-1])


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "{",
        '"batchkit":{"index":1,"input_crc32":"0000beef"',
        '1,"input_crc32":"0000beef","x":1',
        ',"batchkit":{"index":1',
        ',"batchkit":{"index":,"input_crc32":"0000beef"',
        ',"batchkit":{"index":-1,"input_crc32":"0000beef"',
        ',"batchkit":{"index":+1,"input_crc32":"0000beef"',
        ',"batchkit":{"index":1_0,"input_crc32":"0000beef"',
        ',"batchkit":{"index": 1,"input_crc32":"0000beef"',
        ',"batchkit":{"index":1.5,"input_crc32":"0000beef"',
        ',"batchkit":{"index":1,"job_id":"j","input_crc32":"0000beef"',
        ',"batchkit":{"index":1,"input_crc32":"0000BEEF"',
        ',"batchkit":{"index":1,"input_crc32":"000beef"',
        ',"batchkit":{"index":1,"input_crc32":"00000beef"',
        ',"batchkit":{"index":1,"input_crc32":"000 beef"',
        ',"batchkit":{"index":1,"input_crc32":"000gbeef"',
        ',"batchkit":{"index":1,"input_crc32":"000ébeef"',
        ',"batchkit":{"index":1,"input_crc32":"0000beef',
    ],
)
def test_a_whole_line_of_another_program_is_found_by_a_scan(tail):
    ours, others = encode(LINE), sealed(tail) + b"\n"
    check_lines([ours, others, ours])
    with pytest.raises(BrokenLineError, match="not a line of batchkit's") as broken:
        scan_lines([ours, others, ours])
    assert broken.value.at == 1


def test_of_several_broken_lines_the_first_is_named():
    ours, others, torn = encode(LINE), sealed("{}") + b"\n", encode(LINE)[1:]
    for several, message in (
        ([ours, others, torn], "not a line"),
        ([ours, torn, others], "checksum"),
        ([ours, b"\n", ours], "checksum"),
        ([ours, b"", torn], "checksum"),
    ):
        with pytest.raises(BrokenLineError, match=message) as broken:
            scan_lines(several)
        assert broken.value.at == 1


def test_seals_that_moved_to_the_next_line_are_found():
    written = encode(LINE)
    with pytest.raises(BrokenLineError, match="checksum") as broken:
        check_lines([written[:-5], written[-5:] + written])
    assert broken.value.at == 0


def test_no_lines_are_whole():
    check_lines([])
    assert scan_lines([]) == ([], array("I"))
    assert headed_lines([]) == []


@given(lines)
def test_every_line_is_openai_batch_output_that_keeps_the_bodys_bytes(line):
    written = encode(line)
    record = json.loads(written)
    answer = line.outcome.answer
    assert list(record) == ["id", "custom_id", "response", "error", "batchkit"]
    assert record["id"].endswith(f"{line.outcome.index:016x}")
    assert record["custom_id"] == line.outcome.custom_id
    assert (record["error"] is None) == line.outcome.succeeded
    assert (record["response"] is None) == (answer.status is None)
    assert list(record["batchkit"])[-1] == "crc32"
    if answer.body is not None:
        assert answer.body in written


@pytest.mark.parametrize(
    "line", [LINE, OutputLine(replace(OUTCOME, answer=Failure(FailureKind.TIMEOUT, "timeout", "m")), "j")]
)
def test_a_line_cut_at_any_byte_is_not_whole(line):
    written = encode(line)[:-1]
    for end in range(len(written)):
        assert not is_whole(written[:end])
        with pytest.raises(BrokenLineError):
            decode(written[:end])


def test_a_flipped_bit_is_found_wherever_it_is():
    written = encode(LINE)[:-1]
    for place in range(len(written)):
        for bit in range(8):
            flipped = bytearray(written)
            flipped[place] ^= 1 << bit
            assert not is_whole(bytes(flipped)), (place, bit)


@given(lines, st.data())
def test_bytes_put_in_or_taken_out_are_found(line, data):
    written = encode(line)[:-1]
    place = data.draw(st.integers(0, len(written) - 1))
    assert not is_whole(written[:place] + b"x" + written[place:])
    assert not is_whole(written[:place] + written[place + 1 :])


@pytest.mark.parametrize("depth", [1, 500, 1000, 1021, 1022])
def test_a_body_as_deep_as_can_be_read_is_read_back(depth):
    body = b'{"choices":[{"message":{}}],"x":' + b"[" * depth + b"]" * depth + b"}"
    answer = read_answer(200, {}, body, 0.0)
    assert isinstance(answer, Reply)
    line = OutputLine(replace(OUTCOME, answer=answer), "job")
    assert decode(encode(line)[:-1]) == line


def test_usage_and_model_are_read_from_the_body():
    body = b'{"model":"m","choices":[{"message":{}}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
    written = encode(OutputLine(replace(OUTCOME, answer=Reply(200, "r", body)), "job"))
    answer = decode(written[:-1]).outcome.answer
    assert (answer.model, answer.usage) == ("m", Usage(3, 2, 5))


@pytest.mark.parametrize(
    ("status", "reason", "flags"),
    [
        (200, "length", ["truncated"]),
        (246, "stop", ["guardrail"]),
        (246, "length", ["truncated", "guardrail"]),
        (200, "stop", None),
    ],
)
def test_results_to_look_at_twice_are_flagged(status, reason, flags):
    answer = replace(REPLY, status=status, finish_reason=reason)
    meta = json.loads(encode(OutputLine(replace(OUTCOME, answer=answer), "job")))["batchkit"]
    assert meta.get("flags") == flags


def test_a_failure_line_says_why():
    answer = Failure(FailureKind.RATE_LIMITED, "slow_down", "Slow down", 429, "r", b'{"error":{}}')
    record = json.loads(encode(OutputLine(replace(OUTCOME, answer=answer), "job")))
    assert record["response"] == {"status_code": 429, "request_id": "r", "body": {"error": {}}}
    assert record["error"] == {"code": "slow_down", "message": "Slow down"}
    assert record["batchkit"]["reason"] == "rate_limited"
    assert record["batchkit"]["retries"] == {"timeout": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"not JSON",
        sealed('{"batchkit":{"x":1'),
        sealed('{"custom_id":"a","response":null,"error":null,"batchkit":{"index":0'),
        sealed('{"custom_id":"a","response":[],"error":null,"batchkit":{"index":0,"job_id":"j"'),
        sealed(
            '{"custom_id":"a","response":{"status_code":200,"request_id":"","body":{broken},"error":null,"batchkit":{"index":0'
        ),
        sealed('not JSON,"batchkit":{"index":0'),
    ],
)
def test_a_line_that_encode_did_not_write_is_broken(line):
    with pytest.raises(BrokenLineError):
        decode(line)


@given(headers)
def test_a_run_header_is_read_back(header):
    assert run_from_json(json.loads(json.dumps(run_to_json(header)))) == header
