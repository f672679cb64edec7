"""What reaches Portkey, and what reaches nobody: the headers of the contract, and a key that stays a secret."""

import json
import re

import pytest

CANARY = "sk-canary-0123456789abcdef"
TRACE_ID = re.compile("[0-9a-f]{32}")
SPAN_ID = re.compile("[0-9a-f]{16}")


def message(text):
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def three_requests(tmp_path):
    """One that asks nothing of Portkey, one that asks for everything, one body without a wrapper."""
    fields = {
        "trace_id": "order-17",
        "parent_span_id": "1111111111111111",
        "span_name": "triage",
        "metadata": {"team": "apac", "ticket": "Größe"},
        "cache_namespace": "own",
        "cache_force_refresh": True,
    }
    records = [
        {"custom_id": "plain", "body": message("a")},
        {"custom_id": "full", "body": message("b"), "portkey": fields},
        message("c"),
    ]
    path = tmp_path / "three.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_portkeys_headers_are_those_of_the_run_and_of_the_record(command, record, files, three_requests):
    def refuse_first(number):
        return (503, {}, {"error": {"message": "busy"}}) if number == 0 else None

    endpoint = record(respond=refuse_first)
    command.environ |= {
        "PORTKEY_API_KEY": CANARY,
        "PORTKEY_PROVIDER_VIRTUAL_KEY": "virtual-key-1",
        "PORTKEY_BASE_URL": endpoint.base_url,
        "OPENAI_API_KEY": "sk-openai-not-for-portkey",
    }
    words = ["run", three_requests, "-o", files.results_path, "--concurrency", 1, "--job-id", "nightly"]
    words += ["--portkey-config", "pc-main", "--portkey-metadata", "team=emea", "--cache-namespace", "shared"]
    command(*words, "--limit", 2)
    command(*words)
    traces = {line["custom_id"]: line["batchkit"]["trace_id"] for line in files.results}
    by_question: dict[str, list[dict]] = {}
    for headers, body in endpoint.received:
        assert headers["x-portkey-api-key"] == CANARY
        assert headers["x-portkey-virtual-key"] == "virtual-key-1"
        assert headers["x-portkey-config"] == "pc-main"
        assert "authorization" not in headers
        assert "traceparent" not in headers
        assert SPAN_ID.fullmatch(headers["x-portkey-span-id"])
        sent = json.loads(body)
        assert set(sent) == {"model", "messages"}
        by_question.setdefault(sent["messages"][0]["content"], []).append(headers)

    spans = [headers["x-portkey-span-id"] for headers, _ in endpoint.received]
    assert len(set(spans)) == len(spans) == 4

    first, again = by_question["a"]
    assert first["x-portkey-trace-id"] == again["x-portkey-trace-id"] == traces["plain"]
    assert TRACE_ID.fullmatch(traces["plain"])
    assert json.loads(first["x-portkey-metadata"]) == {"team": "emea"}
    assert first["x-portkey-cache-namespace"] == "shared"
    assert "x-portkey-cache-force-refresh" not in first
    assert "x-portkey-span-name" not in first

    (full,) = by_question["b"]
    assert full["x-portkey-trace-id"] == traces["full"] == "order-17"
    assert full["x-portkey-parent-span-id"] == "1111111111111111"
    assert full["x-portkey-span-name"] == "triage"
    assert full["x-portkey-metadata"].isascii()
    assert json.loads(full["x-portkey-metadata"]) == {"team": "apac", "ticket": "Größe"}
    assert full["x-portkey-cache-namespace"] == "own"
    assert full["x-portkey-cache-force-refresh"] == "true"

    (bare,) = by_question["c"]
    assert bare["x-portkey-trace-id"] == traces["line-2"]
    assert TRACE_ID.fullmatch(traces["line-2"])


def test_trace_ids_follow_from_job_id_and_index_alone(command, record, files, three_requests):
    endpoint = record()
    words = ["run", three_requests, "-o", files.results_path, "--base-url", endpoint.base_url]
    command(*words, "--job-id", "nightly")
    first = {line["custom_id"]: line["batchkit"]["trace_id"] for line in files.results}
    command(*words, "--job-id", "nightly", "--overwrite")
    assert {line["custom_id"]: line["batchkit"]["trace_id"] for line in files.results} == first
    command(*words, "--job-id", "weekly", "--overwrite")
    other = {line["custom_id"]: line["batchkit"]["trace_id"] for line in files.results}
    assert other["plain"] != first["plain"]
    parents = [headers["traceparent"] for headers, _ in endpoint.received]
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", parent) for parent in parents)
    assert len(set(parents)) == len(parents) == 9
    assert not any(name.startswith("x-portkey") for headers, _ in endpoint.received for name in headers)


def test_an_openai_key_goes_to_portkey_for_a_named_provider(command, record, files, three_requests):
    endpoint = record()
    command.environ |= {"PORTKEY_API_KEY": "portkey-key-1234", "OPENAI_API_KEY": CANARY}
    words = ["run", three_requests, "-o", files.results_path, "--base-url", endpoint.base_url]
    command(*words, "--portkey-provider", "openai")
    for headers, _ in endpoint.received:
        assert headers["authorization"] == f"Bearer {CANARY}"
        assert headers["x-portkey-provider"] == "openai"


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_key_stands_in_no_byte_that_is_produced(refused, as_json, command, record, tmp_path, files, line):
    def repeat_the_key(number):
        error = {"message": f"Incorrect API key provided: {CANARY}.", "code": "invalid_api_key"}
        return (401, {"x-echo": CANARY}, {"error": error}) if refused else None

    endpoint = record(respond=repeat_the_key)
    command.environ |= {"OPENAI_API_KEY": CANARY, "OPENAI_BASE_URL": endpoint.base_url}
    path = tmp_path / "requests.jsonl"
    path.write_bytes(line(0) + line(1))
    words = ["run", path, "-o", files.results_path, "--progress", "log", *as_json]
    ran = command(*words, code=3 if refused else 0)
    assert endpoint.received[0][0]["authorization"] == f"Bearer {CANARY}"
    assert CANARY not in ran.out + ran.err
    made = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(made) > 3
    assert not any(CANARY.encode() in content for content in made)
