"""An estimate says what is known, names what is not, and tells what each figure rests on."""

import json
import re
from dataclasses import replace
from decimal import Decimal

import pytest

from batchkit.formats.estimate import Basis, Figures, Pilot, build, render

MINI = Figures(
    requests=200,
    exact=200,
    prompt_tokens=629_360,
    completion_tokens=(200, 43_000, 3_276_800),
    known_cost=(Decimal("0.094524"), Decimal("0.120204"), Decimal("2.060484")),
    batch_cost=(Decimal("0.047262"), Decimal("0.060102"), Decimal("1.030242")),
    seconds=720.0,
)
NOTHING = (Decimal(0), Decimal(0), Decimal(0))
MINE = Figures(2, 0, 50, (2, 430, None), NOTHING, None, 7.2, False, ("mine",), ("mine",))
BOTH = Figures(
    202,
    200,
    629_410,
    (202, 43_430, None),
    MINI.known_cost,
    None,
    727.2,
    False,
    ("mine",),
    ("mine",),
)
BASIS = Basis(215, "genai-prices 0.2.3", "2026-11-10", rpm=1000)


def one(figures=MINI, basis=BASIS, **words):
    return build(figures, {"gpt-4o-mini": figures}, basis, invalid=words.get("invalid", 0))


def test_the_json_is_what_the_contract_promises():
    estimate = json.loads(json.dumps(one()))
    assert estimate["requests"] == 200
    assert estimate["prompt_tokens"] == 629_360
    assert estimate["completion_tokens"] == {"low": 200, "expected": 43_000, "high": 3_276_800}
    assert estimate["cost"] == {
        "currency": "USD",
        "low": 0.094524,
        "expected": 0.120204,
        "high": 2.060484,
        "unpriced_models": [],
    }
    assert estimate["seconds"] == 720
    assert one(replace(MINI, seconds=0.0312))["seconds"] == 0.0312, "little is not nothing"
    assert estimate["exact"] == 1
    model = estimate["models"]["gpt-4o-mini"]
    assert model == {key: estimate[key] for key in model}
    assert {"requests", "prompt_tokens", "completion_tokens", "cost", "seconds"} <= model.keys()


def test_what_is_not_known_is_null_with_the_rest_beside_it():
    estimate = build(BOTH, {"gpt-4o-mini": MINI, "mine": MINE}, BASIS, invalid=3)
    assert estimate["cost"] == {
        "currency": "USD",
        "low": None,
        "expected": None,
        "high": None,
        "unpriced_models": ["mine"],
        "known_low": 0.094524,
        "known_expected": 0.120204,
        "known_high": 2.060484,
    }
    assert estimate["batch_cost"] is None
    assert estimate["completion_tokens"]["high"] is None
    assert estimate["exact"] == 0.9901
    assert estimate["invalid"] == 3
    assert estimate["models"]["mine"]["cost"]["unpriced_models"] == ["mine"]
    assert "not known for mine" in estimate["assumptions"]["high"]
    assert "where the tokenizer and the framing are public" in estimate["assumptions"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"rpm": None}, "not known: no limit was given"),
        ({}, "at least, under 1,000 requests a minute"),
        (
            {"tpm": 2e6},
            "at least, under 1,000 requests a minute and 2,000,000 tokens a minute, the expected answers counted",
        ),
        (
            {"rpm": None, "concurrency": 8, "pilot": Pilot(9, 9, None, 0.5)},
            "at least, under 0.50 s an answer, 8 at a time",
        ),
        ({"rpm": None, "pilot": Pilot(9, 0, None, None)}, "not known: no limit was given"),
    ],
)
def test_the_time_tells_its_bounds(limits, words):
    assert one(basis=replace(BASIS, **limits))["assumptions"]["seconds"].startswith(words)


