import pytest

from batchkit.errors import UsageError
from batchkit.formats.headers import HEADER_BYTES, attempt_headers, endpoint_address, id_lines
from batchkit.records import PortkeyFields, Trace

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7")

KEYS = {"openai_api_key": "sk-canary-canary", "portkey_api_key": "pk-canary-canary"}


@pytest.mark.parametrize(
    ("given_", "portkey", "bearer"),
    [
        ({}, False, False),
        ({"openai_api_key": "k"}, False, True),
        ({"portkey_api_key": "p"}, True, False),
        ({"portkey_api_key": "p", "openai_api_key": "k"}, True, False),
        ({"portkey_api_key": "p", "openai_api_key": "k", "portkey_config": "c"}, True, False),
        ({"portkey_api_key": "p", "openai_api_key": "k", "portkey_provider": "openai"}, True, True),
        ({"openai_api_key": "k", "portkey_provider": "openai"}, True, True),
        ({"openai_api_key": "k", "portkey_metadata": {"a": "b"}}, False, True),
        ({"openai_api_key": "k", "portkey_virtual_key": "v"}, False, True),
    ],
)
def test_the_openai_key_goes_to_portkey_only_with_a_provider(given_, portkey, bearer):
    address = endpoint_address("http://x/v1", version="1", timeout=60, **given_)
    assert address.portkey is portkey
    assert ("Authorization" in address.headers) is bearer
    assert ("x-portkey-virtual-key" in address.headers) is (portkey and "portkey_virtual_key" in given_)


@pytest.mark.parametrize(
    ("timeout", "milliseconds"), [(600, "599000"), (10, "9500"), (0.1, "95"), (0.0001, "1")]
)
def test_portkey_is_told_to_stop_a_little_before_us(timeout, milliseconds):
    address = endpoint_address("http://x", version="1", timeout=timeout, portkey_api_key="p")
    assert address.headers["x-portkey-request-timeout"] == milliseconds


def test_what_the_run_asks_of_portkey_is_in_the_headers():
    address = endpoint_address(
        "http://x/v1/",
        version="1",
        timeout=60,
        portkey_metadata={"가": "나"},
        cache_namespace="n",
        cache_force_refresh=True,
    )
    assert address.url == "http://x/v1/chat/completions"
    assert address.headers["x-portkey-metadata"] == r'{"\uac00":"\ub098"}'
    assert address.headers["x-portkey-cache-namespace"] == "n"
    assert address.headers["x-portkey-cache-force-refresh"] == "true"
    assert (
        "x-portkey-cache-force-refresh" not in endpoint_address("http://x", version="1", timeout=60).headers
    )


def test_no_key_shows_in_the_repr():
    address = endpoint_address("http://x", version="1", timeout=60, portkey_provider="openai", **KEYS)
    assert "canary" not in repr(address)
    assert "canary" in str(dict(address.headers))


@pytest.mark.parametrize(
    "wrong",
    [
        {"openai_api_key": "canary\n"},
        {"portkey_api_key": "canary\0"},
        {"portkey_config": "canaré"},
        {"portkey_metadata": {"a": "canary" * 30}},
        {"portkey_metadata": {f"key-{n}": "canary" * 20 for n in range(200)}},
    ],
)
def test_what_no_header_can_carry_is_refused_without_being_shown(wrong):
    with pytest.raises(UsageError) as caught:
        endpoint_address("http://x", version="1", timeout=60, **{"portkey_provider": "openai", **wrong})
    assert "canar" not in str(caught.value)


PORTKEY = endpoint_address(
    "http://x", version="1", timeout=60, portkey_api_key="p", portkey_metadata={"a": "run", "b": "run"}
)
ELSEWHERE = endpoint_address("http://x", version="1", timeout=60)


def test_portkey_is_sent_the_ids_in_headers_of_its_own():
    assert attempt_headers(PORTKEY, None, TRACE) == {
        "x-portkey-trace-id": TRACE.trace_id,
        "x-portkey-span-id": TRACE.span_id,
        "x-portkey-parent-span-id": TRACE.parent_span_id,
    }


