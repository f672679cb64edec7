import math
from dataclasses import fields
from decimal import Decimal
from typing import get_type_hints

import pytest

from batchkit.errors import UsageError
from batchkit.settings import RunSettings, Settings


def test_the_keywords_of_python_are_the_fields_of_settings_with_the_same_types():
    names = {each.name for each in fields(Settings)}
    assert get_type_hints(RunSettings).keys() == names
    assert get_type_hints(RunSettings) == {
        name: hint for name, hint in get_type_hints(Settings).items() if name in names
    }


def test_the_defaults_are_those_promised():
    chosen = Settings()
    assert (chosen.concurrency, chosen.timeout, chosen.max_attempts, chosen.progress) == (
        256,
        600.0,
        6,
        "auto",
    )
    assert (chosen.rpm, chosen.tpm, chosen.max_failures, chosen.limit, chosen.job_id) == (None,) * 5


@pytest.mark.parametrize(
    "values",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": True},
        {"concurrency": "4"},
        {"concurrency": None},
        {"max_attempts": 0},
        {"limit": -1},
        {"limit": True},
        {"rpm": 0},
        {"rpm": -1.0},
        {"rpm": math.nan},
        {"tpm": math.inf},
        {"tpm": "100"},
        {"timeout": 0},
        {"timeout": None},
        {"timeout": True},
        {"progress": "loud"},
        {"max_cost": 0},
        {"max_cost": -1},
        {"max_cost": "-0.01"},
        {"max_cost": math.nan},
        {"max_cost": math.inf},
        {"max_cost": True},
        {"max_cost": "ten"},
        {"max_cost": ""},
        {"max_cost": [1]},
        {"max_cost": (0, (1,), 0)},
        {"max_cost": "5 USD"},
        {"max_cost": "1e-999999"},
        {"max_cost": "1e13"},
        {"max_failures": 0},
        {"max_failures": -1},
        {"max_failures": 1.5},
        {"max_failures": True},
        {"max_failures": "0%"},
        {"max_failures": "101%"},
        {"max_failures": "nan%"},
        {"max_failures": "inf"},
        {"max_failures": "many"},
        {"hedge": "0%"},
        {"hedge": "101%"},
        {"hedge": "nan%"},
        {"hedge": "2"},
        {"hedge": "two%"},
        {"hedge": 2},
        {"fixed_timeout": "yes"},
        {"job_id": ""},
        {"job_id": "x" * 65},
        {"job_id": "é"},
        {"job_id": "a\nb"},
        {"set": {"messages": []}},
        {"set": {"stream": True}},
        {"set": {"temperature": math.nan}},
        {"set": {"x": object()}},
        {"portkey_metadata": {"team": 5}},
        {"simulate": True, "base_url": "http://127.0.0.1/v1"},
        {"overwrite": True, "retry_failed": True},
        {"no_such_setting": 1},
        {"model": 5},
        {"base_url": 5},
        {"set": [1]},
        {"portkey_metadata": ["team"]},
        {"portkey_metadata": {"team": "x" * 129}},
        {"portkey_metadata": {"team": "\udcff"}},
        {"portkey_metadata": {"\udcff": "x"}},
        {"portkey_config": "{'a': 1}"},
        {"portkey_config": '{"a": NaN}'},
        {"portkey_config": "{" * 100_000},
        {"portkey_config": "pc-é"},
        {"portkey_config": ""},
        {"portkey_provider": "a\r\nb: c"},
        {"portkey_provider": ""},
        {"cache_namespace": "a\nb"},
        {"cache_namespace": "日本"},
        {"cache_namespace": " a"},
        {"cache_namespace": "x" * 513},
        {"portkey_config": {"retry": {}}},
        {"cache_namespace": 4},
        {"simulate": "no"},
        {"overwrite": 1},
    ],
)
def test_a_value_that_means_nothing_is_wrong_usage_that_names_it(values):
    with pytest.raises(UsageError) as error:
        Settings.of(values)
    assert next(iter(values)).replace("job_id", "job id") in str(error.value)


def test_metadata_may_be_of_any_alphabet_up_to_a_length():
    metadata = {"Größe": "é" * 128, "empty": ""}
    assert Settings(portkey_metadata=metadata).portkey_metadata == metadata


def test_a_config_is_an_id_or_json_that_travels_on_one_line_in_ascii():
    assert Settings(portkey_config="pc-main-123").portkey_config == "pc-main-123"
    assert Settings(portkey_config=' {"a":\n "é"}\n').portkey_config == '{"a":"\\u00e9"}'


def test_a_limit_of_nothing_is_a_limit():
    assert Settings(limit=0).limit == 0


def test_body_defaults_are_model_and_set():
    assert Settings(model="m", set={"temperature": 0}).defaults == {"model": "m", "temperature": 0}
    assert Settings(set={"temperature": 0}).defaults == {"temperature": 0}
    assert Settings().defaults == {}


def test_what_is_set_is_plain_json_as_it_is_read_back_from_the_output():
    given = {"stop": ("a", "b"), "logit_bias": {50256: -100}}
    assert Settings(set=given).defaults == {"stop": ["a", "b"], "logit_bias": {"50256": -100}}
    assert given["stop"] == ("a", "b")


@pytest.mark.parametrize(
    ("bound", "requests", "allowed"),
    [
        (None, 10, math.inf),
        (7, 10_000, 7),
        ("7", 10_000, 7),
        ("5%", 1000, 50),
        ("0.1%", 5000, 5),
        ("1%", 10, 1),  # never nothing
        ("100%", 10, 10),
        ("5 %", 1000, 50),
    ],
)
def test_failures_allowed_are_a_number_or_a_share(bound, requests, allowed):
    assert Settings(max_failures=bound).failures_allowed(requests) == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("given", "cap"),
    [(0.1, "0.1"), (5, "5"), ("12.50", "12.50"), (Decimal("0.000001"), "0.000001"), ("1e-3", "0.001")],
)
def test_an_amount_is_what_was_meant_and_not_what_a_float_makes_of_it(given, cap):
    settings = Settings(max_cost=given)
    assert settings.cost_cap == settings.max_cost == Decimal(cap)
    assert Settings().cost_cap is None
