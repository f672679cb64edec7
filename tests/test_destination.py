"""Where a run sends, and what is refused as a place to send to."""

from __future__ import annotations

import pytest

from batchkit.credentials import OPENAI_BASE_URL, PORTKEY_BASE_URL, Credentials
from batchkit.destination import choose_base_url, choose_proxy
from batchkit.errors import UsageError
from batchkit.settings import Settings

PORTKEY = {"PORTKEY_API_KEY": "pk-secret"}
OPENAI = {"OPENAI_API_KEY": "sk-secret"}


@pytest.mark.parametrize(
    ("settings", "environ", "base_url"),
    [
        ({"base_url": "https://mine/v1/"}, {**PORTKEY, **OPENAI}, "https://mine/v1"),
        ({"base_url": " https://mine:8000/v1/\n"}, {}, "https://mine:8000/v1"),
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