def test_the_assumptions_are_named_and_a_pilot_takes_their_place():
    assumed = one()["assumptions"]
    assert "215 tokens" in assumed["expected"]
    assert "genai-prices 0.2.3 of 2026-11-10" in assumed["cost"]
    basis = replace(BASIS, pilot=Pilot(20, 19, Decimal("0.0123"), 0.81))
    measured = replace(MINI, measured=True)
    estimate = one(measured, basis)
    assert estimate["measured"]
    assert estimate["pilot"] == {
        "requests": 20,
        "answers": 19,
        "cost": 0.0123,
        "latency_s": 0.81,
        "simulated": False,
    }
    assert estimate["assumptions"]["expected"] == "mean of 19 answers"
    assert "95 % interval by Student's t" in estimate["assumptions"]["low"]
    some = build(BOTH, {"gpt-4o-mini": measured, "mine": MINE}, basis, invalid=0)
    assert "(gpt-4o-mini; the others as without a pilot)" in some["assumptions"]["expected"]


def test_the_text_is_a_table_that_fits():
    text = render(one(invalid=1))
    lines = text.splitlines()
    assert lines[0] == "estimate: nothing was sent"
    assert "  requests                  200, 1 bad line beside them (batchkit validate tells which)" in lines
    assert "  prompt tokens             629,360 (exact)" in lines
    assert "  time                      at least 12 min" in lines
    assert "  completion tokens                      200            43,000         3,276,800" in lines
    assert "  cost                               $0.0945           $0.1202             $2.06" in lines
    assert "  by the batch API                   $0.0473           $0.0601             $1.03" in lines
    assert all(len(line) <= 100 for line in lines)


def test_large_numbers_leave_two_blanks_between_columns():
    large = replace(MINI, requests=10**13, prompt_tokens=10**17, completion_tokens=(10**13, 10**17, 10**20))
    lines = render(build(large, {"a": large, "b": large}, BASIS, invalid=0)).splitlines()
    rows = {line.split()[0]: line for line in lines if len(re.findall(r"\d,000", line)) > 1}
    assert re.split(" {2,}", rows["completion"].strip())[1:] == [f"{10**13:,}", f"{10**17:,}", f"{10**20:,}"]
    assert re.split(" {2,}", rows["a"].strip())[1:] == [f"{10**13:,}", f"{10**17:,}", "$0.1202"]
    assert len(rows["a"]) == len(rows["b"])


def test_the_text_tells_of_images_and_sound():
    estimate = build(MINE, {"mine": MINE}, BASIS, invalid=0, images=1200, uncounted=1)
    told = " ".join(render(estimate).split())
    assert "those of 1,200 images are guessed, as if each had 1024x1024 pixels" in told
    assert "those of 1 part with sound, files or the like are not counted at all" in told
    assert "guessed" not in render(build(MINE, {"mine": MINE}, BASIS, invalid=0))


def test_the_text_names_what_is_not_known():
    text = render(build(BOTH, {"gpt-4o-mini": MINI, "mine": MINE}, BASIS, invalid=0))
    assert "cost of what has a price" in text
    assert "No known price for mine: give one with --prices." in text
    assert "no known price" in text
    assert "99.01 % counted exactly" in text
    alone = render(build(MINE, {"mine": MINE}, replace(BASIS, rpm=None), invalid=0))
    assert "$0" not in alone
    assert alone.count("not known") >= 5


def test_the_text_tells_what_the_pilot_cost():
    basis = replace(BASIS, pilot=Pilot(20, 19, Decimal("0.0123"), 0.81))
    text = render(one(basis=basis))
    assert "estimate: 20 requests were sent" in text
    assert "19 answers to 20 requests, 0.81 s each on average; it cost $0.0123." in text
    unknown = replace(BASIS, pilot=Pilot(20, 0, None, None, simulated=True))
    assert "what it cost is not known" in render(one(basis=unknown))


def test_no_name_steers_the_terminal_and_not_all_of_many_are_listed():
    names = [f"model-{number}\x1b[2J" for number in range(60)]
    lost = replace(MINE, unpriced_models=names, unbounded_models=names)
    text = render(build(lost, dict.fromkeys(names, MINE), replace(BASIS, given_prices=names), invalid=0))
    assert "\x1b" not in text
    assert "and 40 more" in text
    assert "and 55 more" in text
