"""Settings: what a run is to do, checked once, with no notion of flags or files they came from.

`Settings` has a field for each flag of `batchkit run`, by the same name; `RunSettings` is the same as a TypedDict, for
callers who pass keywords. As whom it may do it is kept apart (`batchkit.credentials`), and where (`batchkit.destination`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from batchkit.errors import UsageError
from batchkit.formats.prices import decode_prices, prices_of
from batchkit.formats.requests import HEADER_TEXT_CHARS, is_header_text
from batchkit.records import METADATA_VALUE_CHARS
from batchkit.rules.retry import DEFAULT_MAX_ATTEMPTS

__all__ = [
    "DEFAULT_CONCURRENCY",
    "DEFAULT_TIMEOUT_S",
    "OF_FILES",
    "Progress",
    "RunSettings",
    "Settings",
    "read_prices",
]

DEFAULT_CONCURRENCY = 256
DEFAULT_TIMEOUT_S = 600.0
Progress = Literal["auto", "bar", "log", "off"]
OF_FILES = ("retry_failed", "overwrite", "allow_growth", "force", "rescan")
"""Settings that say what becomes of a job's files, and mean nothing without them; each is off by default."""

_TEXTS = frozenset(
    ("base_url", "model", "job_id", "portkey_config", "portkey_provider", "cache_namespace", "hedge")
)
_LEAST_DOLLARS, _MOST_DOLLARS = Decimal("1e-12"), 10**12


