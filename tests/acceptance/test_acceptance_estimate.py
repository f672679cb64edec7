"""An estimate is had before a cent is spent, by anyone, for any input; a pilot costs what it says."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import forked_command
import pytest
from forked_command import ForkedCommand, Forker

forker = forked_command.forker


@pytest.fixture
def command(tmp_path: Path, forker: Forker) -> Iterator[ForkedCommand]:
    made = ForkedCommand(tmp_path, forker)
    yield made
    made.close()


def test_nothing_is_sent_and_no_key_is_needed(command, record, write_requests):
    endpoint = record()
    path = write_requests(30)
    ran = command("estimate", path, "--base-url", endpoint.base_url, "--rpm", "60", "--json")
    found = ran.json
    assert endpoint.received == []
    assert found["requests"] == 30
    assert found["completion_tokens"] == {"low": 30, "expected": 600, "high": 600}
    assert found["cost"]["currency"] == "USD"
    assert 0 < found["cost"]["low"] < found["cost"]["expected"] == found["cost"]["high"]
    assert found["cost"]["unpriced_models"] == []
    assert found["seconds"] == 30
    assert found["models"]["gpt-4o-mini"]["prompt_tokens"] == found["prompt_tokens"]
    assert ran.err == ""


def test_the_text_is_for_people_and_goes_to_stdout(command, write_requests):
    ran = command("estimate", write_requests(30))
    assert "requests                  30" in ran.out
    assert "completion tokens" in ran.out
    assert "(exact)" in ran.out


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_input_may_come_through_a_pipe_with_bad_lines_in_it(command, line, pack):
    stdin = pack(line(0) + b"{broken\n\n" + line(1))
    found = command("estimate", "-", "--json", stdin=stdin).json
    assert (found["requests"], found["invalid"]) == (2, 1)


def test_what_is_not_priced_is_named_until_a_file_gives_its_price(command, write_requests, tmp_path):
    path = write_requests(1)
    path.write_text(path.read_text().replace("gpt-4o-mini", "mine"))
    unpriced = command("estimate", path, "--json").json["cost"]
    assert (unpriced["high"], unpriced["known_high"], unpriced["unpriced_models"]) == (None, 0, ["mine"])
    prices = tmp_path / "prices.toml"
    prices.write_text("[mine]\ninput = 1000000\noutput = 1000000\n")
    priced = command("estimate", path, "--prices", prices, "--json").json
    assert priced["cost"]["high"] == priced["prompt_tokens"] + 20
    prices.write_text("[mine]\ninput = -1\noutput = 1\n")
    refused = command("estimate", path, "--prices", prices, code=2)
    assert "prices.toml: mine: input is -1; it is US dollars for a million tokens" in refused.err


@pytest.mark.parametrize(
    "words",
    [
        ("none.jsonl",),
        (".",),
        ("requests.jsonl", "--rpm", "0"),
        ("requests.jsonl", "--pilot", "0"),
        ("requests.jsonl", "--pilot", "3"),
        ("requests.jsonl", "--prices", "none.toml"),
        ("requests.jsonl", "--output", "x"),
    ],
)
def test_wrong_usage_exits_with_2(command, write_requests, words):
    write_requests(3)
    ran = command("estimate", *words, code=2)
    assert ran.err
    assert ran.out == ""


def test_a_pilot_sends_as_many_as_it_says_and_measures_them(command, record, write_requests):
    endpoint = record()
    path = write_requests(100)
    found = command(
        "estimate", path, "--pilot", "10", "--base-url", endpoint.base_url, "--progress", "off", "--json"
    ).json
    asked = [json.loads(body)["messages"][0]["content"] for _, body in endpoint.received]
    numbers = sorted(int(question.removeprefix("What is ").removesuffix("?")) for question in asked)
    assert [number // 10 for number in numbers] == list(range(10))
    assert found["measured"]
    assert found["completion_tokens"] == {"low": 200, "expected": 200, "high": 200}
    assert found["pilot"]["answers"] == 10
    assert found["pilot"]["cost"] == pytest.approx(10 * (10 * 0.15 + 2 * 0.6) / 1e6)
    assert found["seconds"] > 0


def test_a_refused_key_ends_a_pilot(command, simulate, write_requests):
    endpoint = simulate(refuse_key=True)
    ran = command("estimate", write_requests(100), "--pilot", "10", "--base-url", endpoint.base_url, code=3)
    assert "key" in ran.err
    assert ran.out == ""


def test_a_large_input_tells_how_far_it_is_and_is_held_nowhere(command, write_requests):
    """On all cores, with lines of every kind."""
    path = write_requests(1)
    (one,) = path.read_bytes().splitlines(keepends=True)
    # What is long and no prompt takes no time to count.
    long = one.replace(b'"model"', b'"user": "%b", "model"' % (1500 * b"x"))
    assert len(long) > 1500
    path.write_bytes((long + one + b"{broken\n") * 6000)
    found = command("estimate", path, "--json", "--progress", "log").json
    assert (found["requests"], found["invalid"]) == (12_000, 6000)
    few = path.with_name("few.jsonl")
    few.write_bytes((long + one + b"{broken\n") * 6)
    assert found["prompt_tokens"] == 1000 * command("estimate", few, "--json").json["prompt_tokens"]
