"""What an estimate says is what the input asks for, and what a pilot measured."""

import asyncio
import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

import batchkit
from batchkit.api import run_in_loop
from batchkit.errors import RunStopped, UsageError
from batchkit.estimation import estimate_input
from batchkit.records import Outcome, Usage
from batchkit.settings import Settings
from batchkit.testing import reply

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("PORTKEY_API_KEY", "PORTKEY_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def line(index, **body):
    messages = [{"role": "user", "content": f"What is {index}?"}]
    return json.dumps({"custom_id": f"r{index}", "body": {"messages": messages, **body}}).encode() + b"\n"


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines, name="in.jsonl", pack=bytes):
        path = tmp_path / name
        path.write_bytes(pack(b"".join(lines)))
        return path

    return write_lines


def estimate(path, **settings):
    return batchkit.estimate(path, **{"progress": "off", **settings})


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no data files in {DATA}")
@pytest.mark.parametrize("name", ["kmmlu", "go_batch"])
def test_prompts_come_to_what_openai_billed_for_each_of_them(name):
    """All of them together here; each by itself in the tests of `rules.tokens`."""
    answers = [json.loads(each) for each in (DATA / f"{name}_output.jsonl").read_bytes().splitlines()]
    billed = sum(each["response"]["body"]["usage"]["prompt_tokens"] for each in answers)
    found = estimate(DATA / f"{name}_input.jsonl")
    assert found["requests"] == len(answers)
    assert found["prompt_tokens"] == billed
    assert found["exact"] == 1
    completed = sum(each["response"]["body"]["usage"]["completion_tokens"] for each in answers)
    assert found["completion_tokens"]["low"] <= completed <= found["completion_tokens"]["high"]
    least = Decimal(billed) * Decimal("0.15e-6") + len(answers) * Decimal("0.6e-6")
    assert name != "kmmlu" or found["cost"]["low"] == float(least)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_defaults_fill_in_and_bad_lines_are_counted_apart(write, pack):
    path = write(line(0), b"\n", b"{broken\n", line(1, model="gpt-4o", max_tokens=5), pack=pack)
    found = estimate(path, model="gpt-4o-mini", set={"max_tokens": 9})
    assert (found["requests"], found["invalid"]) == (2, 1)
    assert found["completion_tokens"] == {"low": 2, "expected": 14, "high": 14}
    assert list(found["models"]) == ["gpt-4o", "gpt-4o-mini"]
    assert found["pilot"] is None
    assert found["seconds"] is None


def test_only_the_first_lines_are_looked_at_where_that_is_asked(write):
    path = write(b"{broken\n", *(line(index, model="gpt-4o") for index in range(9)))
    found = estimate(path, limit=4)
    assert (found["requests"], found["invalid"]) == (3, 1)


def test_an_empty_input_takes_nothing(write):
    found = estimate(write(b""), rpm=60)
    assert (found["requests"], found["invalid"], found["exact"]) == (0, 0, None)
    assert found["completion_tokens"] == {"low": 0, "expected": 0, "high": 0}
    assert found["cost"]["high"] == 0
    assert found["seconds"] == 0


def test_limits_tell_the_time(write):
    path = write(*(line(index, model="gpt-4o", max_tokens=100) for index in range(30)))
    found = estimate(path, rpm=60)
    assert found["seconds"] == 30
    tokens = found["prompt_tokens"] + found["completion_tokens"]["expected"]
    assert estimate(path, rpm=60, tpm=1000)["seconds"] == pytest.approx(60 * tokens / 1000, abs=0.1)


def test_given_prices_are_used_and_named(write):
    path = write(line(0, model="mine", max_tokens=10), line(1, model="gpt-4o", max_tokens=10))
    unpriced = estimate(path)
    assert unpriced["cost"]["unpriced_models"] == ["mine"]
    assert unpriced["cost"]["low"] is None
    given = {
        "mine": {"prompt": 1_000_000, "completion": 1_000_000},
        "not-used": {"prompt": 1, "completion": 1},
    }
    found = estimate(path, prices=given)
    mine = found["models"]["mine"]
    assert mine["cost"]["high"] == mine["prompt_tokens"] + 10
    assert found["cost"]["high"] > mine["cost"]["high"]
    assert found["price_list"]["given"] == ["mine"]
    assert found["price_list"]["name"].startswith("genai-prices ")


