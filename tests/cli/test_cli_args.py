"""From words, environment and file to settings."""

from __future__ import annotations

import argparse
import os
import threading
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest

from batchkit.cli.args import add_run_flags, settings_from
from batchkit.errors import UsageError
from batchkit.settings import Settings


def read(*argv, environ=None):
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    return settings_from(parser.parse_args(argv), environ or {})


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return "--settings", str(path)

    return write


PRICES = str(Path(__file__).parents[2] / "samples" / "prices.toml")

# A setting, its flag's words, its environment variable's text, its line of TOML, and what they mean.
SPELLINGS = {
    "base_url": (["http://a/v1"], "http://a/v1", '"http://a/v1"', "http://a/v1"),
    "simulate": ([], "true", "true", True),
    "model": (["m"], "m", '"m"', "m"),
    "set": (["temperature=0.5"], '{"temperature": 0.5}', "{temperature = 0.5}", {"temperature": 0.5}),
    "concurrency": (["1_000"], "1000", "1000", 1000),
    "rpm": (["1e3"], "1000", "1000.0", 1000.0),
    "tpm": (["2000000"], "2_000_000", "2_000_000", 2e6),
    "timeout": (["1.5"], "1.5", "1.5", 1.5),
    "max_attempts": (["3"], "3", "3", 3),
    "max_cost": (["12.50"], "12.5", "12.50", Decimal("12.5")),
    "max_failures": (["5%"], "5%", '"5%"', "5%"),
    "fixed_timeout": ([], "true", "true", True),
    "hedge": (["2%"], "2%", '"2%"', "2%"),
    "limit": (["0"], "0", "0", 0),
    "prices": ([PRICES], PRICES, f'"{PRICES}"', PRICES),
    "retry_failed": ([], "1", "true", True),
    "overwrite": ([], "yes", "true", True),
    "job_id": (["j"], "j", '"j"', "j"),
    "progress": (["log"], "log", '"log"', "log"),
    "portkey_config": (['{"a":1}'], '{"a":1}', "'{\"a\":1}'", '{"a":1}'),
    "portkey_provider": (["@x"], "@x", '"@x"', "@x"),
    "portkey_metadata": (["team=a=b"], '{"team": "a=b"}', '{team = "a=b"}', {"team": "a=b"}),
    "cache_namespace": (["n"], "n", '"n"', "n"),
    "cache_force_refresh": ([], "on", "true", True),
    "allow_http": ([], "TRUE", "true", True),
    "trust_env": ([], "true", "true", True),
    "allow_growth": ([], "true", "true", True),
    "force": ([], "true", "true", True),
    "rescan": ([], "true", "true", True),
}


def option(name):
    return "--" + name.replace("_", "-")


def test_every_setting_has_its_spellings_here():
    assert SPELLINGS.keys() == {each.name for each in fields(Settings)}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_setting_is_the_same_however_it_is_given(name, toml):
    words, variable, line, value = SPELLINGS[name]
    expected = Settings.of({name: value})
    assert read(option(name), *words) == expected
    assert read(environ={"BATCHKIT_" + name.upper(): variable}) == expected
    assert read(*toml(f"{name} = {line}")) == expected
    assert read(*toml(f"{name.replace('_', '-')} = {line}")) == expected
    assert type(getattr(read(option(name), *words), name)) is type(getattr(expected, name))


def test_nothing_given_is_the_defaults():
    assert read() == Settings()
    assert read(environ={"BATCHKIT_RPM": "", "BATCHKIT_OTHER": "", "HOME": "/"}) == Settings()


def test_flags_win_over_the_environment_and_that_over_the_file(toml):
    file = toml('concurrency = 1\nrpm = 1\ntpm = 1\nmodel = "file"\nsimulate = true')
    environ = {"BATCHKIT_CONCURRENCY": "2", "BATCHKIT_RPM": "2", "BATCHKIT_SIMULATE": "false"}
    chosen = read(*file, "--concurrency", "3", environ=environ)
    assert (chosen.concurrency, chosen.rpm, chosen.tpm, chosen.model, chosen.simulate) == (
        3,
        2,
        1,
        "file",
        False,
    )


def test_what_excludes_a_setting_from_further_away_wins_over_it(toml):
    file = toml('base_url = "http://a/v1"\noverwrite = true')
    rehearsal = read(*file, "--simulate", environ={"BATCHKIT_RETRY_FAILED": "1"})
    assert (rehearsal.simulate, rehearsal.base_url) == (True, None)
    assert (rehearsal.retry_failed, rehearsal.overwrite) == (True, False)
    real = read("--base-url", "http://b/v1", environ={"BATCHKIT_SIMULATE": "1"})
    assert (real.simulate, real.base_url) == (False, "http://b/v1")
    with pytest.raises(UsageError, match="exclude each other"):
        read("--simulate", "--base-url", "http://a/v1")


