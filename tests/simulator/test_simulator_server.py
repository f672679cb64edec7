"""Real requests to a simulator in the same event loop: every option, every fault."""

import asyncio
import hashlib
import io
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from batchkit.errors import UsageError
from batchkit.rules.tokens import count_prompt, count_text
from batchkit.simulator.server import Simulator
from batchkit.simulator.settings import SimulatorSettings


def body(text: str = "Hello!", **fields: object) -> dict:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}


class Client:
    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session

    async def ask(self, asked: object, **options: object) -> tuple[int, dict, Mapping[str, str]]:
        data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        url = f"{self.simulator.base_url}/chat/completions"
        async with self.session.post(url, data=io.BytesIO(data), **options) as response:
            return response.status, await response.json(), response.headers


@asynccontextmanager
async def simulated(**options: object) -> AsyncIterator[Client]:
    settings = SimulatorSettings(**{"instant": True, **options})
    # No kept connections: aiohttp would silently send again on one that was reset.
    connector = aiohttp.TCPConnector(force_close=True)
    async with Simulator(settings) as simulator, aiohttp.ClientSession(connector=connector) as session:
        yield Client(simulator, session)


async def test_a_request_is_answered_with_a_completion_that_counts_true():
    async with simulated() as client:
        asked = body("What is the law?")
        status, answer, headers = await client.ask(asked)
        assert status == 200
        assert headers["Content-Type"].startswith("application/json")
        assert headers["x-request-id"].startswith("req_")
        assert int(headers["openai-processing-ms"]) < 1_000
        assert not [name for name in headers if name.lower().startswith(("x-portkey", "x-ratelimit"))]
        assert answer["object"] == "chat.completion"
        assert answer["id"].startswith("chatcmpl-")
        assert answer["created"] == pytest.approx(time.time(), abs=5)
        assert answer["model"] == "gpt-4o-mini-2024-07-18"
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["role"] == "assistant"
        usage = answer["usage"]
        assert usage["prompt_tokens"] == count_prompt(asked).tokens
        assert usage["completion_tokens"] == count_text(choice["message"]["content"])
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_ends_the_answer_at_exactly_that_length(field):
    async with simulated() as client:
        _, answer, _ = await client.ask(body(**{field: 5}))
        assert answer["choices"][0]["finish_reason"] == "length"
        assert (
            answer["usage"]["completion_tokens"]
            == 5
            == count_text(answer["choices"][0]["message"]["content"])
        )


async def test_n_choices_are_given_and_billed():
    async with simulated() as client:
        _, answer, _ = await client.ask(body(n=3))
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        assert answer["usage"]["completion_tokens"] == sum(map(count_text, texts))


async def test_every_answer_of_every_simulator_has_an_id_of_its_own():
    ids = set()
    for _ in range(2):
        async with simulated() as client:
            given = [await client.ask(body()) for _ in range(3)]
        ids |= {answer["id"] for _, answer, _ in given} | {headers["x-request-id"] for *_, headers in given}
        assert all(len(answer["id"]) == len("chatcmpl-") + 32 for _, answer, _ in given)
    assert len(ids) == 2 * 2 * 3


async def test_the_same_seed_answers_alike_in_any_order():
    async def answers(seed: int, order: list[int]) -> dict[int, object]:
        async with simulated(seed=seed) as client:
            given = await asyncio.gather(*(client.ask(body(f"Question {number}")) for number in order))
        return {
            number: (answer["choices"], answer["usage"])
            for number, (_, answer, _) in zip(order, given, strict=True)
        }

    order = list(range(30))
    shuffled = random.Random(1).sample(order, len(order))
    first = await answers(3, order)
    assert await answers(3, shuffled) == first
    assert await answers(4, order) != first


