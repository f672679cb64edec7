"""Input lines: three shapes that become requests, and every way to become a bad line."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, strategies as st

from batchkit.formats.requests import BAD_LINE_CODE, parse_line, parse_record
from batchkit.records import BadLine, Line, PortkeyFields, Request

DATA = Path(__file__).parents[3] / "shared" / "data"
MESSAGES = [{"role": "user", "content": "Hi"}]
BODY = {"model": "m", "messages": MESSAGES}


def read(record, defaults=None, index=4):
    raw = record if isinstance(record, bytes) else json.dumps(record).encode()
    return parse_line(Line(index, 0, raw), defaults or {})


def request(record, defaults=None):
    parsed = read(record, defaults)
    assert isinstance(parsed, Request), parsed
    return parsed


def sent(record, defaults=None):
    return json.loads(request(record, defaults).body)


# --- shapes --------------------------------------------------------------------------------------------------------


def test_the_shape_of_openai_batch():
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {**BODY, "max_tokens": 9},
    }
    raw = json.dumps(line).encode()
    parsed = request(raw)
    assert json.loads(parsed.body) == line["body"]
    assert (parsed.index, parsed.custom_id, parsed.model, parsed.max_tokens) == (4, "a", "m", 9)
    assert parsed.input_crc32 == crc32(raw)
    assert parsed.portkey is None


def test_the_body_itself_gets_its_lines_number_for_a_name():
    parsed = request({**BODY, "temperature": 0})
    assert json.loads(parsed.body) == {**BODY, "temperature": 0}
    assert parsed.custom_id == "line-4"


def test_the_body_itself_may_bring_a_custom_id_and_portkey_which_are_not_sent():
    parsed = request({**BODY, "custom_id": "b", "portkey": {"trace_id": "t"}})
    assert json.loads(parsed.body) == BODY
    assert (parsed.custom_id, parsed.portkey) == ("b", PortkeyFields(trace_id="t"))


def test_the_shape_with_fields_for_portkey():
    fields = {
        "trace_id": "t",
        "span_id": "s",
        "parent_span_id": "p",
        "span_name": "my span",
        "metadata": {"team": "é" * 128, "_user": ""},
        "cache_namespace": "n",
        "cache_force_refresh": True,
    }
    assert request({"body": BODY, "portkey": fields}).portkey == PortkeyFields(**fields)


def test_what_a_record_says_of_itself_may_stand_in_three_places_of_which_the_last_wins():
    record = {
        "metadata": {"a": "beside", "b": "beside", "c": "beside"},
        "body": {**BODY, "metadata": {"b": "body", "c": "body"}},
        "portkey": {"metadata": {"c": "portkey"}},
    }
    assert request(record).metadata == {"a": "beside", "b": "body", "c": "portkey"}
    assert sent(record) == record["body"]
    assert request({**BODY, "metadata": {"a": "body"}}).metadata == {"a": "body"}
    assert request({"body": BODY}, {"metadata": {"a": "default"}}).metadata == {}


def test_what_is_no_text_is_kept_as_its_json_and_what_is_no_metadata_is_left():
    metadata = {"n": 1, "x": 1.5, "yes": True, "none": None, "list": ["é", {}], "text": "1"}
    kept = {"n": "1", "x": "1.5", "yes": "true", "none": "null", "list": '["é",{}]', "text": "1"}
    assert request({"body": {**BODY, "metadata": metadata}}).metadata == kept
    for nothing in (None, "team", ["team"], 3):
        assert request({"metadata": nothing, "body": {**BODY, "metadata": nothing}}).metadata == {}


def test_metadata_is_bounded():
    kept = request({"body": {**BODY, "metadata": {f"k{number}": "é" * 600 for number in range(70)}}}).metadata
    assert kept == {f"k{number}": "é" * 512 for number in range(64)}
    assert request({"metadata": {"k" * 129: "1", "k" * 128: "2"}, "body": BODY}).metadata == {"k" * 128: "2"}


UTF_16 = "it looks like UTF-16: save the input as UTF-8"
JSONL = "JSONL has one whole JSON object in each line"


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ('{"messages":[]}\n'.encode("utf-16").splitlines()[0], UTF_16),
        ('{"messages":[]}'.encode("utf-16-be"), UTF_16),
        (b"prompt,answer", JSONL),
        (b"[", JSONL),
        (b"{", JSONL),
        (b'"messages": [', JSONL),
        (bytes(200), JSONL),
        (b'{"messages":[{', ""),
    ],
)
def test_a_line_that_is_no_json_is_told_what_it_looks_like(raw, hint):
    bad = parse_line(Line(0, 0, raw), {})
    assert bad.message.startswith("not valid JSON: ")
    assert bad.message.partition("; ")[2] == hint


def test_a_bad_line_keeps_what_it_says_of_itself():
    parsed = read({"body": {**BODY, "stream": True, "metadata": {"team": "blue"}}})
    assert isinstance(parsed, BadLine)
    assert parsed.metadata == {"team": "blue"}


def test_extra_keys_beside_the_body_are_not_sent():
    assert (
        sent({"body": BODY, "api_base": "http://evil", "headers": {"x": "y"}, "messages": [], "priority": 1})
        == BODY
    )


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/chat/completions"])
def test_the_completions_path_may_be_named(url):
    assert sent({"url": url, "body": BODY}) == BODY


@pytest.mark.parametrize("name", ["go_batch_input.jsonl", "kmmlu_input.jsonl", "vllm_example_input.jsonl"])
def test_real_batch_inputs_are_requests(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    for index, raw in enumerate(path.read_bytes().splitlines()):
        parsed = read(raw, index=index)
        assert isinstance(parsed, Request), parsed
        record = json.loads(raw)
        assert json.loads(parsed.body) == record["body"]
        assert parsed.custom_id == record["custom_id"]


# --- defaults ------------------------------------------------------------------------------------------------------


def test_defaults_only_fill_what_a_record_leaves_out():
    defaults = {"model": "d", "temperature": 1, "top_p": 0.5}
    assert sent({"body": {**BODY, "temperature": 0}}, defaults) == {**BODY, "temperature": 0, "top_p": 0.5}
    assert sent({"messages": MESSAGES}, defaults) == {"messages": MESSAGES, **defaults}
    assert request({"messages": MESSAGES}, defaults).model == "d"
    assert request({"messages": MESSAGES}).model is None


def test_a_python_record_is_not_changed_by_filling_it():
    record = {"body": {"messages": MESSAGES}}
    parse_record(record, 0, {"model": "d"})
    assert record == {"body": {"messages": MESSAGES}}


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
        ({"max_tokens": 0}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "5"}, None),
        ({}, None),
    ],
)
def test_the_token_limit_of_a_body(body, limit):
    assert request({**BODY, **body}).max_tokens == limit


# --- bad lines -----------------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000

BAD_LINES = [
    (b"not JSON", "not valid JSON"),
    (b'{"messages":', "not valid JSON"),
    (b'{"messages":[1]} {}', "not valid JSON"),
    (b'{"messages":["\xff"]}', "not valid JSON"),
    (b'{"messages":["\\ud800"]}', "not valid JSON"),
    (b'{"messages":[1],"temperature":NaN}', "not valid JSON"),
    (b'{"messages":[1],"temperature":-Infinity}', "not valid JSON"),
    (b'{"messages":[1],"temperature":1e400}', "not valid JSON"),
    (DEEP, "not valid JSON"),
    (b'{"messages":' + DEEP + b"]" * 100_000 + b"}", "not valid JSON"),
    (b'{"messages":[1],"x":' + b"[" * 500 + b"]" * 500 + b"}", "cannot be written as JSON"),
    (b"[]", "a record is a JSON object, not a list"),
    (b"null", "not null"),
    (b"1", "not a number"),
    (b'"x"', "not a string"),
    (b"true", "not true or false"),
    ({}, 'neither "body" nor "messages"'),
    ({"body": []}, "body is a JSON object, not a list"),
    ({"body": None}, "body is a JSON object, not null"),
    ({"body": {}}, "messages is a list of at least one message"),
    ({"messages": []}, "messages is a list of at least one message"),
    ({"messages": "Hi"}, "messages is a list of at least one message"),
    ({"messages": {"role": "user"}}, "messages is a list of at least one message"),
    ({**BODY, "stream": True}, '"stream": true cannot be batched'),
    ({"body": {**BODY, "stream": True}}, '"stream": true cannot be batched'),
    ({**BODY, "model": 5}, "model is a string, not a number"),
    ({**BODY, "custom_id": 5}, "custom_id is a string, not a number"),
    ({**BODY, "custom_id": {}}, "custom_id is a string, not an object"),
    ({"body": BODY, "method": "GET"}, "method is \"POST\", not 'GET'"),
    ({"body": BODY, "method": None}, 'method is "POST"'),
    ({"body": BODY, "url": "/v1/embeddings"}, "where requests go is decided by the run alone"),
    ({"body": BODY, "url": "https://evil/v1/chat/completions"}, "where requests go"),
    ({"body": BODY, "url": "//evil/v1/chat/completions"}, "where requests go"),
    ({"body": BODY, "url": "/v1/../chat/completions"}, "where requests go"),
    ({"body": BODY, "url": "/v1/chat/completions?x=1"}, "where requests go"),
    ({"body": BODY, "url": ["/v1/chat/completions"]}, "where requests go"),
    ({"body": BODY, "url": None}, "where requests go"),
    ({"body": BODY, "portkey": []}, "portkey is a JSON object, not a list"),
    ({"body": BODY, "portkey": {"api_key": "x"}}, "portkey has no field 'api_key'"),
    ({"body": BODY, "portkey": {"cache_force_refresh": "true"}}, "cache_force_refresh is true or false"),
    ({"body": BODY, "portkey": {"metadata": []}}, "portkey.metadata is a JSON object"),
    ({"body": BODY, "portkey": {"metadata": {"a": 1}}}, "is a string of at most 128 characters"),
    ({"body": BODY, "portkey": {"metadata": {"a": "x" * 129}}}, "is a string of at most 128 characters"),
    ({"body": BODY, "portkey": {"metadata": {"a": "x" * 200_000}}}, "is a string of at most 128 characters"),
    ({"body": BODY, "portkey": {"metadata": {"x" * 20_000: "a"}}}, "bytes; at most 15360 get through"),
    ({"body": BODY, "portkey": {"metadata": {"x" * 20_000: 5}}}, "is a string of at most 128 characters"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_line_that_cannot_be_sent_says_why_in_a_sentence(line, reason):
    bad = read(line)
    assert isinstance(bad, BadLine)
    assert reason in bad.message
    assert len(bad.message) < 600
    assert (bad.index, bad.code, bad.input_crc32 != 0) == (4, BAD_LINE_CODE, True)


def test_a_bad_line_keeps_its_custom_id_where_it_has_one():
    assert read({"custom_id": "a", "body": {}}).custom_id == "a"
    assert read({"custom_id": 5, "body": BODY}).custom_id == "line-4"
    assert read(b"{").custom_id == "line-4"


def test_a_huge_word_is_not_repeated_in_the_message():
    for name in ("url", "method"):
        assert len(read({"body": BODY, name: "x" * 100_000}).message) < 600


def test_a_line_over_the_cap_is_a_bad_line():
    bad = parse_line(Line(4, 0, None), {})
    assert bad == BadLine(4, "line-4", BAD_LINE_CODE, "the line is longer than 64 MiB")


@pytest.mark.parametrize("name", ["trace_id", "span_id", "parent_span_id", "span_name", "cache_namespace"])
@pytest.mark.parametrize(
    "value",
    ["", " x", "x ", "a\rb", "a\nb", "a\0b", "\x7f", "é", "日本", "x" * 513, "x" * 200_000, 5, [], "a\tb"],
)
def test_what_no_header_can_carry_fails_its_line(name, value):
    bad = read({"body": BODY, "portkey": {name: value}})
    assert isinstance(bad, BadLine)
    assert f"portkey.{name} travels in a header" in bad.message


@pytest.mark.parametrize(
    "value", ["x", "x" * 512, "a b", "!~", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
)
def test_what_a_header_can_carry_passes(value):
    assert request({"body": BODY, "portkey": {"trace_id": value}}).portkey == PortkeyFields(trace_id=value)


def test_null_is_nothing_said():
    fields = dict.fromkeys(["trace_id", "metadata", "cache_force_refresh", "span_name"])
    assert request({"custom_id": None, "body": BODY, "portkey": fields}).portkey == PortkeyFields()
    assert request({"body": BODY, "portkey": None}).portkey is None


# --- Python records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"content": "\ud800"}]},
        {"custom_id": "\ud800", "body": BODY},
        {"body": BODY, "portkey": {"metadata": {"a": "\ud800"}}},
        {"body": BODY, "portkey": {"metadata": {"\ud800": "a"}}},
        {**BODY, "seed": 2**64},
        {**BODY, "x": object()},
        {**BODY, 5: 6},
        {"body": BODY, "url": {}},
        "text",
        None,
    ],
)
def test_a_python_record_that_is_no_json_is_a_bad_line(record):
    assert isinstance(parse_record(record, 0, {}), BadLine)


def test_a_python_record_may_hold_tuples():
    assert isinstance(parse_record({"messages": tuple(MESSAGES)}, 0, {}), Request)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)
KEYS = [
    "custom_id",
    "method",
    "url",
    "body",
    "messages",
    "portkey",
    "model",
    "stream",
    "metadata",
    "trace_id",
]


@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        json_values | st.just(MESSAGES) | st.dictionaries(st.sampled_from(KEYS), json_values),
    )
)
def test_no_record_raises(record):
    assert isinstance(parse_record(record, 0, {"model": "m"}), Request | BadLine)


@given(st.binary())
def test_no_line_raises(raw):
    assert isinstance(read(raw), Request | BadLine)
