"""What is asked of Portkey is checked before anything leaves: sizes, alphabets, timeouts, and what its cache needs."""

import json

import forked_command
import pytest

from batchkit.formats.headers import HEADER_BYTES, endpoint_address
from batchkit.formats.requests import BAD_LINE_CODE, parse_record
from batchkit.records import BadLine, Request

command = forked_command.command

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = b'{"choices":[{"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION


def metadata(size, *, text="x"):
    """Metadata that take about so many bytes."""
    return {f"k{at:06d}": text * 100 for at in range(size // 113)}


def parsed(fields, **words):
    address = endpoint_address("http://127.0.0.1/v1", version="0", timeout=600, portkey_api_key="k", **words)
    return parse_record({"body": BODY, "portkey": fields}, 0, {}, address=address)


@pytest.mark.parametrize(
    ("run", "record", "fits"),
    [
        (0, 0, True),
        (0, 14_000, True),
        (14_000, 0, True),
        (5_000, 9_000, True),
        (0, 16_000, False),
        (5_000, 11_000, False),
        (14_000, 2_000, False),
    ],
)
def test_run_and_record_together_fit_into_what_gets_through(run, record, fits):
    config = json.dumps({"a": "x" * run}) if run else None
    read = parsed({"metadata": metadata(record)}, portkey_config=config)
    assert isinstance(read, Request) == fits, read
    if isinstance(read, BadLine):
        assert read.code == BAD_LINE_CODE
        assert f"at most {HEADER_BYTES} get through" in read.message


def test_a_record_is_measured_as_it_is_sent_in_escapes():
    assert isinstance(parsed({"metadata": metadata(5_000)}), Request)
    assert isinstance(parsed({"metadata": metadata(5_000, text="é")}), BadLine)


def test_a_record_that_fits_nowhere_is_found_without_an_endpoint():
    record = {"body": BODY, "portkey": {"metadata": metadata(16_000)}}
    assert isinstance(parse_record(record, 0, {}), BadLine)


def test_the_longest_ids_are_counted_also_for_a_retry():
    """A retry's span is a child of the record's own, so its header is one more."""
    ids = {"trace_id": "t" * 512, "span_id": "s" * 512}
    room = HEADER_BYTES - 1_400
    fits = [
        size
        for size in range(room - 1_000, room, 50)
        if isinstance(parsed({**ids, "metadata": metadata(size)}), Request)
    ]
    without = [
        size
        for size in range(room - 1_000, room, 50)
        if isinstance(parsed({"metadata": metadata(size)}), Request)
    ]
    assert len(without) > len(fits)


def test_a_record_of_too_many_headers_is_not_sent(command, serve, files, tmp_path):
    endpoint = serve(lambda _: GOOD)
    path = tmp_path / "requests.jsonl"
    records = [{"body": BODY}, {"body": BODY, "portkey": {"metadata": metadata(9_000)}}]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    command.environ |= {
        "PORTKEY_API_KEY": "pk-0123456789",
        "BATCHKIT_PORTKEY_CONFIG": json.dumps({"a": "x" * 9_000}),
    }
    command("run", path, "-o", files.results_path, "--base-url", endpoint.base_url, code=1)
    assert len(endpoint.received) == 1
    (failure,) = files.errors
    assert failure["error"]["code"] == "invalid_request_line"
    assert failure["batchkit"]["attempts"] == 0


def test_a_run_of_too_many_headers_is_wrong_usage(command, record, files, write_requests):
    endpoint = record()
    command.environ |= {"BATCHKIT_PORTKEY_CONFIG": json.dumps({"a": "x" * 20_000})}
    ran = command("run", write_requests(1), "-o", files.results_path, "--base-url", endpoint.base_url, code=2)
    assert "at most" in ran.err
    assert not endpoint.received
    assert not files.results_path.exists()


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(600, 599_000), (20, 19_000), (1, 950), (0.5, 475), (0.01, 9), (0.0001, 1)]
)
def test_the_gateway_is_told_a_time_just_under_ours(seconds, milliseconds):
    address = endpoint_address("http://127.0.0.1/v1", version="0", timeout=seconds, portkey_api_key="k")
    assert address.headers["x-portkey-request-timeout"] == str(milliseconds)
    assert milliseconds < max(seconds * 1000, 1.5)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("namespace", [[], ["--cache-namespace", "shared"]])
def test_the_cache_is_asked_for_by_presence_alone(force, namespace, command, record, files, tmp_path):
    endpoint = record()
    path = tmp_path / "requests.jsonl"
    fields = [None, {"cache_force_refresh": False}, {"cache_force_refresh": True}, {"cache_namespace": "own"}]
    records = [{"body": {**BODY, "n": at}, "portkey": each} for at, each in enumerate(fields)]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    command.environ |= {"PORTKEY_API_KEY": "pk-0123456789", "BATCHKIT_CACHE_FORCE_REFRESH": str(force)}
    words = ["run", path, "-o", files.results_path, "--base-url", endpoint.base_url, "--concurrency", 1]
    command(*words, *namespace)
    run = "true" if force else None
    # Without a namespace the cache is split by all headers, the trace id among them, and never hit.
    shared = "shared" if namespace else "batchkit" if force else None
    sent = [
        (headers.get("x-portkey-cache-force-refresh"), headers.get("x-portkey-cache-namespace"))
        for headers, _ in endpoint.received
    ]
    assert sent == [(run, shared), (run, shared), ("true", shared), (run, "own")]
