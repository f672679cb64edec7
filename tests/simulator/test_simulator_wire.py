"""OpenAI's spelling."""

import pytest

from batchkit.simulator.wire import InvalidRequest, go_duration, portkey_headers, read_request


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.02, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9996, "1m0s"),
        (90.951, "1m30.951s"),
        (360, "6m0s"),
        (3_600, "1h0m0s"),
        (86_461.01, "24h1m1.01s"),
    ],
)
def test_durations_are_spelled_as_go_does(seconds, spelled):
    assert go_duration(seconds) == spelled


@pytest.mark.parametrize(
    ("model", "answered_by"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("@prod/gpt-4o", "gpt-4o-2024-08-06"),
        ("@prod", "@prod"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
        (None, "gpt-4o-mini-2024-07-18"),
    ],
)
def test_an_alias_is_answered_by_its_dated_model(model, answered_by):
    import orjson

    assert read_request(orjson.dumps({"model": model, "messages": [{}]})).model == answered_by


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b'{"messages": NaN}', None),
        (b"[]", None),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": "hi"}', "messages"),
        (b'{"messages": ["hi"]}', "messages"),
        (b'{"messages": [{}], "stream": true}', "stream"),
        (b'{"messages": [{}], "model": 7}', "model"),
        (b'{"messages": [{}], "max_tokens": 0}', "max_tokens"),
        (b'{"messages": [{}], "max_completion_tokens": "9"}', "max_completion_tokens"),
        (b'{"messages": [{}], "n": true}', "n"),
        (b'{"messages": [{}], "n": 1000}', "n"),
    ],
)
def test_what_is_no_chat_request_names_the_field_that_is_wrong(body, param):
    with pytest.raises(InvalidRequest) as caught:
        read_request(body)
    assert caught.value.param == param


def test_the_lower_of_two_limits_holds():
    asked = read_request(b'{"messages": [{}], "max_tokens": 9, "max_completion_tokens": 5, "n": null}')
    assert (asked.max_tokens, asked.choices) == (5, 1)
    assert read_request(b'{"messages": [{}], "max_tokens": null}').max_tokens is None


def test_only_who_speaks_to_portkey_is_answered_as_by_portkey():
    assert portkey_headers({"traceparent": "00-a-b-01"}) == {}
    assert portkey_headers({"x-portkey-api-key": "k"}) == {
        "x-portkey-provider": "openai",
        "x-portkey-trace-id": "",
    }
