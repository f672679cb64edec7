import math
from dataclasses import fields
from typing import get_type_hints

import pytest

from batchkit.errors import UsageError
from batchkit.settings import (
    OPENAI_BASE_URL,
    PORTKEY_BASE_URL,
    Credentials,
    RunSettings,
    Settings,
    choose_base_url,
)

PORTKEY = {"PORTKEY_API_KEY": "pk-secret"}
OPENAI = {"OPENAI_API_KEY": "sk-secret"}


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
        {"max_failures": 0},
        {"max_failures": -1},
        {"max_failures": 1.5},
        {"max_failures": True},
        {"max_failures": "0%"},
        {"max_failures": "101%"},
        {"max_failures": "nan%"},
        {"max_failures": "inf"},
        {"max_failures": "many"},
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


# --- where to send -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environ", "base_url"),
    [
        ({"base_url": "https://mine/v1/"}, {**PORTKEY, **OPENAI}, "https://mine/v1"),
        ({}, {**PORTKEY, **OPENAI}, PORTKEY_BASE_URL),
        ({}, {**PORTKEY, "PORTKEY_BASE_URL": "https://gate/v1"}, "https://gate/v1"),
        ({}, OPENAI, OPENAI_BASE_URL),
        ({}, {**OPENAI, "OPENAI_BASE_URL": "https://azure/v1"}, "https://azure/v1"),
        ({}, {**OPENAI, "OPENAI_BASE_URL": ""}, OPENAI_BASE_URL),
        ({}, {**OPENAI, "PORTKEY_API_KEY": " "}, OPENAI_BASE_URL),
        ({}, {**OPENAI, "PORTKEY_BASE_URL": "https://gate/v1"}, OPENAI_BASE_URL),
    ],
)
def test_the_endpoint_is_the_named_one_else_portkey_else_openai(settings, environ, base_url):
    assert choose_base_url(Settings(**settings), Credentials.read(environ)) == base_url


def test_without_an_endpoint_the_message_names_all_ways():
    with pytest.raises(UsageError) as error:
        choose_base_url(Settings(), Credentials.read({"OPENAI_BASE_URL": "https://x/v1"}))
    for word in ("--base-url", "PORTKEY_API_KEY", "OPENAI_API_KEY", "--simulate"):
        assert word in str(error.value)


def test_both_spellings_of_the_virtual_key():
    assert Credentials.read({"PORTKEY_PROVIDER_VIRTUAL_KEY": "b"}).portkey_virtual_key == "b"
    both = {"PORTKEY_VIRTUAL_KEY": "a", "PORTKEY_PROVIDER_VIRTUAL_KEY": "b"}
    assert Credentials.read(both).portkey_virtual_key == "a"


def test_no_repr_shows_a_key():
    shown = repr(Credentials.read({**PORTKEY, **OPENAI, "PORTKEY_VIRTUAL_KEY": "vk-secret"}))
    assert "secret" not in shown


NEAR = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    "10.1.2.3",
    "192.168.0.9",
    "172.16.0.1",
    "vllm",
    "gpu.local",
    "a.internal",
    "x.localhost",
    "localhost.",
    "my_service",
    "한국.localhost",
]
FAR = [
    "api.openai.com",
    "8.8.8.8",
    "10.0.0.1.evil.com",
    "127.0.0.1.nip.io",
    "localhost.evil.com",
    "[2001:4860:4860::8888]",
    "[::ffff:8.8.8.8]",
    "134744072",  # 8.8.8.8 in one number, as resolvers read it
    "0x08080808",
]


@pytest.mark.parametrize("host", NEAR)
def test_plain_http_is_for_near_addresses(host):
    url = f"http://{host}:8000/v1"
    assert choose_base_url(Settings(base_url=url), Credentials()) == url


@pytest.mark.parametrize("host", FAR)
def test_plain_http_elsewhere_takes_a_word(host):
    url = f"http://{host}/v1"
    with pytest.raises(UsageError, match="clear text"):
        choose_base_url(Settings(base_url=url), Credentials())
    assert choose_base_url(Settings(base_url=url, allow_http=True), Credentials()) == url
    https = url.replace("http:", "https:")
    assert choose_base_url(Settings(base_url=https), Credentials()) == https


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/v1",
        "ftp://host/v1",
        "https://",
        "https://user:pw@host/v1",
        "https://host/v1?x=1",
        "https://host/v1#x",
        "https://host/v1/chat/completions",
        "https://host/v1/chat/completions/",
        "https://host:99999/v1",
        "https://[::1/v1",
        "https://my host/v1",
        "https://*/v1",
        "https://../v1",
        "https://xn--a/v1",
        f"https://{'a' * 64}.com/v1",
    ],
)
def test_what_is_no_base_url_is_wrong_usage(url):
    with pytest.raises(UsageError, match="base URL") as error:
        choose_base_url(Settings(base_url=url), Credentials())
    assert "pw" not in str(error.value)