class RunSettings(TypedDict, total=False):
    """The keyword arguments of `run`, `arun` and `stream`; `Settings` tells what each means."""

    base_url: str | None
    simulate: bool
    model: str | None
    set: Mapping[str, Any]
    concurrency: int
    rpm: float | None
    tpm: float | None
    timeout: float
    fixed_timeout: bool
    max_attempts: int
    max_cost: Decimal | float | str | None
    max_failures: int | str | None
    hedge: str | None
    limit: int | None
    prices: str | os.PathLike[str] | Mapping[str, Mapping[str, Any]]
    retry_failed: bool
    overwrite: bool
    job_id: str | None
    progress: Progress
    portkey_config: str | None
    portkey_provider: str | None
    portkey_metadata: Mapping[str, str]
    cache_namespace: str | None
    cache_force_refresh: bool
    allow_http: bool
    trust_env: bool
    allow_growth: bool
    force: bool
    rescan: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is to do. Raises UsageError for values that mean nothing."""

    base_url: str | None = None
    """Any OpenAI-compatible endpoint, the part before `/chat/completions`; None chooses by the keys there are."""
    simulate: bool = False
    """Send to an embedded simulator: no key, no network, no cost."""
    model: str | None = None
    """Fills `model` where a record has none."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Fills any other field of the body where a record has none."""
    concurrency: int = DEFAULT_CONCURRENCY
    """Most attempts in flight: a bound, not a target."""
    rpm: float | None = None
    """Most requests a minute; None finds the server's limit by its answers."""
    tpm: float | None = None
    """Most tokens a minute, prompts and completions; None leaves them unlimited until the server refuses."""
    timeout: float = DEFAULT_TIMEOUT_S
    """Seconds for one attempt, from connecting to the last byte."""
    fixed_timeout: bool = False
    """Each attempt has the whole `timeout`; without it, one is given up and repeated that takes far longer than its peers."""
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    """Attempts a request may spend on transient faults; being rate limited is no fault."""
    max_cost: Decimal | float | str | None = None
    """The most, in US dollars, that all runs of the job together may cost: no attempt starts that could pass it."""
    max_failures: int | str | None = None
    """Stop the run when so many requests of the job have failed: a number, or a share as in "5%"."""
    hedge: str | None = None
    """Make a second attempt beside one that takes longer than 95 of 100 of its peers did, as long as those are no more than a share
    of the answers, as in "2%", which is what it may cost; None makes none."""
    limit: int | None = None
    """Only the first so many requests; None is all."""
    prices: str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Prices that come before the price list's, by model (`formats.prices` tells the keys), or the TOML file they stand in."""
    retry_failed: bool = False
    """Work through the job's failures once more."""
    overwrite: bool = False
    """Begin the job anew; old files are moved aside, never deleted."""
    job_id: str | None = None
    """Names the job in trace ids and reports; None makes one up, once."""
    progress: Progress = "auto"
    """bar, log or off; auto is a bar on a terminal and a line every 10 s elsewhere."""
    portkey_config: str | None = None
    """Portkey config, a slug or JSON, for every request."""
    portkey_provider: str | None = None
    """Portkey provider for every request, as `openai` or `@slug`."""
    portkey_metadata: Mapping[str, str] = field(default_factory=dict)
    """Portkey metadata for every request; a record's own wins key by key."""
    cache_namespace: str | None = None
    """Portkey cache namespace for every request."""
    cache_force_refresh: bool = False
    """Have Portkey refresh its cache."""
    allow_http: bool = False
    """Plain http also to addresses that are neither loopback nor private."""
    trust_env: bool = False
    """Send through the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name; no other file or variable is heeded."""
    allow_growth: bool = False
    """Go on although the input has become longer; its earlier lines must be as they were."""
    force: bool = False
    """Go on although model, endpoint or body defaults differ from those the job began with."""
    rescan: bool = False
    """Rebuild the checkpoint from the output files, although they are shorter than it says."""

    def __post_init__(self) -> None:
        if isinstance(self.prices, str | os.PathLike):
            # Read once: what was given may be a pipe, and a run is priced alike from its beginning to its end.
            object.__setattr__(self, "prices", read_prices(self.prices))
        for each in fields(self):
            self._check_type(each.name, each.default)
        self._check_number("concurrency", least=1)
        self._check_number("max_attempts", least=1)
        self._check_number("limit", least=0)
        for name in ("rpm", "tpm", "timeout"):
            value = getattr(self, name)
            if value is None and name != "timeout":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise UsageError(f"{name} is {value!r}; it is a number above 0")
        object.__setattr__(self, "max_cost", self.cost_cap)
        object.__setattr__(self, "prices", self.given_prices)
        if self.progress not in get_args(Progress):
            raise UsageError(f"progress is {self.progress!r}; it is one of {', '.join(get_args(Progress))}")
        if self.simulate and self.base_url is not None:
            raise UsageError(
                "simulate and base_url exclude each other: a simulated run sends nothing elsewhere"
            )
        if self.overwrite and self.retry_failed:
            raise UsageError("overwrite begins anew and retry_failed goes on; choose one of them")
        self._check_portkey()
        try:
            plain = json.loads(json.dumps(dict(self.set), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"set holds what JSON cannot: {error}") from error
        # As it will be read back from the output, so that a job that goes on finds itself unchanged.
        object.__setattr__(self, "set", plain)
        for name in ("messages", "stream"):
            if name in self.set:
                raise UsageError(f"{name} cannot be set for all requests")
        if self.job_id is not None and not (
            self.job_id.isascii() and self.job_id.isprintable() and 0 < len(self.job_id) <= 64
        ):
            raise UsageError("a job id is 1 to 64 printable ASCII characters")
        self.failures_allowed(100)
        _ = self.hedge_share

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from keywords. Raises UsageError for one that does not exist."""
        known = {each.name for each in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"there is no setting {name!r}; there are {', '.join(sorted(known))}")
        return cls(**values)

    @property
    def given_prices(self) -> Mapping[str, Mapping[str, Decimal]]:
        """`prices` as numbers, by model and `prompt`, `completion`, … in US dollars."""
        assert isinstance(self.prices, Mapping)
        try:
            return prices_of(self.prices)
        except ValueError as error:
            raise UsageError(f"prices: {error}") from error

    @property
    def defaults(self) -> dict[str, Any]:
        """The body fields to fill in where a record has none."""
        return dict(self.set) if self.model is None else {"model": self.model, **self.set}

    def failures_allowed(self, requests: int) -> float:
        """How many of so many requests may fail before the run stops; infinity without a bound."""
        bound = self.max_failures
        if bound is None:
            return math.inf
        text = str(bound).strip()
        share = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if (
            isinstance(bound, bool)
            or not 0 < number < math.inf
            or (share and number > 100)
            or (not share and number % 1)
        ):
            raise UsageError(
                f'max_failures is {bound!r}; it is a number of requests as in 100, or a share as in "5%"'
            )
        return max(1.0, requests * number / 100) if share else number

    @property
    def hedge_share(self) -> float | None:
        """`hedge` as a number: how many second attempts there may be for each answer."""
        if self.hedge is None:
            return None
        text = self.hedge.strip()
        try:
            percent = float(text.removesuffix("%"))
        except ValueError:
            percent = math.nan
        if not text.endswith("%") or not 0 < percent <= 100:
            raise UsageError(f'hedge is {self.hedge!r}; it is a share above 0 and up to 100%, as in "2%"')
        return percent / 100

    @property
    def cost_cap(self) -> Decimal | None:
        """`max_cost` as it was meant: 0.1 is a tenth, and not what a float makes of it."""
        value = self.max_cost
        if value is None:
            return None
        try:
            amount = Decimal("NaN" if isinstance(value, bool) else str(value).strip())
        except InvalidOperation:
            amount = Decimal("NaN")
        if not amount.is_finite() or not _LEAST_DOLLARS <= amount <= _MOST_DOLLARS:
            raise UsageError(f"max_cost is {value!r}; it is an amount of US dollars above 0, as 12.50")
        return amount

    def _check_type(self, name: str, default: Any) -> None:
        """Flags, texts and tables; a number, and what may be one, is checked where its bounds are."""
        value = getattr(self, name)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise UsageError(f"{name} is {value!r}; it is true or false")
        elif default is MISSING:
            if not isinstance(value, Mapping):
                raise UsageError(f"{name} is {value!r}; it is a mapping")
        elif name in _TEXTS and not isinstance(value, str | None):
            raise UsageError(f"{name} is {value!r}; it is a string")

    def _check_portkey(self) -> None:
        for name, text in self.portkey_metadata.items():
            if not isinstance(text, str):
                raise UsageError(f"portkey_metadata {name!r} is {text!r}; it is a string")
            if len(text) > METADATA_VALUE_CHARS:
                raise UsageError(
                    f"portkey_metadata {name!r} has {len(text)} characters; Portkey takes {METADATA_VALUE_CHARS}"
                )
            if not _is_unicode(f"{name}{text}"):
                raise UsageError(f"portkey_metadata {name!r} has characters that are none in any alphabet")
        for name in ("portkey_provider", "cache_namespace"):
            text = getattr(self, name)
            if text is not None and not is_header_text(text):
                raise UsageError(
                    f"{name} travels in a header: a string of 1 to {HEADER_TEXT_CHARS} printable ASCII characters"
                )
        config = self.portkey_config
        if config is not None and config.lstrip().startswith("{"):
            try:
                # On one line and in ASCII, as a header takes it, however it was written.
                config = json.dumps(json.loads(config), separators=(",", ":"), allow_nan=False)
            except (ValueError, RecursionError):
                raise UsageError("portkey_config begins like a JSON object and is none") from None
            object.__setattr__(self, "portkey_config", config)
        elif config is not None and not is_header_text(config):
            raise UsageError(
                f"portkey_config is a JSON object, or the id of one: 1 to {HEADER_TEXT_CHARS} printable ASCII characters"
            )

    def _check_number(self, name: str, *, least: int) -> None:
        value = getattr(self, name)
        if value is None and name == "limit":
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} is {value!r}; it is a whole number of at least {least}")


def read_prices(path: str | os.PathLike[str]) -> dict[str, dict[str, Decimal]]:
    """The prices in a TOML file. Raises UsageError that names the file, the key and what is expected there."""
    try:
        return decode_prices(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the price file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the price file {path}: {error}") from error


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes of a command line that are no UTF-8 come as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
