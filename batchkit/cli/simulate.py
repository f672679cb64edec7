"""`batchkit simulate`: a local endpoint that behaves like a provider, for trying jobs without paying."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batchkit.simulator.process import serve
from batchkit.simulator.settings import DEFAULT_PORT, FaultKind, SimulatorSettings

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - its only name

__all__ = ["add_parser", "run_simulate"]

_DEFAULTS = SimulatorSettings()

_EPILOG = """\
faults, each for a share of the bodies, fixed by the seed:
  500, 503, 429   errors as OpenAI spells them
  reset           the connection is reset without an answer
  cut             the connection ends in the middle of a good answer, which is billed
  hang            no answer for as long as the client waits
  html            a page with status 200
  error200        an error object with status 200
  empty           a completion without choices

GET /simulator/stats tells what was received, answered, refused and billed.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to `batchkit`'s; its namespace goes to `run_simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help="a local endpoint that behaves like a provider, for trying jobs without paying",
        description="Serve OpenAI's chat completions on this machine: made-up answers, real usage figures, "
        "lifelike latency, and limits and faults on demand. What is answered depends on the seed and the request "
        "body alone.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run_simulate)
    parser.add_argument("--json", action="store_true", help="print one JSON object: base_url and pid")

    group = parser.add_argument_group("where")
    _add(group, "--host", "host", str, "ADDRESS", "listen on this address")
    _add(group, "--port", "port", int, "N", "listen on this port; 0 is any free one", default=DEFAULT_PORT)

    group = parser.add_argument_group("answers")
    _add(group, "--seed", "seed", int, "N", "the same seed answers the same body alike")
    _add(group, "--output-tokens", "output_tokens", float, "N", "median length of an answer in tokens")
    _add(group, "--output-sigma", "output_sigma", float, "SIGMA", "spread of the lengths (lognormal)")

    group = parser.add_argument_group("latency")
    _add(group, "--first-token-s", "first_token_s", float, "S", "median seconds until the first token")
    _add(group, "--first-token-sigma", "first_token_sigma", float, "SIGMA", "its spread (lognormal)")
    _add(group, "--tokens-per-s", "tokens_per_s", float, "N", "median speed of one answer after that")
    _add(group, "--tokens-per-s-sigma", "tokens_per_s_sigma", float, "SIGMA", "its spread (lognormal)")
    _add(group, "--speed", "speed", float, "X", "so many times faster than life; limits stay as they are")
    group.add_argument("--instant", action="store_true", help="no latency at all")

    group = parser.add_argument_group("limits")
    _add(group, "--rpm", "rpm", int, "N", "requests a minute")
    _add(group, "--tpm", "tpm", int, "N", "tokens a minute")
    _add(group, "--max-in-flight", "max_in_flight", int, "N", "requests worked on at once")
    _add(group, "--refusal-cost", "refusal_cost", int, "N", "requests that each refusal takes out of --rpm")
    group.add_argument("--hide-limits", action="store_true", help="tell no limit, nor when to come again")
    _add(group, "--retry-after-s", "retry_after_s", float, "S", "the Retry-After of every refusal by a limit")
    _add(group, "--quota", "quota", int, "N", "billed answers after which the account is empty")
    group.add_argument(
        "--refuse-key", action="store_true", help="refuse every request as one with a wrong key"
    )

    group = parser.add_argument_group("faults")
    group.add_argument(
        "--fault",
        dest="faults",
        action="append",
        type=_fault,
        default=[],
        metavar="KIND=SHARE",
        help="let this share of the bodies fail, such as 500=0.05; repeatable",
    )
    _add(group, "--fault-times", "fault_times", int, "N", "how often such a body fails before it is answered")
    _add(group, "--ledger", "ledger", str, "FILE", "append one JSON line for each billed answer")


def run_simulate(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; the exit status. Raises `UsageError` for options that cannot be meant."""
    names = SimulatorSettings.__dataclass_fields__
    settings = SimulatorSettings(
        **{name: value for name, value in vars(args).items() if name in names and name != "faults"},
        faults=dict(args.faults),
    )

    def announce(base_url: str) -> None:
        line = json.dumps({"base_url": base_url, "pid": os.getpid()}) if args.json else base_url
        print(line, flush=True)
        print(f"Answering at {base_url}/chat/completions; Ctrl-C ends it.", file=sys.stderr, flush=True)

    serve(settings, announce=announce, watch=_watch_signals)
    return 0


def _watch_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _add(
    group: argparse._ArgumentGroup,
    flag: str,
    name: str,
    kind: Callable[[str], Any],
    metavar: str,
    meaning: str,
    *,
    default: Any = None,
) -> None:
    """An option that is the setting `name`, with that setting's default unless it has one of its own."""
    value = default if default is not None else getattr(_DEFAULTS, name)
    known = "no limit" if value is None and kind is int else "none" if value is None else f"{value}"
    group.add_argument(
        flag, dest=name, type=kind, default=value, metavar=metavar, help=f"{meaning} (default: {known})"
    )


def _fault(words: str) -> tuple[str, float]:
    kind, equals, share = words.partition("=")
    try:
        if not equals:
            raise ValueError
        return kind, float(share)
    except ValueError:
        example = f"{FaultKind.SERVER_ERROR}=0.05"
        raise argparse.ArgumentTypeError(f"{words!r} is not KIND=SHARE, such as {example}") from None
