"""LiteLLM's proxy, which nobody here wrote: its answers are read for what they are."""

import json
import urllib.request
from collections import Counter

import pytest

from batchkit.endpoint import open_endpoint
from batchkit.formats.headers import endpoint_address
from batchkit.records import FailureKind as Kind, Request, Trace

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def body(model, number=1):
    return {"model": model, "messages": [{"role": "user", "content": f"What is {number}?"}]}


@pytest.fixture
def run(litellm, command, files, tmp_path):
    """Runs a job with one request for each of the models."""

    def start(*models, words=(), code=0):
        path = tmp_path / "requests.jsonl"
        path.write_text("".join(json.dumps(body(model, at)) + "\n" for at, model in enumerate(models)))
        base_url = f"http://127.0.0.1:{litellm.port}/v1"
        ran = command(
            "run", path, "-o", files.results_path, "--base-url", base_url, "--json", *words, code=code
        )
        return ran.json

    return start


@pytest.fixture
def answered(litellm, until):
    """How many completions the proxy has been asked for in this test, by the status of its answers."""

    def count():
        # Its log is in order: once this request stands in it, so do all before.
        marker = f"/health/liveliness?after={id(count)}"
        with urllib.request.urlopen(f"http://127.0.0.1:{litellm.port}{marker}", timeout=60) as answer:
            answer.read()
        until(lambda: marker in litellm.written())
        asked = [line for line in litellm.written().splitlines() if '"POST /v1/chat/completions ' in line]
        return Counter(int(line.split('" ')[1].split()[0]) for line in asked)

    return count


def test_a_job_of_fifty_requests_succeeds_and_its_usage_adds_up(run, files, answered):
    summary = run(*["answering"] * 50)
    files.assert_summary_is_a_fold(summary, 50)
    assert summary["requests"]["succeeded"] == summary["attempts"]["total"] == 50
    assert summary["usage"]["unknown"] == 0
    assert summary["usage"]["total_tokens"] == 50 * 30
    assert set(summary["models"]) == {"answering"}
    assert answered() == {200: 50}


def test_401_stops_the_run_after_one_request(run, command, files, answered):
    del command.environ["OPENAI_API_KEY"]
    stopped = run(*["answering"] * 8, words=["--concurrency", 1], code=3)
    assert stopped["stop_reason"] == "auth_error"
    assert stopped["requests"]["pending"] == 8
    assert not files.errors
    assert answered() == {401: 1}


def test_a_wrong_key_that_is_called_a_bad_request_stops_the_run_after_twenty(run, command, files, answered):
    # Without a database the proxy cannot look a key up, and says that instead of 401.
    command.environ["OPENAI_API_KEY"] = "sk-of-somebody-else"
    stopped = run(*["answering"] * 30, words=["--concurrency", 1], code=3)
    assert stopped["stop_reason"] == "no_db_connection"
    assert answered() == {400: 20}
    assert len(files.errors) + stopped["requests"]["pending"] == 30


def test_a_model_that_the_proxy_does_not_know_stops_the_run_after_twenty(run, answered):
    stopped = run(*["nobody"] * 30, words=["--concurrency", 1], code=3)
    assert stopped["stop_reason"] == "invalid_request_error"
    assert answered() == {400: 20}


def test_a_job_over_models_that_answer_and_models_that_do_not_ends_with_each_in_its_file(
    run, files, answered
):
    models = ["answering", "broken", "crowded", "nobody", "answering", "late"]
    summary = run(*models, words=["--max-attempts", 2], code=1)
    files.assert_summary_is_a_fold(summary, len(models))
    assert sorted(line["batchkit"]["index"] for line in files.results) == [0, 4]
    attempts = {line["batchkit"]["index"]: line["batchkit"]["attempts"] for line in files.errors}
    assert attempts == {1: 2, 2: 1, 3: 1, 5: 2}
    assert summary["attempts"]["by_reason"] == {"server_error": 1, "timeout": 1}
    assert answered() == {200: 2, 500: 2, 400: 2, 408: 2}


@pytest.mark.parametrize(
    ("model", "status", "kind", "code"),
    [
        ("limited", 429, Kind.RATE_LIMITED, "throttling_error"),
        ("broken", 500, Kind.SERVER_ERROR, "internal_server_error"),
        ("crowded", 400, Kind.INVALID_REQUEST, "invalid_request_error"),
        ("late", 408, Kind.TIMEOUT, "invalid_request_error"),
        ("nobody", 400, Kind.INVALID_REQUEST, "invalid_request_error"),
    ],
)
async def test_an_error_of_the_proxys_is_read_for_what_it_is(model, status, kind, code, litellm, command):
    key = command.environ["OPENAI_API_KEY"]
    base_url = f"http://127.0.0.1:{litellm.port}/v1"
    address = endpoint_address(base_url, version="0", timeout=30, openai_api_key=key)
    async with open_endpoint(address, timeout=30) as endpoint:
        failure = await endpoint.attempt(Request(0, "a", json.dumps(body(model)).encode()), TRACE)
    assert (failure.status, failure.kind, failure.code) == (status, kind, code)
    assert "litellm" in failure.message.lower() or "Invalid model name" in failure.message


def test_the_proxys_completions_stand_in_the_results_as_openais_client_reads_them(
    run, files, read_with_openai
):
    run(*["answering"] * 5)
    assert read_with_openai(files.results_path) == {"read": 5, "refused": []}
