"""`batchkit`: argv in, an exit code out. Signals are caught here, and here alone something is printed on stdout.

What takes long to import is imported by the command that needs it, so that `--version` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from batchkit.cli.memory import keep_freed_memory, rare_collections
from batchkit.cli.redaction import keys_hidden
from batchkit.errors import BatchkitError, Interrupted, RunStopped
from batchkit.version import __version__

if TYPE_CHECKING:
    from batchkit.engine.stop import Stop

__all__ = ["main"]

_EPILOG = """\
exit codes: 0 every request has its result; 1 finished, with failures; 2 wrong usage, settings or input file, nothing was
sent; 3 stopped early, nothing lost, the same command goes on; 4 the job's files are locked, damaged or belong to another
input; 130, 143 stopped by a signal after draining, the same command goes on.

Keys come from the environment: PORTKEY_API_KEY (with PORTKEY_VIRTUAL_KEY), or OPENAI_API_KEY; or from a file of mode 0600
that PORTKEY_API_KEY_FILE, PORTKEY_VIRTUAL_KEY_FILE or OPENAI_API_KEY_FILE names.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program's name, by default what was typed. Returns the exit code."""
    # The memory goes with the process: to look through all of it for garbage first would take a tenth of a short run.
    atexit.register(gc.freeze)
    _open_standard_streams()
    with keys_hidden(os.environ):
        try:
            parser = _parser()
            args, unknown = parser.parse_known_args(argv)
            if unknown:
                parser.error(f"unrecognized arguments: {_without_values(unknown)}")
            return _run_command(args)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Exception:  # noqa: BLE001 - it ends the program as it would, but is printed where keys are hidden
            with suppress(OSError):
                traceback.print_exc()
            return 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)


def _without_values(words: Sequence[str]) -> str:
    """Words that no flag is called, without what may have been meant as their values: it may be a key."""
    shown = []
    after_flag = False
    for word in words:
        is_flag = word.startswith("-")
        if word.startswith("--"):
            shown.append(word.partition("=")[0])
        elif is_flag:
            shown.append(word[:2])
        elif not after_flag:
            shown.append(word)
        after_flag = is_flag
    return " ".join(shown)