def test_a_records_fields_go_over_the_runs():
    fields = PortkeyFields(
        span_name="s", metadata={"a": "own"}, cache_namespace="n", cache_force_refresh=True
    )
    headers = attempt_headers(PORTKEY, fields, Trace("mine", "span"))
    assert headers == {
        "x-portkey-trace-id": "mine",
        "x-portkey-span-id": "span",
        "x-portkey-span-name": "s",
        "x-portkey-metadata": '{"a":"own","b":"run"}',
        "x-portkey-cache-namespace": "n",
        "x-portkey-cache-force-refresh": "true",
    }


def test_a_record_that_asks_for_nothing_leaves_the_runs_headers_alone():
    assert "x-portkey-metadata" not in attempt_headers(PORTKEY, PortkeyFields(), TRACE)


def test_headers_that_would_not_get_through_are_refused():
    fields = PortkeyFields(metadata={f"key-{n}": "v" * 128 for n in range(HEADER_BYTES // 128)})
    with pytest.raises(ValueError, match="bytes; at most"):
        attempt_headers(PORTKEY, fields, TRACE)


def test_others_are_sent_the_ids_as_w3c_and_openai_have_it():
    assert attempt_headers(ELSEWHERE, None, TRACE) == {
        "traceparent": f"00-{TRACE.trace_id}-{TRACE.span_id}-01",
        "X-Client-Request-Id": f"{TRACE.trace_id}-{TRACE.span_id}",
    }


@pytest.mark.parametrize("own", ["mine", "0" * 32, "A" * 32, "g" * 32, "a" * 31, "로"])
def test_an_id_of_ones_own_is_made_one_for_w3c(own):
    first = attempt_headers(ELSEWHERE, None, Trace(own, "b7ad6b7169203331"))
    again = attempt_headers(ELSEWHERE, None, Trace(own, "own span"))
    version, trace_id, span_id, flags = first["traceparent"].split("-")
    assert (version, span_id, flags) == ("00", "b7ad6b7169203331", "01")
    assert len(trace_id) == 32
    assert trace_id != own
    assert int(trace_id, 16)
    assert again["traceparent"].split("-")[1] == trace_id
    assert len(again["traceparent"].split("-")[2]) == 16
    assert first["X-Client-Request-Id"] == f"{own}-b7ad6b7169203331"


@pytest.mark.parametrize(
    ("asked", "namespace"),
    [
        ({}, None),
        ({"portkey_config": "pc-slug"}, None),
        ({"portkey_config": '{"retry":{"attempts":2}}'}, None),
        ({"portkey_config": '{"cache":{"mode":"simple"}}'}, "batchkit"),
        ({"portkey_config": '{"cache":{"mode":"simple"}}', "cache_namespace": "mine"}, "mine"),
        ({"portkey_config": '{"targets":[{"cache":{"mode":"simple"}}]}'}, "batchkit"),
        ({"cache_force_refresh": True}, "batchkit"),
    ],
)
def test_a_run_that_wants_the_cache_has_a_namespace(asked, namespace):
    """Without one the cache is split by all headers, and each request's trace id would make it a miss."""
    address = endpoint_address("http://x", version="1", timeout=60, portkey_api_key="p" * 20, **asked)
    assert address.headers.get("x-portkey-cache-namespace") == namespace


@pytest.mark.parametrize("address", [PORTKEY, ELSEWHERE])
def test_the_ids_are_the_same_in_one_piece(address):
    ours = Trace(TRACE.trace_id, TRACE.span_id, derived=True)
    headers = attempt_headers(address, None, ours)
    assert id_lines(address, ours) == "".join(f"{name}: {value}\r\n" for name, value in headers.items())


@pytest.mark.parametrize("address", [PORTKEY, ELSEWHERE])
@pytest.mark.parametrize(
    "own", ["", "mine", "0" * 32, "A" * 32, "a" * 31, "a" * 32 + "\n", "a\r\nb: c", "로"]
)
def test_ids_that_may_not_be_as_ours_are_in_no_piece(address, own):
    assert id_lines(address, Trace(own, TRACE.span_id)) is None
    assert id_lines(address, Trace(TRACE.trace_id, own)) is None
    assert id_lines(address, TRACE) is None
