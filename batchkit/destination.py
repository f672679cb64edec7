"""Where a run sends: the endpoint that its settings name, else the one that its credentials belong to."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import fields
from urllib.parse import urlsplit

from batchkit.credentials import Credentials
from batchkit.errors import UsageError
from batchkit.formats.headers import SHORTEST_KEY
from batchkit.formats.proxies import Proxy, is_host, keys_of_proxies, proxy_for
from batchkit.settings import Settings

__all__ = ["choose_base_url", "choose_proxy"]

_LOCAL_ENDINGS = (".localhost", ".local", ".internal")
_NUMERIC = re.compile(r"[0-9.]+|0x[0-9a-f.x]*", re.IGNORECASE)
"""A host that resolvers read as an IPv4 address in one of its old spellings: 134744072 is 8.8.8.8."""


def choose_base_url(settings: Settings, credentials: Credentials) -> str:
    """Where the run sends: the endpoint that was named, else the owner of the key that is there.

    Raises UsageError where nothing says where to send, where a key would leave in clear text, and where one stands in a
    setting that is written down.
    """
    if settings.base_url is not None:
        base_url = settings.base_url
    elif credentials.portkey_api_key is not None:
        base_url = credentials.portkey_base_url
    elif credentials.openai_api_key is not None:
        base_url = credentials.openai_base_url
    else:
        raise UsageError(
            "there is no endpoint to send to. Name one with --base-url (http://127.0.0.1:8000/v1, say), or set "
            "PORTKEY_API_KEY or OPENAI_API_KEY, or try the job for free with --simulate"
        )
    _refuse_misplaced_keys(settings, base_url, credentials)
    return _checked(base_url.strip().rstrip("/"), allow_http=settings.allow_http)


def choose_proxy(settings: Settings, credentials: Credentials, base_url: str) -> Proxy | None:
    """What stands before the endpoint, where the run heeds the environment's proxies; None sends straight there.

    Raises UsageError, which shows no password, for a variable that names no http proxy.
    """
    return proxy_for(base_url, credentials.proxies) if settings.trust_env else None


def _refuse_misplaced_keys(settings: Settings, base_url: str, credentials: Credentials) -> None:
    """What a run was started with stands in its output. A config does not, and a virtual key is the name of a provider too."""
    keys = [credentials.portkey_api_key, credentials.openai_api_key]
    if settings.trust_env:
        keys += keys_of_proxies(credentials.proxies)
    for key in keys:
        if key is None or len(key) < SHORTEST_KEY:
            continue
        if key in base_url:
            raise UsageError("the base URL holds an API key, which is sent as a header and nowhere else")
        for each in fields(settings):
            if each.name != "portkey_config" and key in str(getattr(settings, each.name)):
                raise UsageError(f"{each.name} holds an API key, which is sent as a header and nowhere else")


def _checked(base_url: str, *, allow_http: bool) -> str:
    """The URL, if it is one to send to. No message repeats it: what stands in a wrong place may be a key."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise UsageError(
            "the base URL is not one: its host or its port cannot be read; it looks like https://host/v1"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("the base URL holds a user name or password; keys come from the environment alone")
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("the base URL is not one; it looks like https://host/v1")
    if not is_host(host):
        raise UsageError("the base URL names a host that no host can be called")
    if parts.query or parts.fragment:
        raise UsageError("the base URL ends before any ? or #: /chat/completions is put behind it")
    if parts.path.endswith("/chat/completions"):
        raise UsageError("the base URL is the part before /chat/completions; leave that out")
    if parts.scheme == "http" and not allow_http and not _is_near(host):
        raise UsageError(
            f"http to {host} would send requests and keys in clear text; use https, or --allow-http if that is meant"
        )
    return base_url


def _is_near(host: str) -> bool:
    """Whether a host is on this machine or a private network, as far as its name tells."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.removesuffix(".")
        if _NUMERIC.fullmatch(name):
            return False
        return "." not in name or name.endswith(_LOCAL_ENDINGS)
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_private or address.is_link_local