def _run_command(args: argparse.Namespace) -> int:
    try:
        code: int = args.command(args)
    except BatchkitError as error:
        from batchkit.formats.words import printable  # noqa: PLC0415

        if error.summary is not None:
            _print_summary(error.summary, as_json=args.json)
        elif args.json:
            _print_json({"error": {"code": type(error).__name__, "message": str(error)}})
        # An endpoint's own words may stand in it, and those may be meant for the terminal.
        _say(f"batchkit: {printable(str(error))}", sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        _say(
            f"batchkit: {error.strerror}. Allow more with `ulimit -n`; the same command goes on from here.",
            sys.stderr,
        )
        return RunStopped.exit_code
    return code


def _open_standard_streams() -> None:
    """Put the null device where a standard stream is closed, or the next file opened would be taken for it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one: those below were looked at before.
            os.open(os.devnull, os.O_RDWR)
            if name != "stdin":  # to read it is an error, and not an empty input
                setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115


def _say(text: str, stream: TextIO | None = None) -> None:
    """Print. That nobody reads it any more, or that it finds no room, is quiet: what counts stands in the files."""
    stream = sys.stdout if stream is None else stream
    with suppress(OSError):
        print(text, file=stream)
    _flush(stream)


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        # Python flushes once more at its end, and would exit with 120 if that failed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchkit",
        description="A file of prompts in, a file of answers out. Killed half way and started again, it goes on where it was.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"batchkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_estimate(commands)
    _add_validate(commands)
    for name, command, meaning in (
        ("status", _status, "how far a job is, from its files, also while it runs"),
        ("report", _report, "rebuild summary and report from the output files alone"),
        ("repair", _repair, "move damage aside, lose nothing readable, and say what will be asked again"),
    ):
        each = commands.add_parser(name, help=meaning, description=meaning[0].upper() + meaning[1:] + ".")
        each.add_argument("output", metavar="OUTPUT", help="the job's results file")
        _add_json(each)
        if name == "report":
            each.add_argument(
                "--by",
                metavar="metadata.KEY",
                help="the totals also apart by what the requests' metadata says under KEY",
            )
        each.set_defaults(command=command)
    # Its flags show the defaults of the simulator's settings, which are cheap to import; its server is not.
    from batchkit.cli.simulate import add_parser  # noqa: PLC0415

    add_parser(commands)
    return parser


def _add_run(commands: Any) -> None:
    from batchkit.cli.args import add_run_flags  # noqa: PLC0415 - the simulator's child does without

    run = commands.add_parser(
        "run",
        help="work through the input; started again, it goes on where it was",
        description="Work through INPUT, a JSONL file of chat requests (.gz and .zst are read as they are, - is stdin), into "
        "OUTPUT. Started again, it goes on where it was.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("input", metavar="INPUT", help="JSONL file of requests, or - for stdin")
    run.add_argument(
        "-o", "--output", metavar="OUTPUT", required=True, help="where results go, one line each"
    )
    _add_json(run)
    add_run_flags(run)
    run.set_defaults(command=_run)


def _add_estimate(commands: Any) -> None:
    from batchkit.cli.args import add_estimate_flags  # noqa: PLC0415 - the simulator's child does without

    meaning = "requests, tokens, cost and time, before a cent is spent; sends nothing"
    estimate = commands.add_parser(
        "estimate",
        help=meaning,
        description="Say what INPUT will take: requests, prompt tokens (exact where the tokenizer is public), completion "
        "tokens and cost as low, expected and high, and seconds under the limits that are known. Sends nothing and needs no "
        "key, unless --pilot asks for some of the answers.",
    )
    estimate.add_argument("input", metavar="INPUT", help="JSONL file of requests, or - for stdin")
    estimate.add_argument(
        "--pilot",
        metavar="N",
        type=int,
        help="send N of the requests, spread evenly over the input, and measure what answers take; costs what they cost",
    )
    _add_json(estimate)
    add_estimate_flags(estimate)
    estimate.set_defaults(command=_estimate)


def _add_validate(commands: Any) -> None:
    meaning = (
        "every bad line of an input, with its number and reason, and duplicate custom_ids; sends nothing"
    )
    validate = commands.add_parser(
        "validate", help=meaning, description=meaning[0].upper() + meaning[1:] + "."
    )
    validate.add_argument("input", metavar="INPUT", help="JSONL file of requests, or - for stdin")
    _add_json(validate)
    validate.set_defaults(command=_validate)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")


def _run(args: argparse.Namespace) -> int:
    from batchkit.api import run_in_loop  # noqa: PLC0415
    from batchkit.cli.args import settings_from  # noqa: PLC0415
    from batchkit.credentials import Credentials  # noqa: PLC0415
    from batchkit.engine.stop import Stop  # noqa: PLC0415
    from batchkit.job import run_job  # noqa: PLC0415
    from batchkit.observers.progress import choose  # noqa: PLC0415
    from batchkit.outputs import JobPaths  # noqa: PLC0415

    settings = settings_from(args, os.environ)
    # A simulated run takes no key, so it needs none that is right.
    credentials = Credentials() if settings.simulate else Credentials.read(os.environ)
    observer = choose(settings.progress, sys.stderr)

    async def work() -> dict[str, Any]:
        stop = Stop()
        with _Signals(stop):
            return await run_job(
                args.input,
                JobPaths.of(args.output).results,
                settings,
                credentials,
                stop=stop,
                observers=() if observer is None else (observer,),
            )

    keep_freed_memory()
    with rare_collections():
        summary = run_in_loop(work)
    _print_summary(summary, as_json=args.json)
    return 1 if summary["requests"]["failed"] else 0


class _Signals:
    """The first SIGINT or SIGTERM drains, the second leaves; both leave whole files."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        import asyncio  # noqa: PLC0415

        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._handle, number)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    def _handle(self, number: int) -> None:
        cause = Interrupted(
            number, f"stopped by {signal.Signals(number).name}; the same command goes on from here"
        )
        if self._stop.cause is None:
            self._stop.request(cause)
        else:
            self._stop.abandon(cause)


