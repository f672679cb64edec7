"""What a job may have spent, written down and read again; and what a gateway's config allows it."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from batchkit.formats.gateways import GatewayConfig, read_config
from batchkit.formats.spending import decode_spending, encode_spending


@pytest.mark.parametrize(
    "amount", ["0", "12.50", "0.000000123456789", "1E-9", "1E+3", "123456789012.345678901234567890"]
)
def test_an_amount_comes_back_exactly(amount):
    data = encode_spending(Decimal(amount))
    assert decode_spending(data) == Decimal(amount)
    assert json.loads(data)["version"] == 1


def test_a_byte_that_was_changed_or_is_missing_is_found():
    data = encode_spending(Decimal("12.50"))
    for place in range(len(data) - 1):
        with pytest.raises((ValueError, KeyError, TypeError)):
            decode_spending(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((ValueError, KeyError, TypeError)):
            decode_spending(data[:place])


@pytest.mark.parametrize(
    ("config", "attempts"),
    [
        (None, 1),
        ("pc-my-config-1", 6),
        ({}, 1),
        ({"retry": {"attempts": 3}}, 4),
        ({"retry": {"attempts": 99}}, 6),
        ({"retry": {"attempts": "3"}}, 1),
        ({"retry": {"attempts": 1}, "targets": [{}, {"retry": {"attempts": 2}}]}, 5),
        ({"strategy": {"mode": "fallback"}, "targets": [{"targets": [{}, {}]}, {}]}, 3),
        ({"targets": "none"}, 1),
    ],
)
def test_how_often_a_gateway_may_ask_is_read_of_its_config(config, attempts):
    text = config if config is None or isinstance(config, str) else json.dumps(config)
    assert read_config(text).attempts == attempts


def test_what_a_gateway_puts_into_the_body_is_read_of_its_config():
    config = {
        "override_params": {"max_tokens": 5},
        "targets": [{"override_params": {"model": "gpt-4o"}}, {"override_params": "none"}, None],
    }
    assert read_config(json.dumps(config)) == GatewayConfig(
        3, ({"max_tokens": 5}, {"max_tokens": 5, "model": "gpt-4o"}, {"max_tokens": 5})
    )