def test_pairs_may_be_repeated_and_are_added_to_those_of_the_file(toml):
    file = toml("[set]\ntemperature = 0\nseed = 1\n[portkey_metadata]\nteam = 'a'")
    chosen = read(*file, "--set", "seed=2", "--set", 'stop=["x"]', "--portkey-metadata", "env=test")
    assert chosen.set == {"temperature": 0, "seed": 2, "stop": ["x"]}
    assert chosen.portkey_metadata == {"team": "a", "env": "test"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=true", True),
        ("a=null", None),
        ('a="x"', "x"),
        ('a={"b":[1]}', {"b": [1]}),
        ('a="b=c"', "b=c"),
    ],
)
def test_set_takes_json(text, value):
    assert read("--set", text).set == {"a": value}


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["--concurrency", "many"], {}, ["--concurrency", "'many'", "whole number"]),
        (["--concurrency", "1.5"], {}, ["--concurrency", "whole number"]),
        (["--concurrency", "0"], {}, ["--concurrency", "at least 1"]),
        (["--rpm", "fast"], {}, ["--rpm", "a number"]),
        (["--rpm", "nan"], {}, ["--rpm", "above 0"]),
        (["--max-failures", "x"], {}, ["--max-failures", "5%"]),
        (["--progress", "loud"], {}, ["--progress", "auto, bar, log, off"]),
        (["--set", "temperature"], {}, ["--set", "KEY=JSON"]),
        (["--set", "=1"], {}, ["--set", "KEY=JSON"]),
        (["--set", "stop=x"], {}, ["--set", "stop", "quotes"]),
        (["--set", "stream=true"], {}, ["--set", "stream"]),
        (["--portkey-metadata", "a"], {}, ["--portkey-metadata", "KEY=VALUE"]),
        ([], {"BATCHKIT_CONCURRENCY": "x"}, ["BATCHKIT_CONCURRENCY", "whole number"]),
        ([], {"BATCHKIT_CONCURRENCY": "-1"}, ["BATCHKIT_CONCURRENCY", "at least 1"]),
        ([], {"BATCHKIT_SIMULATE": "maybe"}, ["BATCHKIT_SIMULATE", "true or false"]),
        ([], {"BATCHKIT_SET": "[1]"}, ["BATCHKIT_SET", "JSON object"]),
        ([], {"BATCHKIT_SET": "{"}, ["BATCHKIT_SET", "JSON object"]),
        ([], {"BATCHKIT_MAX_COTS": "5"}, ["BATCHKIT_MAX_COTS", "no setting 'max_cots'", "'max_cost' is one"]),
        ([], {"BATCHKIT_API_KEY": "5"}, ["BATCHKIT_API_KEY", "no setting 'api_key'"]),
        ([], {"BATCHKIT_max_cost": "5"}, ["BATCHKIT_max_cost is not read", "in capitals"]),
        ([], {"BATCHKIT_QQQ": "5"}, ["BATCHKIT_QQQ", "there are allow_growth, allow_http"]),
    ],
)
def test_a_wrong_value_names_where_it_came_from(argv, environ, words):
    with pytest.raises(UsageError) as error:
        read(*argv, environ=environ)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no_such = 1", ["no_such", "there is no setting", "concurrency"]),
        ("concurency = 1", ["there is no setting 'concurency'", "'concurrency' is one"]),
        ("api_key = 'x'", ["api_key", "there is no setting"]),
        ("concurrency = '5'", ["concurrency", "whole number"]),
        ("concurrency = 5.0", ["concurrency", "whole number"]),
        ("concurrency = true", ["concurrency", "whole number"]),
        ("concurrency = 0", ["concurrency", "at least 1"]),
        ("rpm = true", ["rpm", "a number"]),
        ("rpm = nan", ["rpm", "above 0"]),
        ("model = 1", ["model", "a string"]),
        ("simulate = 1", ["simulate", "true or false"]),
        ("set = 'x'", ["set", "a table"]),
        ("set = {at = 2026-01-01}", ["set", "JSON"]),
        ("max_failures = 0.05", ["max_failures", "a number or a share"]),
        ("max_failures = true", ["max_failures", "a number or a share"]),
        ("portkey_metadata = {team = 5}", ["portkey_metadata", "team", "a string"]),
        ("rpm = ", ["not TOML"]),
        ("rpm = " + 5000 * "9", ["not TOML"]),
        ("set = " + 5000 * "[", ["not TOML"]),
    ],
)
def test_a_wrong_line_of_the_file_names_the_file_and_the_key(text, words, toml):
    _, path = toml(text)
    with pytest.raises(UsageError) as error:
        read("--settings", path)
    assert [word for word in (path, *words) if word not in str(error.value)] == []


def test_a_file_that_is_not_there_or_not_text_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the settings file .*No such file"):
        read("--settings", str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read("--settings", str(tmp_path / "binary"))


def test_no_flag_takes_a_secret_and_each_has_help():
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    text = parser.format_help()
    assert all(option(name) in text for name in SPELLINGS)
    assert not [word for word in ("api-key", "token ", "secret", "virtual-key") if word in text]
    assert "(default 256)" in text
    assert "(default 600)" in text


def test_prices_are_read_from_their_file_once_and_as_a_mapping_in_python(tmp_path):
    path = tmp_path / "prices.toml"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("[m]\ninput = 0.1\noutput = 2\n",))
    writer.start()
    settings = read("--prices", str(path))
    writer.join()
    assert settings.prices == {"m": {"prompt": Decimal("0.1"), "completion": Decimal(2)}}
    assert settings == Settings.of({"prices": {"m": {"prompt": 0.1, "completion": 2}}})


@pytest.mark.parametrize("given", ["flag", "file", "python"])
def test_a_wrong_price_file_is_named_with_its_key(given, tmp_path, toml):
    path = tmp_path / "prices.toml"
    path.write_text("[m]\nprompt = -1\ncompletion = 2\n")
    words = ("--prices", str(path)) if given == "flag" else toml(f'prices = "{path}"')
    with pytest.raises(UsageError, match=r"prices.toml: m: prompt is -1; it is US dollars"):
        Settings.of({"prices": path}) if given == "python" else read(*words)
    with pytest.raises(UsageError, match=r"cannot read the price file .*none.toml: No such file"):
        read("--prices", str(tmp_path / "none.toml"))


def test_prices_that_are_none_are_refused():
    with pytest.raises(UsageError, match="prices: m: batch is 7"):
        Settings(prices={"m": {"prompt": 1, "completion": 2, "batch": 7}})
    with pytest.raises(UsageError, match="prices is 7; it is a mapping"):
        Settings(prices=7)
