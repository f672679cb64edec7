import math
import os
from dataclasses import fields
from decimal import Decimal
from typing import get_type_hints

import pytest

from batchkit.errors import UsageError
from batchkit.settings import (
    KEY_VARIABLES,
    OPENAI_BASE_URL,
    PORTKEY_BASE_URL,
    Credentials,
    RunSettings,
    Settings,
    choose_base_url,
    choose_proxy,
    keys_within,
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


def test_the_keys_within_a_config_are_found_however_deep():
    config = """{"api_key": "a", "targets": [{"apiKey": "b", "max_tokens": 5, "provider": "x"},
                 {"aws_secret_access_key": "c", "override_params": {"headers": {"Authorization": "d", "e": 1}}}],
                 "virtual_key": "a name", "cache": {"mode": "simple"}, "api_key_note": null}"""
    assert keys_within(Settings(portkey_config=config).portkey_config) == ("a", "b", "c", "d")
    assert keys_within("pc-api_key") == keys_within(None) == ()


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


@pytest.fixture
def key_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "key"
        path.write_bytes(content)
        path.chmod(mode)
        return path

    return write


@pytest.mark.parametrize("content", [b"sk-secret", b"sk-secret\n", b"  sk-secret \r\n\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_key_may_stand_in_a_file_of_its_owners_alone(variable, content, mode, key_file):
    environ = {f"{variable}_FILE": str(key_file(content, mode))}
    assert Credentials.read(environ).keys == ("sk-secret",)


def test_a_link_to_a_key_file_is_as_good_as_the_file(key_file, tmp_path):
    (tmp_path / "link").symlink_to(key_file(b"sk-secret"))
    assert Credentials.read({"OPENAI_API_KEY_FILE": str(tmp_path / "link")}).openai_api_key == "sk-secret"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_a_key_file_that_is_open_to_others_is_refused_with_the_cure(mode, key_file):
    path = key_file(b"sk-secret", mode)
    with pytest.raises(UsageError) as error:
        Credentials.read({"OPENAI_API_KEY_FILE": str(path)})
    assert f"chmod 600 {path}" in str(error.value)
    assert "OPENAI_API_KEY_FILE" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_key_file_of_another_user_is_refused(key_file, monkeypatch):
    path = key_file(b"sk-secret")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        Credentials.read({"OPENAI_API_KEY_FILE": str(path)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"sk-secret\nsk-other", "more than one line"),
        (b"sk-secret other", "more than one line or word"),
        (b"sk-secret\0", "no header can carry"),
        (b"sk-secr\xc3\xa9t", "no header can carry"),
        (b"\xef\xbb\xbfsk-secret", "no header can carry"),
        (b"OPENAI_API_KEY=sk-secret\nOTHER=1\n", "more than one line"),
    ],
)
def test_a_key_file_without_one_key_is_refused_by_its_path(content, reason, key_file):
    path = key_file(content)
    with pytest.raises(UsageError, match=reason) as error:
        Credentials.read({"PORTKEY_API_KEY_FILE": str(path)})
    assert str(path) in str(error.value)
    assert "secr" not in str(error.value)


def test_what_is_no_file_to_read_a_key_from_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, reason in (
        ("fifo", "not a regular file"),
        ("", "not a regular file"),
        ("none", "No such file"),
    ):
        path = tmp_path / name
        with pytest.raises(UsageError, match=reason) as error:
            Credentials.read({"PORTKEY_API_KEY_FILE": str(path)})
        assert str(path) in str(error.value)


@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_key_and_a_key_file_exclude_each_other(variable, key_file):
    environ = {variable: "sk-secret", f"{variable}_FILE": str(key_file(b"sk-secret"))}
    with pytest.raises(UsageError) as error:
        Credentials.read(environ)
    assert f"{variable} and {variable}_FILE" in str(error.value)
    assert "secret" not in str(error.value)
    assert Credentials.read({**environ, variable: " "}).keys == ("sk-secret",)


@pytest.mark.parametrize("variable", KEY_VARIABLES)
@pytest.mark.parametrize(
    "key", ["sk-a\nsecret", "sk-a secret", "sk-sécret", "sk-\udcffsecret", "sk-\x7fsecret"]
)
def test_a_key_that_no_header_can_carry_is_named_and_not_shown(variable, key):
    with pytest.raises(UsageError, match=variable) as error:
        Credentials.read({variable: key})
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "https://host/sk-secret-0123/v1"},
        {"model": "sk-secret-0123"},
        {"set": {"user": ["a sk-secret-0123 b"]}},
        {"job_id": "sk-secret-0123"},
        {"portkey_metadata": {"sk-secret-0123": ""}},
        {"cache_namespace": "sk-secret-0123"},
    ],
)
def test_a_key_in_a_setting_that_is_written_down_is_refused(settings):
    credentials = Credentials.read({"OPENAI_API_KEY": "sk-secret-0123"})
    with pytest.raises(UsageError, match="holds an API key") as error:
        choose_base_url(Settings(**settings), credentials)
    assert "secret" not in str(error.value)


def test_a_placeholder_for_a_key_is_found_nowhere():
    credentials = Credentials.read({"OPENAI_API_KEY": "none", "PORTKEY_VIRTUAL_KEY": "name-of-a-provider"})
    chosen = Settings(base_url="https://none/v1", model="none", portkey_provider="@name-of-a-provider")
    assert choose_base_url(chosen, credentials) == "https://none/v1"


def test_the_environments_proxies_are_for_runs_that_ask_for_them():
    url = "https://api.example.com/v1"
    credentials = Credentials.read({"HTTPS_PROXY": "http://user:proxy-password@p:1", "OTHER": "x"})
    assert credentials.proxies.keys() == {"HTTPS_PROXY"}
    assert "proxy-password" not in repr(credentials)
    assert choose_proxy(Settings(), credentials, url) is None
    proxy = choose_proxy(Settings(trust_env=True), credentials, url)
    assert proxy is not None
    assert proxy.url == "http://p:1"
    assert choose_proxy(Settings(trust_env=True), credentials, "http://127.0.0.1/v1") is None
    assert choose_proxy(Settings(trust_env=True), Credentials.read({}), url) is None


def test_a_proxys_password_in_a_setting_that_is_written_down_is_refused_where_the_proxy_is_heeded():
    credentials = Credentials.read({"HTTPS_PROXY": "http://user:proxy-password@p:1"})
    words = {"base_url": "https://api.example.com/v1", "model": "proxy-password"}
    with pytest.raises(UsageError, match=r"^model holds an API key"):
        choose_base_url(Settings(trust_env=True, **words), credentials)
    assert choose_base_url(Settings(**words), credentials) == words["base_url"]


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
