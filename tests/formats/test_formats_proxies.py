"""Which proxy the environment names for an endpoint, and what is known of it."""

from base64 import b64encode

import pytest

from batchkit.errors import UsageError
from batchkit.formats.headers import endpoint_address
from batchkit.formats.proxies import Proxy, keys_of_proxies, proxy_for, proxy_variables

PASSWORD = "proxy-pass%40word/1"
PLAIN = "proxy-pass@word/1"


def chosen(base_url, **environ):
    proxy = proxy_for(base_url, proxy_variables(environ))
    return None if proxy is None else proxy.url


@pytest.mark.parametrize(
    ("environ", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": "http://p:1"}, "http://p:1", None),
        ({"HTTPS_PROXY": "http://p:1"}, None, "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http://p:1", "http://p:1"),
        ({"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://p:1"}, "http://a:1", "http://p:1"),
        ({"HTTP_PROXY": "http://a:1", "http_proxy": "http://b:1"}, "http://b:1", None),
        ({"HTTP_PROXY": "http://a:1", "http_proxy": ""}, None, None),
        ({"https_proxy": " http://p:1/ "}, None, "http://p:1"),
        ({"https_proxy": "p:1"}, None, "http://p:1"),
        ({"https_proxy": "p"}, None, "http://p"),
        ({"https_proxy": "http://höst_1.:1"}, None, "http://höst_1.:1"),
        ({"https_proxy": "HTTP://u:pw@[2001:db8::1]:3128"}, None, "http://[2001:db8::1]:3128"),
        # A web server named it after a header of the request that a program runs for.
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None, None),
        ({"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, "http://p:1", None),
    ],
)
def test_the_scheme_of_the_endpoint_chooses_the_variable(environ, http, https):
    assert chosen("http://api.example.com/v1", **environ) == http
    assert chosen("https://api.example.com/v1", **environ) == https


@pytest.mark.parametrize(
    ("no_proxy", "exempt"),
    [
        ("", False),
        ("*", True),
        ("other.org, *", True),
        ("api.example.com", True),
        ("API.Example.com", True),
        ("example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        ("other.org,example.com", True),
        ("other.org example.com", True),
        ("api.example.com:443", True),
        ("api.example.com:8443", False),
        ("ample.com", False),
        ("api.example.com.org", False),
        ("10.0.0.0/8", False),
    ],
)
def test_no_proxy_names_hosts_and_domains_that_are_reached_without(no_proxy, exempt):
    for spelling in ("NO_PROXY", "no_proxy"):
        url = chosen("https://api.example.com/v1", HTTPS_PROXY="http://p:1", **{spelling: no_proxy})
        assert (url is None) == exempt


@pytest.mark.parametrize(
    ("host", "no_proxy", "exempt"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:80", True),
        ("10.1.2.3", "2.3", False),
        ("10.1.2.3", "11.0.0.0/8,fd00::/8", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "[fd00::1]", True),
    ],
)
def test_no_proxy_names_addresses_and_networks(host, no_proxy, exempt):
    assert (chosen(f"http://{host}/v1", http_proxy="http://p:1", no_proxy=no_proxy) is None) == exempt


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "a.localhost", "[::1]", "localhost."]
)
def test_this_machine_is_never_reached_through_a_proxy(host):
    assert chosen(f"http://{host}:8000/v1", ALL_PROXY="http://p:1") is None


@pytest.mark.parametrize(
    "value",
    [
        f"socks5://user:{PASSWORD}@p:1",
        f"https://user:{PASSWORD}@p:1",
        f"http://user:{PASSWORD}@",
        f"http://user:{PASSWORD}@p:port",
        f"http://user:{PASSWORD}@p:0",
        f"http://user:{PASSWORD}@p:1/path",
        f"http://user:{PASSWORD}@p:1?q",
        f"http://user:{PASSWORD}@p p:1",
        f"http://user:{PASSWORD}\x7f@p:1",
        f"http://user:{PASSWORD}\udcff@p:1",
        f"http://user:{PASSWORD}@[p]:1",
        *[
            f"http://user:{PASSWORD}@{host}:1"
            for host in ("p\\x", "..", "xn--a", "-p", "p*", "%41", "a" * 64)
        ],
        "http://",
    ],
)
def test_what_is_no_http_proxy_is_wrong_usage_that_names_the_variable_and_not_the_password(value):
    with pytest.raises(
        UsageError, match=r"^HTTPS_PROXY (names a proxy of another kind|is no proxy's URL)"
    ) as wrong:
        chosen("https://api.example.com/v1", HTTPS_PROXY=value)
    assert "pass" not in str(wrong.value)
    # Where it is not asked for, it does not matter.
    assert chosen("http://api.example.com/v1", HTTPS_PROXY=value) is None


def test_user_and_password_are_told_to_the_proxy_and_are_keys_in_each_spelling():
    value = f"http://user%3A1:{PASSWORD}@p:1"
    proxy = proxy_for("https://x.org/v1", {"https_proxy": value})
    token = b64encode(f"user:1:{PLAIN}".encode()).decode()
    assert proxy == Proxy("http://p:1", f"Basic {token}", proxy.keys)
    assert {PASSWORD, PLAIN, token, f"user:1:{PLAIN}"} <= set(proxy.keys)
    assert "pass" not in repr(proxy)
    assert set(keys_of_proxies({"https_proxy": value, "NO_PROXY": "a@b"})) == set(proxy.keys)
    address = endpoint_address("https://x.org/v1", version="0", timeout=1, proxy=proxy)
    assert {key.encode() for key in proxy.keys} <= set(address.secrets)
    assert "pass" not in repr(address)


def test_a_name_without_a_password_is_the_key():
    assert "token-of-the-proxy" in keys_of_proxies({"ALL_PROXY": "http://token-of-the-proxy:@p:1"})
    assert keys_of_proxies({"ALL_PROXY": "http://p:1"}) == ()


def test_keys_are_found_in_what_is_no_url_either():
    assert "pass/wo@rd" in keys_of_proxies({"HTTP_PROXY": "user:pass/wo@rd@p:1"})
    assert any("\udcff" in key for key in keys_of_proxies({"HTTP_PROXY": "http://user:pass\udcff@p:1"}))