async def test_any_prefix_leads_to_chat_completions_and_nothing_else_is_found():
    async with simulated() as client:
        root = client.simulator.base_url.removesuffix("/v1")
        for path in ("/v1/chat/completions", "/chat/completions", "/openai/v1/chat/completions"):
            async with client.session.post(root + path, json=body()) as response:
                assert response.status == 200
        async with client.session.get(f"{root}/v1/models") as response:
            assert "gpt-4o-mini" in {model["id"] for model in (await response.json())["data"]}
        for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/")):
            async with client.session.request(method, root + path) as response:
                assert response.status == 404
                error = (await response.json())["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")


@pytest.mark.parametrize("asked", [b"{", b"[]", b"\xff", {"model": "gpt-4o"}, {"messages": []}])
async def test_what_is_no_chat_request_is_refused_as_openai_does(asked):
    async with simulated() as client:
        status, answer, _ = await client.ask(asked)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert client.simulator.stats.refused == 1


async def test_large_bodies_and_headers_are_taken():
    async with simulated() as client:
        status, answer, _ = await client.ask(
            body("word " * 400_000), headers={"x-portkey-metadata": "m" * 30_000}
        )
        assert status == 200
        assert answer["usage"]["prompt_tokens"] > 400_000


async def test_portkeys_ids_come_back():
    sent = {
        "x-portkey-trace-id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "x-portkey-span-id": "00f067aa0ba902b7",
        "x-portkey-parent-span-id": "00f067aa0ba902b8",
        "x-portkey-span-name": "línea 7",
        "x-portkey-provider": "anthropic",
    }
    async with simulated() as client:
        _, _, headers = await client.ask(body(), headers=sent)
        assert {name: headers[name] for name in sent} == sent


async def test_latency_is_lived_through():
    options = {
        "instant": False,
        "first_token_s": 5,
        "first_token_sigma": 0,
        "tokens_per_s": 1e9,
        "speed": 100,
    }
    async with simulated(**options) as client:
        started = time.monotonic()
        _, _, headers = await client.ask(body())
        assert 0.05 <= time.monotonic() - started < 2.5
        assert int(headers["openai-processing-ms"]) >= 50


async def test_over_the_request_limit_is_429_with_the_time_to_wait():
    async with simulated(rpm=6) as client:
        status, _, headers = await client.ask(body())
        assert status == 200
        assert headers["x-ratelimit-limit-requests"] == "6"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"] == "10s"
        assert "x-ratelimit-limit-tokens" not in headers
        status, answer, headers = await client.ask(body())
        assert status == 429
        assert (answer["error"]["type"], answer["error"]["code"]) == ("requests", "rate_limit_exceeded")
        assert 1 <= int(headers["retry-after"]) <= 10
        assert 0 < int(headers["retry-after-ms"]) <= 10_000


async def test_the_token_limit_counts_prompt_and_longest_answer():
    async with simulated(tpm=600, output_tokens=50) as client:
        status, answer, headers = await client.ask(body(max_tokens=1_000))
        assert status == 429
        assert answer["error"]["message"].startswith("Request too large")
        assert "retry-after" not in headers
        prompt = count_prompt(body()).tokens
        _, _, headers = await client.ask(body())
        assert headers["x-ratelimit-limit-tokens"] == "600"
        status, answer, headers = await client.ask(body())
        assert (status, answer["error"]["type"]) == (429, "tokens")
        # It holds 10 and fills with 10 a second: the first request left it owing, the second needs it full.
        assert float(headers["retry-after-ms"]) / 1_000 == pytest.approx((prompt + 50) / 10, abs=1)


async def test_over_the_limit_in_flight_is_429():
    async with simulated(max_in_flight=1, faults={"hang": 1}) as client:
        hanging = asyncio.create_task(client.ask(body("one")))
        async with asyncio.timeout(5):
            while client.simulator.stats.in_flight == 0:
                await asyncio.sleep(0)
        status, answer, headers = await client.ask(body("two"))
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert headers["retry-after"] == "1"
        hanging.cancel()
        async with asyncio.timeout(5):
            while client.simulator.stats.in_flight:
                await asyncio.sleep(0)
        status, _, _ = await client.ask(body("one"))
        assert status == 200
        assert client.simulator.stats.max_in_flight == 1


