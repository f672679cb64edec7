"""What was typed, and what the environment and a settings file say, to `Settings`.

Each setting of a run is one entry of `_FLAGS`. A flag wins over the environment (`BATCHKIT_RPM` for `--rpm`), the
environment over the file; what none of them names keeps the default of `batchkit.settings`.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from batchkit.credentials import keys_within
from batchkit.errors import UsageError
from batchkit.settings import Settings, read_prices

__all__ = ["add_estimate_flags", "add_run_flags", "settings_from"]

_ENVIRONMENT_PREFIX = "BATCHKIT_"


@dataclass(frozen=True, slots=True)
class _Flag:
    """One setting on the command line. `read` turns its text into its value; None marks one that is on when named."""

    name: str
    metavar: str
    meaning: str
    read: Callable[[str], Any] | None = None
    pairs: bool = False
    """Whether it takes KEY=VALUE and may be repeated."""

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")


def _whole(text: str) -> int:
    return int(text.replace("_", ""))


def _number(text: str) -> float:
    return float(text.replace("_", ""))


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ValueError(f"{text!r} is not JSON; a string needs its quotes: '\"{text}\"'") from None


_GROUPS: dict[str, tuple[_Flag, ...]] = {
    "endpoint": (
        _Flag("base_url", "URL", "any OpenAI-compatible endpoint, the part before /chat/completions", str),
        _Flag("simulate", "", "send to an embedded simulator: no key, no network, no cost"),
        _Flag("allow_http", "", "plain http also to addresses that are neither loopback nor private"),
        _Flag(
            "trust_env",
            "",
            "send through the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name",
        ),
    ),
    "requests": (
        _Flag("model", "NAME", "fills model where a record has none", str),
        _Flag(
            "set",
            "KEY=JSON",
            "fills any other body field where a record has none; repeatable",
            _json,
            pairs=True,
        ),
        _Flag("limit", "N", "only the first N requests", _whole),
    ),
    "cost": (_Flag("prices", "FILE", "TOML with prices that come before the price list's", read_prices),),
    "pace": (
        _Flag("concurrency", "N", "most attempts in flight; a bound, not a target", _whole),
        _Flag(
            "rpm",
            "N",
            "most requests a minute; without it the server's limit is found by its answers",
            _number,
        ),
        _Flag("tpm", "N", "most tokens a minute", _number),
        _Flag("timeout", "S", "seconds for one attempt, from connecting to the last byte", _number),
        _Flag(
            "fixed_timeout", "", "each attempt has the whole --timeout, however soon its peers were answered"
        ),
        _Flag("max_attempts", "N", "attempts a request may spend on transient faults", _whole),
        _Flag(
            "hedge",
            "P%",
            "make a second attempt beside one that takes longer than 95 % of its peers did, and use the answer that comes first; "
            "at most P second attempts for 100 answers, which is what this may add to the cost",
            str,
        ),
        _Flag("max_cost", "USD", "never start an attempt whose worst case could take the job past this", str),
        _Flag("max_failures", "N|P%", "stop the run when so many requests have failed", str),
    ),
    "job": (
        _Flag("job_id", "ID", "names the job in trace ids and reports; made up once", str),
        _Flag("retry_failed", "", "work through the job's failures once more"),
        _Flag("overwrite", "", "begin the job anew; old files are moved aside, never deleted"),
        _Flag("allow_growth", "", "go on although lines were added at the input's end"),
        _Flag("force", "", "go on although model, endpoint or body defaults differ from before"),
        _Flag("rescan", "", "trust the output files although they are shorter than their checkpoint says"),
    ),
    "Portkey": (
        _Flag("portkey_config", "ID|JSON", "config for every request", str),
        _Flag(
            "portkey_provider",
            "NAME",
            "provider for every request; with it OPENAI_API_KEY goes to Portkey",
            str,
        ),
        _Flag("portkey_metadata", "KEY=VALUE", "metadata for every request; repeatable", str, pairs=True),
        _Flag("cache_namespace", "NAME", "cache namespace for every request", str),
        _Flag("cache_force_refresh", "", "have Portkey refresh its cache"),
    ),
    "display": (
        _Flag(
            "progress", "MODE", "auto, bar, log or off: a bar on a terminal, a line every 10 s elsewhere", str
        ),
    ),
}
_FLAGS = {flag.name: flag for flags in _GROUPS.values() for flag in flags}
_OF_JOBS = frozenset(flag.name for flag in _GROUPS["job"]) | {"max_cost", "max_failures"}
"""Settings that mean nothing where no job is run."""


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting; what was typed is kept as text, for `settings_from` to read."""
    _add_flags(parser, _GROUPS)