def test_whose_prices_they_are_is_told_as_to_a_run(write, monkeypatch):
    path = write(line(0, model="llama-3.1-8b-instant", max_tokens=10))
    assert estimate(path)["cost"]["unpriced_models"] == ["llama-3.1-8b-instant"]
    assert estimate(path, base_url="https://api.groq.com/openai/v1")["cost"]["unpriced_models"] == []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef0123")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.groq.com/openai/v1")
    assert estimate(path)["cost"]["unpriced_models"] == []
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", "/nowhere")
    assert estimate(path)["requests"] == 1


@pytest.mark.parametrize("pilot", [0, -1, 1001, True, 2.5, "3"])
def test_a_pilot_is_a_number_of_requests(write, pilot):
    with pytest.raises(UsageError, match="pilot is"):
        estimate(write(line(0, model="gpt-4o")), pilot=pilot, simulate=True)


def test_a_pilot_needs_somewhere_to_send(write):
    with pytest.raises(UsageError, match="no endpoint to send to"):
        estimate(write(line(0, model="gpt-4o")), pilot=1)


def test_an_input_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="cannot read the input"):
        estimate(tmp_path / "none.jsonl")


async def test_it_may_be_called_while_a_loop_is_running(write):
    path = write(line(0, model="gpt-4o", max_tokens=10), line(1, model="gpt-4o", max_tokens=10))
    found = estimate(path, pilot=2, simulate=True)
    assert found["pilot"]["simulated"]
    assert found["pilot"]["answers"] == 2
    assert asyncio.get_running_loop().is_running()


def test_a_pilot_sends_requests_from_everywhere_and_measures_by_model(write, monkeypatch):
    sent = []

    async def stream(records, **settings):
        assert settings["limit"] is None
        for index, record in enumerate(records):
            sent.append(int(record["custom_id"][1:]))
            tokens = 100 + sent[-1] % 10 if record["body"]["model"] == "gpt-4o" else 7
            answer = reply(usage=Usage(10, tokens, 10 + tokens))
            yield Outcome(index, record["custom_id"], answer, "t", 1, 0.5, 1.0)

    monkeypatch.setattr("batchkit.estimation.stream", stream)
    lines = [
        b"{broken\n"
        if index % 5 == 4
        else line(index, model="mine" if index == 50 else "gpt-4o", max_tokens=200)
        for index in range(100)
    ]
    path = write(*lines)
    prices = {"mine": {"prompt": 1, "completion": 1}}
    found = estimate(path, pilot=8, limit=100, prices=prices, base_url="http://127.0.0.1:9/v1")
    assert len(sent) == 8
    assert sent == sorted(sent)
    assert sent[0] < 15
    assert sent[-1] >= 85
    model = found["models"]["gpt-4o"]
    assert model["measured"]
    assert 79 * 100 <= model["completion_tokens"]["low"] < model["completion_tokens"]["high"] <= 79 * 110
    assert not found["models"]["mine"]["measured"]
    assert found["models"]["mine"]["completion_tokens"]["high"] == 200
    assert found["pilot"]["requests"] == 8
    # As the answers name the model: 8 times 10 and 840-odd tokens of gpt-4o-mini.
    assert 0.0001 < found["pilot"]["cost"] < 0.001
    assert found["seconds"] == 0.5


def test_a_pilot_is_a_stream_whatever_the_run_is_to_do_with_its_files(write):
    path = write(line(0, model="gpt-4o", max_tokens=10))
    found = estimate(
        path, pilot=1, simulate=True, retry_failed=True, allow_growth=True, force=True, rescan=True
    )
    assert found["pilot"]["answers"] == 1


def test_a_refused_pilot_stops_with_its_reason(write, monkeypatch):
    async def stream(records, **settings):
        raise RunStopped("the key was refused", code="invalid_api_key")
        yield reply()

    monkeypatch.setattr("batchkit.estimation.stream", stream)
    with pytest.raises(RunStopped, match="the key was refused"):
        estimate(write(line(0, model="gpt-4o")), pilot=1, simulate=True)


def test_an_input_without_requests_has_no_pilot(write):
    assert estimate(write(b"{broken\n"), pilot=3, simulate=True)["pilot"] is None


def test_more_cores_say_the_same(write):
    long = "word " * 1000
    path = write(
        *(line(index, model=f"gpt-4o-{index % 3}", user=str(index), stop=long) for index in range(2000))
    )
    assert path.stat().st_size > 9 << 20
    settings = Settings(progress="off")
    alone, together = (
        estimate_input(str(path), settings, {}, processes=processes, run_in_loop=run_in_loop)
        for processes in (1, 2)
    )
    assert alone == together
    assert alone["requests"] == 2000