async def test_a_refused_key_is_401_for_every_request():
    async with simulated(refuse_key=True) as client:
        for asked in (body(), b"{"):
            status, answer, _ = await client.ask(asked)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert client.simulator.stats.billed_prompt_tokens == 0


async def test_the_quota_is_empty_after_its_number_of_answers():
    async with simulated(quota=2) as client:
        answers = [await client.ask(body(str(number))) for number in range(4)]
        assert [status for status, _, _ in answers] == [200, 200, 429, 429]
        error = answers[-1][1]["error"]
        assert error["type"] == error["code"] == "insufficient_quota"
        assert "retry-after" not in answers[-1][2]


@pytest.mark.parametrize(
    ("kind", "status", "error_type"),
    [
        ("500", 500, "server_error"),
        ("503", 503, "service_unavailable"),
        ("429", 429, "requests"),
        ("error200", 200, "server_error"),
    ],
)
async def test_error_faults_come_before_a_good_answer(kind, status, error_type):
    async with simulated(faults={kind: 1}, fault_times=2) as client:
        for _ in range(2):
            given, answer, headers = await client.ask(body())
            assert (given, answer["error"]["type"]) == (status, error_type)
            assert ("retry-after" in headers) == (kind == "429")
        given, answer, _ = await client.ask(body())
        assert given == 200
        assert answer["choices"]
        stats = client.simulator.stats
        assert (stats.received, stats.faulted, stats.answered) == (3, 2, 1)
        assert stats.billed_completion_tokens == answer["usage"]["completion_tokens"]


async def test_empty_is_a_completion_without_choices_whose_prompt_is_billed():
    async with simulated(faults={"empty": 1}) as client:
        status, answer, _ = await client.ask(body())
        assert (status, answer["choices"]) == (200, [])
        assert answer["usage"]["completion_tokens"] == 0
        assert client.simulator.stats.billed_prompt_tokens == answer["usage"]["prompt_tokens"] > 0
        assert (await client.ask(body()))[1]["choices"]


async def test_html_is_a_page_with_status_200():
    async with simulated(faults={"html": 1}) as client:
        async with client.session.post(
            f"{client.simulator.base_url}/chat/completions", json=body()
        ) as response:
            assert response.status == 200
            assert response.content_type == "text/html"
            assert (await response.text()).startswith("<!DOCTYPE html>")
        assert client.simulator.stats.billed_prompt_tokens == 0


async def test_reset_ends_the_connection_without_an_answer():
    async with simulated(faults={"reset": 1}) as client:
        with pytest.raises(aiohttp.ClientOSError, match="reset by peer"):
            await client.ask(body())
        assert client.simulator.stats.billed_prompt_tokens == 0
        assert (await client.ask(body()))[0] == 200


async def test_cut_promises_a_length_and_sends_half_of_it_billed():
    async with simulated(faults={"cut": 1}) as client:
        async with client.session.post(
            f"{client.simulator.base_url}/chat/completions", json=body()
        ) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert client.simulator.stats.answered == 0
        billed = client.simulator.stats.billed_completion_tokens
        _, answer, _ = await client.ask(body())
        assert answer["usage"]["completion_tokens"] == billed > 0
        assert client.simulator.stats.billed_completion_tokens == 2 * billed


async def test_hang_never_answers():
    async with simulated(faults={"hang": 1}) as client:
        with pytest.raises(asyncio.TimeoutError):
            await client.ask(body(), timeout=aiohttp.ClientTimeout(total=0.05))
        assert (await client.ask(body()))[0] == 200