def _estimate(args: argparse.Namespace) -> int:
    from batchkit.api import run_in_loop  # noqa: PLC0415
    from batchkit.cli.args import settings_from  # noqa: PLC0415
    from batchkit.estimation import estimate_input  # noqa: PLC0415
    from batchkit.formats.estimate import render  # noqa: PLC0415

    settings = settings_from(args, os.environ)
    found = estimate_input(args.input, settings, os.environ, pilot=args.pilot, run_in_loop=run_in_loop)
    if args.json:
        _print_json(found)
    else:
        _say(render(found).rstrip())
    return 0


def _validate(args: argparse.Namespace) -> int:
    from batchkit.formats.words import printable  # noqa: PLC0415
    from batchkit.validation import validate  # noqa: PLC0415

    found = validate(args.input)
    if args.json:
        _print_json(found)
    else:
        for line in found["invalid"]:
            _say(f"line {line['index'] + 1}: {printable(line['message'])}")
        for twice in found["duplicate_custom_ids"]:
            lines = ", ".join(str(index + 1) for index in twice["indexes"][:10])
            more = " …" if len(twice["indexes"]) > 10 else ""
            _say(
                f"custom_id {printable(twice['custom_id'])} stands in {len(twice['indexes'])} lines: {lines}{more}"
            )
        _say(f"{found['requests']:,} requests, {len(found['invalid']):,} bad lines of {found['lines']:,}")
    return 1 if found["invalid"] else 0


def _status(args: argparse.Namespace) -> int:
    from batchkit.api import status  # noqa: PLC0415

    _print_summary(status(args.output), as_json=args.json)
    return 0


def _report(args: argparse.Namespace) -> int:
    from batchkit.api import report  # noqa: PLC0415
    from batchkit.formats.breakdown import render_breakdown  # noqa: PLC0415
    from batchkit.rules.groups import NO_VALUE  # noqa: PLC0415

    summary = report(args.output, by=args.by)
    _print_summary(summary, as_json=args.json)
    if args.by is not None and not args.json:
        _say("\n" + render_breakdown(summary["by"], none=NO_VALUE).rstrip())
    return 0


def _repair(args: argparse.Namespace) -> int:
    from batchkit.mending import repair  # noqa: PLC0415

    found = repair(args.output)
    if args.json:
        _print_json(found)
        return 0
    for piece in found["moved"]:
        whose = "unknown" if piece["index"] is None else f"index {piece['index']}"
        _say(f"{piece['file']}: moved {piece['bytes']:,} bytes at {piece['offset']:,} aside ({whose})")
    _say(f"{found['kept']:,} lines kept, {len(found['moved']):,} pieces moved aside")
    if found["asked_again"]:
        _say("the next run asks again: " + ", ".join(map(str, found["asked_again"])))
    if not found["complete"]:
        _say(
            "some of what is gone does not say whose answer it was; the next run asks those requests again as well"
        )
    return 0


def _print_summary(summary: Mapping[str, Any], *, as_json: bool) -> None:
    from batchkit.formats.summary_text import render  # noqa: PLC0415

    if as_json:
        _print_json(summary)
    else:
        # A terminal that knows no such letters shows the line of blocks, or a model's name, with marks in their place.
        encoding = sys.stdout.encoding or "utf-8"
        _say(render(summary).rstrip().encode(encoding, "replace").decode(encoding))


def _print_json(value: Mapping[str, Any]) -> None:
    import orjson  # noqa: PLC0415

    _say(orjson.dumps(value).decode())
