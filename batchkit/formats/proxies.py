"""Proxies as the environment names them: which one stands before an endpoint, and who we are to it.

The variables are those that most programs know: HTTPS_PROXY and HTTP_PROXY by the endpoint's scheme, ALL_PROXY where that
one is missing, NO_PROXY for hosts that are reached without. Each may be spelled in lower case, which then counts alone, so
that an empty `https_proxy` switches HTTPS_PROXY off.

What a variable holds may be a password, so no message repeats it.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from batchkit.errors import UsageError

__all__ = ["Proxy", "is_host", "keys_of_proxies", "proxy_for", "proxy_variables"]

_NAMES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `url` has no credentials; `authorization` is for the proxy alone, None where it asks for nobody."""

    url: str
    authorization: str | None = field(default=None, repr=False)
    keys: tuple[str, ...] = field(default=(), repr=False)
    """All spellings of the credentials that must show nowhere."""


def proxy_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that are about proxies, by their own spelling."""
    # A web server that runs a program for a request names that request's `Proxy:` header HTTP_PROXY (CVE-2016-1000110).
    forged = {"HTTP_PROXY"} if "REQUEST_METHOD" in environ else set()
    names = {spelling for name in _NAMES for spelling in (name, name.upper())} - forged
    return {name: environ[name].strip() for name in names & environ.keys()}


def proxy_for(base_url: str, variables: Mapping[str, str]) -> Proxy | None:
    """The proxy before an endpoint; None where there is none, and before one on this machine.

    Raises UsageError, which names the variable and does not repeat it, for what is no URL of an http proxy.
    """
    endpoint = urlsplit(base_url)
    host, port = endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)
    if _is_loopback(host):
        return None
    name, value = _named(variables, f"{endpoint.scheme}_proxy", "all_proxy")
    if not value or _is_exempt(host, port, _named(variables, "no_proxy")[1]):
        return None
    scheme, separator, _ = value.partition("://")
    if separator and scheme.lower() != "http":
        raise UsageError(
            f"{name} names a proxy of another kind than http://, such as SOCKS or one that is itself reached by TLS, and "
            "those are not supported. Name an http proxy, which carries https too, or leave --trust-env out"
        )
    userinfo, place = _parted(value)
    if not value.isprintable() or not _is_place(place):
        raise UsageError(f"{name} is no proxy's URL; it looks like http://host:port")
    return Proxy(f"http://{place}", _basic(userinfo) if userinfo else None, _keys(userinfo))


def keys_of_proxies(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The credentials in all of the variables, in each spelling in which they might be shown."""
    found: list[str] = []
    for name, value in proxy_variables(variables).items():
        if name.lower() != "no_proxy":
            found += _keys(_parted(value)[0])
    return tuple(found)


def is_host(host: str) -> bool:
    """Whether a URL's host, as `urlsplit` takes it out, is one that can be looked up."""
    if ":" in host:
        return True  # an IPv6 address, which was looked at when the URL was taken apart
    try:
        # As it will be looked up; other alphabets have a spelling in this one.
        return _HOST_NAME.fullmatch(host.encode("idna").decode("ascii")) is not None and bool(
            host.encode("idna").decode("idna")
        )
    except UnicodeError:
        return False


def _parted(value: str) -> tuple[str, str]:
    """User and password of a proxy's URL, and its host and port."""
    first, separator, rest = value.partition("://")
    userinfo, _, place = (rest if separator else first).rpartition("@")
    return userinfo, place.removesuffix("/")


def _is_place(place: str) -> bool:
    try:
        parts = urlsplit(f"http://{place}")
        return is_host(parts.hostname or "") and parts.port != 0 and parts.netloc == place
    except ValueError:
        return False


def _named(variables: Mapping[str, str], *names: str) -> tuple[str, str]:
    """The first variable of these that says something, and what."""
    for name in names:
        spelling = name if name in variables else name.upper()
        if variables.get(spelling):
            return spelling, variables[spelling]
    return names[0].upper(), ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    name = host.removesuffix(".")
    return address.is_loopback if address is not None else f".{name}".endswith(".localhost")


def _is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: itself or a domain above it, with its port or without; a network; or `*`, for all."""
    address = _address(host)
    name = host.removesuffix(".")
    for entry in no_proxy.lower().replace(",", " ").split():
        place = entry.removesuffix(f":{port}").lstrip("*").strip(".[]")
        if entry == "*":
            return True
        if address is None:
            if place and f".{name}".endswith(f".{place}"):
                return True
            continue
        with suppress(ValueError):
            if address in ipaddress.ip_network(place, strict=False):
                return True
    return False


def _basic(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    return (
        "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode(errors="surrogateescape")).decode()
    )


def _keys(userinfo: str) -> tuple[str, ...]:
    if not userinfo:
        return ()
    user, _, password = userinfo.partition(":")
    # Without a password the name is the key, as some proxies have it.
    secret = password or user
    return (userinfo, unquote(userinfo), secret, unquote(secret), _basic(userinfo).removeprefix("Basic "))