async def test_leaving_does_not_wait_for_what_hangs():
    started = time.monotonic()
    async with simulated(faults={"hang": 1}) as client:
        hanging = asyncio.create_task(client.ask(body()))
        async with asyncio.timeout(5):
            while client.simulator.stats.in_flight == 0:
                await asyncio.sleep(0)
        await client.simulator.__aexit__(None, None, None)
        with pytest.raises(aiohttp.ClientError):
            await hanging
    assert time.monotonic() - started < 5


async def test_bodies_being_failed_are_forgotten_once_answered():
    async with simulated(faults={"500": 1}) as client:
        for number in range(20):
            assert (await client.ask(body(str(number))))[0] == 500
        assert len(client.simulator._failing) == 20
        for number in range(20):
            assert (await client.ask(body(str(number))))[0] == 200
        assert not client.simulator._failing


async def test_of_bodies_that_never_come_back_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr("batchkit.simulator.server._MOST_FAILING", 5)
    async with simulated(faults={"500": 1}) as client:
        for number in range(9):
            await client.ask(body(str(number)))
        assert len(client.simulator._failing) == 5
        assert (await client.ask(body("8")))[0] == 200


async def test_stats_tell_what_was_received_answered_refused_and_billed():
    async with simulated(rpm=120, faults={"500": 0.5}) as client:
        outcomes = [await client.ask(body(f"{number}")) for number in range(12)]
        root = client.simulator.base_url.removesuffix("/v1")
        async with client.session.get(f"{root}/simulator/stats") as response:
            stats = await response.json()
        statuses = [status for status, _, _ in outcomes]
        assert stats["received"] == 12
        assert stats["answered"] == statuses.count(200)
        assert stats["refused"] == statuses.count(429) > 0
        assert stats["faulted"] == statuses.count(500)
        for field in ("prompt_tokens", "completion_tokens"):
            assert stats[f"billed_{field}"] == sum(
                answer["usage"][field] for status, answer, _ in outcomes if status == 200
            )
        assert (stats["in_flight"], stats["max_in_flight"]) == (0, 1)


async def test_the_ledger_has_one_line_for_each_billed_answer(tmp_path: Path):
    ledger = tmp_path / "ledger.jsonl"
    sent = json.dumps(body()).encode()
    async with simulated(ledger=str(ledger), faults={"cut": 1}) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.ask(sent, headers={"x-portkey-trace-id": "t1"})
        headers = {"X-Client-Request-Id": "c1", "traceparent": "00-a-b-01"}
        _, answer, _ = await client.ask(sent, headers=headers)
        await client.ask(b"{")
        # Written before the answer is sent, so it is all there while the simulator runs.
        lost, given = map(json.loads, ledger.read_text().splitlines())
    assert lost["fault"] == "cut"
    assert lost["trace_id"] == "t1"
    assert given == {
        "trace_id": None,
        "client_request_id": "c1",
        "traceparent": "00-a-b-01",
        "body_sha256": hashlib.sha256(sent).hexdigest(),
        "fault": None,
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": answer["usage"]["completion_tokens"],
    }


async def test_a_port_in_use_and_a_ledger_without_a_folder_are_usage_errors(tmp_path: Path):
    async with simulated() as client:
        port = int(client.simulator.base_url.split(":")[2].split("/")[0])
        with pytest.raises(UsageError, match=f"port {port}"):
            async with Simulator(SimulatorSettings(port=port)):
                pass
    with pytest.raises(UsageError, match="ledger"):
        async with Simulator(SimulatorSettings(ledger=str(tmp_path / "none" / "ledger"))):
            pass


async def test_nothing_is_logged_for_a_request(caplog: pytest.LogCaptureFixture):
    async with simulated(faults={"reset": 0.3, "500": 0.3}) as client:
        given = await asyncio.gather(*(client.ask(body(str(n))) for n in range(20)), return_exceptions=True)
        assert any(isinstance(answer, aiohttp.ClientError) for answer in given)
    assert not [record for record in caplog.records if record.name != "asyncio"]
