"""Prices of one's own are read exactly, or refused with the key and what it should be."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from batchkit.formats.prices import decode_prices, prices_from_json, prices_of, prices_to_json

WHOLE = b"""
["my-model"]
prompt = 0.15
completion = 0.60
cached = 0.075
reasoning = 3
per_request = 0.0
batch = 0.5
max_output_tokens = 16384

["vendor/Other-1.5"]
input = 1
output = 2
cached_input = 0.1
"""


def test_every_key_and_its_other_spelling_is_read():
    assert decode_prices(WHOLE) == {
        "my-model": {
            "prompt": Decimal("0.15"),
            "completion": Decimal("0.6"),
            "cached": Decimal("0.075"),
            "reasoning": Decimal(3),
            "per_request": Decimal(0),
            "batch": Decimal("0.5"),
            "max_output_tokens": Decimal(16384),
        },
        "vendor/Other-1.5": {
            "prompt": Decimal(1),
            "completion": Decimal(2),
            "cached": Decimal("0.1"),
        },
    }
    assert decode_prices(b"") == {}


def test_no_digit_is_rounded_away():
    digits = "0.1234567890123456789012345678901234567890"
    prices = decode_prices(f"[m]\nprompt = {digits}\ncompletion = 0\n".encode())
    assert str(prices["m"]["prompt"]) == digits
    assert prices_of({"m": {"prompt": 0.1, "completion": 2}})["m"]["prompt"] == Decimal("0.1")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("m = 3", "m is 3; it is a table"),
        ("[m]\ncompletion = 1", "m has no prompt: US dollars for a million tokens"),
        ("[m]\nprompt = 1", "m has no completion"),
        ("[m]\nprompt = -1\ncompletion = 1", "m: prompt is -1; it is US dollars for a million tokens"),
        ("[m]\nprompt = -0.5\ncompletion = 1", "m: prompt is -0.5"),
        ("[m]\nprompt = nan\ncompletion = 1", "m: prompt is NaN"),
        ("[m]\nprompt = inf\ncompletion = 1", "m: prompt is Infinity"),
        ("[m]\nprompt = true\ncompletion = 1", "m: prompt is True"),
        ('[m]\nprompt = "1"\ncompletion = 1', "m: prompt is '1'"),
        ("[m]\nprompt = 1e9\ncompletion = 1", "m: prompt is 1E\\+9"),
        ("[m]\ninput = 1\nprompt = 1\noutput = 1", "m: prompt is another word for prompt"),
        ("[m]\nprompt = 1\ncompletion = 1\nbatch = 50", "m: batch is 50; it is the share"),
        ("[m]\nprompt = 1\ncompletion = 1\nmax_output_tokens = 0", "max_output_tokens is 0; it is a whole"),
        ("[m]\nprompt = 1\ncompletion = 1\nmax_output_tokens = 1.5", "max_output_tokens is 1.5"),
        ("[m]\nprompt = 1\ncompletion = 1\ntiers = 1", "m has no tiers; it has prompt, completion, cached"),
        ("[gpt-4.1]\nprompt = 1", 'gpt-4 has no 1; .* in quotes, \\["gpt-4.1"\\]'),
        ("[M]\nprompt = 1\ncompletion = 1\n[m]\nprompt = 1\ncompletion = 1", "m stands there twice"),
        ('[""]\nprompt = 1\ncompletion = 1', "no name of a model"),
        ("[m", "end of a table declaration"),
        ("[m]\nprompt = 1e-999999\ncompletion = 1", "m: prompt is 1E-999999"),
        ("[m]\nprompt = 1e99999999999999999999\ncompletion = 1", "out of all bounds"),
        ("m = " + 5000 * "[", "nested too deep"),
    ],
)
def test_what_is_no_price_is_refused_with_its_key_and_what_is_expected(toml, words):
    with pytest.raises(ValueError, match=words):
        decode_prices(toml.encode())


def test_a_byte_order_mark_is_no_part_of_it():
    assert decode_prices(b"\xef\xbb\xbf[m]\nprompt = 1\ncompletion = 2") == {
        "m": {"prompt": Decimal(1), "completion": Decimal(2)}
    }


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="utf-8"):
        decode_prices(b"\xff")


AMOUNTS = st.decimals(0, 1_000_000, allow_nan=False, allow_infinity=False).filter(
    lambda amount: amount == 0 or amount >= Decimal("1e-12")
)


@given(st.dictionaries(st.sampled_from(["a", "b/c", "@x/y"]), st.tuples(AMOUNTS, AMOUNTS)))
def test_what_is_written_as_json_comes_back_the_same(amounts):
    prices = prices_of({model: {"prompt": p, "completion": c} for model, (p, c) in amounts.items()})
    back = prices_from_json(json.loads(json.dumps(prices_to_json(prices))))
    assert [(m, k, str(v)) for m, t in back.items() for k, v in t.items()] == [
        (m, k, str(v)) for m, t in prices.items() for k, v in t.items()
    ]


@pytest.mark.parametrize(
    "value", [[], {"m": 3}, {"m": {"prompt": "x", "completion": "1"}}, {"m": {"prompt": None}}, {"m": {}}]
)
def test_other_json_is_refused(value):
    with pytest.raises(ValueError, match=r"prices|prompt"):
        prices_from_json(value)
