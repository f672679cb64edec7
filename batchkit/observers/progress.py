"""How a run is getting on, for the person who started it: a bar on a terminal, a plain line now and then elsewhere.

Both show the same parts, made of a `Gauges` by `parts`. The bar has one line, so on a narrow terminal it leaves out
what is missed least. tqdm is left what it is good at: a bar of the width that remains, drawn over itself, with other
lines written above it. It starts no thread here and draws only when the run says `tick`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from tqdm import tqdm

from batchkit.events import AttemptFailed, Event, Gauges, Notice, Observer, RunStarted, RunStopping
from batchkit.formats.words import amount, dollars, duration, printable

__all__ = ["Mode", "Part", "ProgressBar", "ProgressLog", "choose", "parts"]

Mode = Literal["auto", "bar", "log", "off"]

_NARROWEST_BAR = 5
_LONGEST_NOTE = 300
_LONGEST_NAME = 40
_DEFAULT_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to say of a run, in full and short. Each has its own `rank`; the lowest has the first claim to a place."""

    rank: int
    long: str
    short: str


def choose(mode: Mode, stream: TextIO) -> Observer | None:
    """The observer that `mode` asks for, writing to `stream`; None if it is off.

    `auto` is a bar where the stream is a terminal and log lines elsewhere.
    """
    match mode:
        case "off":
            return None
        case "bar":
            return ProgressBar(stream)
        case "log":
            return ProgressLog(stream)
        case "auto":
            return ProgressBar(stream) if stream.isatty() else ProgressLog(stream)


def parts(gauges: Gauges) -> list[Part]:
    """What there is to say, in the order in which it is said."""
    return list(_parts(gauges))


def _parts(gauges: Gauges) -> Iterator[Part]:
    done = gauges.succeeded + gauges.failed
    if gauges.total is None:
        yield Part(0, f"{done:,} done", f"{done:,}")
    else:
        share = f" ({100 * done / gauges.total:.1f} %)" if gauges.total else ""
        yield Part(0, f"{done:,} of {gauges.total:,} done{share}", f"{done:,}/{gauges.total:,}")
    # No failures are worth a word in a line that has the room, but must not push out what is.
    yield Part(1 if gauges.failed else 8, f"{gauges.failed:,} failed", f"{gauges.failed:,} failed")
    yield Part(5, f"{gauges.in_flight:,} in flight", f"{gauges.in_flight:,} in flight")
    yield Part(3, f"{amount(gauges.requests_per_s)} requests/s", f"{amount(gauges.requests_per_s)}/s")
    yield Part(7, f"{amount(gauges.tokens_per_s)} tokens/s", f"{_thousands(gauges.tokens_per_s)} tok/s")
    if gauges.cost is not None:
        cost = dollars(gauges.cost)
        if gauges.max_cost is not None:
            most = dollars(gauges.max_cost)
            yield Part(4, f"{cost} of {most}", f"{cost}/{most}")
        else:
            yield Part(
                4, f"at least {cost}" if gauges.cost_is_partial else cost, cost + "+" * gauges.cost_is_partial
            )
    if gauges.holding and not gauges.awaited:
        detail = f": {printable(gauges.detail)}" if gauges.detail else ""
        yield Part(6, f"held back by {gauges.holding}{detail}", f"held by {gauges.holding}")
    if gauges.awaited:
        # How long that takes nobody can tell, least of all by how long the others took.
        named = [
            f"{_line(name, _LONGEST_NAME)} (since {duration(seconds)})" for name, seconds in gauges.awaited
        ]
        more = ", …" if gauges.unfinished > len(named) else ""
        requests = f"{gauges.unfinished:,} request" + "s" * (gauges.unfinished != 1)
        yield Part(2, f"waiting for {requests}: {', '.join(named)}{more}", f"waiting for {named[0]}")
    elif gauges.seconds_left is not None:
        yield Part(2, f"{duration(gauges.seconds_left)} left", f"{duration(gauges.seconds_left)} left")