def add_estimate_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting that an estimate, or the requests it sends, go by."""
    groups = {
        title: tuple(flag for flag in flags if flag.name not in _OF_JOBS) for title, flags in _GROUPS.items()
    }
    _add_flags(parser, {title: flags for title, flags in groups.items() if flags})


def _add_flags(parser: argparse.ArgumentParser, groups: Mapping[str, tuple[_Flag, ...]]) -> None:
    defaults = {each.name: each.default for each in fields(Settings)}
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            meaning = flag.meaning.replace("%", "%%")
            if flag.read is None:
                group.add_argument(
                    flag.option, dest=flag.name, action="store_const", const="true", help=meaning
                )
                continue
            default = defaults[flag.name]
            shown = f" (default {default:g})" if isinstance(default, int | float) else ""
            group.add_argument(
                flag.option,
                dest=flag.name,
                metavar=flag.metavar,
                action="append" if flag.pairs else "store",
                help=meaning + shown,
            )
    parser.add_argument("--settings", metavar="FILE", help="TOML with these words as keys")


def settings_from(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings of a run. Raises UsageError, naming where a wrong value came from."""
    values: dict[str, Any] = {}
    if args.settings is not None:
        values = _from_file(Path(args.settings))
        for name, value in values.items():
            _check(name, value, args.settings)
    for variable, value in environ.items():
        # One that is misspelt may have been meant as a limit of what the job costs.
        if variable.startswith(_ENVIRONMENT_PREFIX) and value:
            if variable != variable.upper():
                raise UsageError(f"{variable} is not read; write it in capitals")
            _refuse_unknown(variable.removeprefix(_ENVIRONMENT_PREFIX).lower(), variable)
    from_environment, typed = {}, {}
    for flag in _FLAGS.values():
        variable = _ENVIRONMENT_PREFIX + flag.name.upper()
        if environ.get(variable):
            from_environment[flag.name] = _read(flag, environ[variable], variable)
            _check(flag.name, from_environment[flag.name], variable)
        words = getattr(args, flag.name, None)
        if words is not None:
            typed[flag.name] = _read_pairs(flag, words) if flag.pairs else _read(flag, words, flag.option)
            _check(flag.name, typed[flag.name], flag.option)
    _lay_over(values, from_environment)
    for name, value in typed.items():
        if _FLAGS[name].pairs:
            typed[name] = {**values.get(name, {}), **value}
    _lay_over(values, typed)
    return Settings.of(values)


_RIVALS = (("simulate", "base_url"), ("overwrite", "retry_failed"))
"""Settings of which only one can be meant."""


def _lay_over(values: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Have `above` win over `values`, also over what there excludes it: a job's file is rehearsed with --simulate."""
    for pair in _RIVALS:
        for one, other in (pair, reversed(pair)):
            if above.get(one) and other not in above:
                values.pop(other, None)
    values.update(above)


def _check(name: str, value: Any, source: str) -> None:
    """Have a value checked by itself, while it is known where it came from."""
    try:
        alone = Settings.of({name: value})
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    if not source.startswith(_ENVIRONMENT_PREFIX) and keys_within(alone.portkey_config):
        raise UsageError(
            f"{source}: the Portkey config holds keys, which others can read there: name a config by its id, or give it in "
            f"{_ENVIRONMENT_PREFIX}PORTKEY_CONFIG"
        )


def _read(flag: _Flag, text: str, source: str) -> Any:
    if flag.read is None:
        lowered = text.strip().lower()
        if lowered not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
            raise UsageError(f"{source} is {text!r}; it is true or false")
        return lowered in {"1", "true", "yes", "on"}
    if flag.pairs:
        pairs = _json_object(text, source)
        return pairs if flag.read is _json else {name: str(value) for name, value in pairs.items()}
    try:
        return flag.read(text)
    except ValueError as error:
        wanted = "a whole number" if flag.read is _whole else "a number"
        raise UsageError(f"{source} is {text!r}; it is {wanted}") from error


def _json_object(text: str, source: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{source} is a JSON object; {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{source} is a JSON object")
    return value


def _read_pairs(flag: _Flag, texts: list[str]) -> dict[str, Any]:
    assert flag.read is not None
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag.option} takes {flag.metavar}, not {text!r}")
        try:
            pairs[name] = flag.read(value)
        except ValueError as error:
            raise UsageError(f"{flag.option} {name}: {error}") from error
    return pairs


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the settings file {path} is not TOML: {error}") from error
    values = {name.replace("-", "_"): value for name, value in table.items()}
    for name, value in values.items():
        _refuse_unknown(name, str(path))
        flag = _FLAGS[name]
        wanted = _types(flag)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise UsageError(f"{path}: {name} is {value!r}, which is not {_TYPE_WORDS[wanted]}")
        if flag.read is read_prices:
            values[name] = read_prices(str(value))
    return values


def _refuse_unknown(name: str, source: str) -> None:
    if name not in _FLAGS:
        from difflib import get_close_matches  # noqa: PLC0415 - most commands do without

        meant = get_close_matches(name, _FLAGS, n=1)
        others = f"{meant[0]!r} is one" if meant else f"there are {', '.join(sorted(_FLAGS))}"
        raise UsageError(f"{source}: there is no setting {name!r}; {others}")


_TYPE_WORDS: dict[tuple[type, ...], str] = {
    (bool,): "true or false",
    (dict,): "a table",
    (int,): "a whole number",
    (int, float): "a number",
    (str,): "a string",
    (str, int): "a number or a share",
    (str, int, float): "an amount",
}


def _types(flag: _Flag) -> tuple[type, ...]:
    if flag.pairs:
        return (dict,)
    if flag.name == "max_failures":
        return (str, int)
    if flag.name == "max_cost":
        return (str, int, float)
    by_reader: dict[Any, tuple[type, ...]] = {
        None: (bool,),
        _whole: (int,),
        _number: (int, float),
        read_prices: (str,),
        str: (str,),
    }
    return by_reader[flag.read]