class _Notes:
    """The lines that events are worth: each kind of fault is told once, so that one sees why attempts are repeated."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def of(self, event: Event) -> str | None:
        """The line for `event`, None if it is worth none."""
        match event:
            case RunStarted(succeeded=0, failed=0):
                return None
            case RunStarted():
                return (
                    f"going on: {event.succeeded:,} results and {event.failed:,} failures stand from earlier"
                )
            case Notice():
                return _line(event.message)
            case RunStopping():
                return _line(
                    f"stopping: {event.reason}; answers in flight are waited for, Ctrl-C leaves at once"
                )
            case AttemptFailed() if event.failure.kind.value not in self._told:
                self._told.add(event.failure.kind.value)
                return _line(
                    f"first {event.failure.kind.value}: {event.failure.message or event.failure.code};"
                    f" asked again in {duration(event.wait_s)}, and others like it without a word"
                )
            case _:
                return None


class ProgressLog:
    """A plain line every ten seconds, for where there is no terminal."""

    interval_s = 10.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._notes = _Notes()

    def handle(self, event: Event) -> None:
        """Write what is worth a line."""
        if (note := self._notes.of(event)) is not None:
            self._write(note)

    def tick(self, gauges: Gauges) -> None:
        """Write how the run stands."""
        self._write(", ".join(part.long for part in parts(gauges)))

    def close(self) -> None:
        """Nothing is left to do."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


# tqdm's monitor is a thread that redraws bars which were not updated in time; ours are redrawn by the run. Its default
# lock is one for many processes. Both are settings of a class, and this class is ours alone.
_Bar: Any = type("_Bar", (tqdm,), {"monitor_interval": 0})
_Bar.set_lock(threading.RLock())


class ProgressBar:
    """One line on a terminal, drawn over itself twice a second, with notes above it."""

    interval_s = 0.5

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._notes = _Notes()
        self._bar: Any = None

    def handle(self, event: Event) -> None:
        """Write what is worth a line above the bar."""
        if (note := self._notes.of(event)) is not None:
            _Bar.write(note, file=self._stream)

    def tick(self, gauges: Gauges) -> None:
        """Draw the bar."""
        width = self._width()
        done, line = gauges.succeeded + gauges.failed, layout(gauges, width)
        if self._bar is None:
            self._bar = _Bar(
                file=self._stream, total=gauges.total, initial=done, ncols=width, bar_format=line
            )
        else:
            self._bar.total, self._bar.n, self._bar.ncols, self._bar.bar_format = (
                gauges.total,
                done,
                width,
                line,
            )
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands and the cursor on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _width(self) -> int:
        """Columns to draw in: one less than there are, for in the last one some terminals break the line."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or _DEFAULT_WIDTH) - 1


def layout(gauges: Gauges, width: int) -> str:
    """The line for `width` columns as a format of tqdm's, with `{bar}` where the bar goes if there is room for one.

    The parts that are missed most come first to the room there is. Room to spare is for saying them in full.
    """
    done = gauges.succeeded + gauges.failed
    head = f"{100 * done // gauges.total}%" if gauges.total else ""
    room = width - len(head) - _NARROWEST_BAR - 3 if gauges.total else width
    words: dict[int, str] = {}
    order = parts(gauges)

    def text() -> str:
        return ", ".join(words[part.rank] for part in order if part.rank in words)

    for part in sorted(order, key=lambda part: part.rank):
        words[part.rank] = part.short
        if part.rank > 0 and len(text()) > room:
            del words[part.rank]
    for part in sorted(order, key=lambda part: -part.rank):
        if part.rank in words and part.rank > 0:
            words[part.rank] = part.long
            if len(text()) > room - _NARROWEST_BAR:
                words[part.rank] = part.short
    line = text()[:width].replace("{", "{{").replace("}", "}}")
    return f"{head}|{{bar}}| {line}" if gauges.total and len(text()) <= room else line


def _thousands(value: float) -> str:
    """A rate in few columns: 820, 41k, 1.3M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1000:.0f}k" if value < 999_500 else f"{value / 1e6:.1f}M"


def _line(text: str, longest: int = _LONGEST_NOTE) -> str:
    """`text` on one line that no stranger's message can make long or use to steer the terminal."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"
