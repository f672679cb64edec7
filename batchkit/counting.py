"""Counts the tokens of an input on all cores: lines in, what they ask for out, a few hundred kilobytes at a time.

Counting is all there is to do, and it holds Python's lock while it does it, so other cores are used by other processes:
`python -m batchkit.counting`, which is given lines and sends back sums. They take a second to start, so an input that is
counted in that time is counted here. What a process has not sent back when it dies is counted here, too: how many there
are changes nothing but the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from queue import LifoQueue
from types import TracebackType
from typing import IO, Any, Final, Self

import orjson

from batchkit.child import start
from batchkit.formats.requests import parse_line
from batchkit.records import BadLine, Line
from batchkit.rules.estimating import Demand
from batchkit.rules.tokens import count_prompt

__all__ = ["AT_ONCE_BYTES", "cores", "count_lines", "count_pieces", "main"]

AT_ONCE_BYTES: Final = 8 << 20
"""An input up to this size is counted before another process has started."""
_SIZE_BYTES: Final = 8

Piece = list[Line]


def count_lines(lines: Iterable[Line], defaults: Mapping[str, Any]) -> Demand:
    """What `lines` ask for, `defaults` filled in where a record has none."""
    demand = Demand()
    for line in lines:
        request = parse_line(line, defaults)
        if isinstance(request, BadLine):
            demand.invalid += 1
            continue
        body = orjson.loads(request.body)
        count = count_prompt(body)
        demand.images += count.images
        demand.uncounted += count.uncounted
        demand.add(
            request.model,
            count.tokens,
            exact=count.exact,
            answers=_answers(body.get("n")),
            max_tokens=request.max_tokens,
        )
    return demand


def count_pieces(
    pieces: Iterable[Piece],
    defaults: Mapping[str, Any],
    processes: int,
    *,
    at_once_bytes: int = AT_ONCE_BYTES,
) -> Generator[Demand]:
    """What each of `pieces` asks for, in their order; on so many `processes`, if there is enough for them to do."""
    pieces = iter(pieces)
    ahead: list[Piece] = []
    size = 0
    for piece in pieces:
        ahead.append(piece)
        size += sum(len(line.raw or b"") for line in piece)
        if size > at_once_bytes:
            break
    everything = chain(ahead, pieces)
    if processes < 2 or size <= at_once_bytes:
        for piece in everything:
            yield count_lines(piece, defaults)
        return
    waiting: deque[Future[Demand]] = deque()
    with ThreadPoolExecutor(processes, "counting") as threads, _Processes(processes, defaults) as others:
        for piece in everything:
            waiting.append(threads.submit(others.count, piece))
            # What waits is bounded, so a large input is never held.
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def cores() -> int:
    """On how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Processes:
    """So many processes that count, each for one caller at a time."""

    def __init__(self, number: int, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        self._number = number
        self._all: list[subprocess.Popen[bytes]] = []
        self._is_left = False
        # None stands for one that did not start, or died.
        self._idle: LifoQueue[subprocess.Popen[bytes] | None] = LifoQueue()

    def __enter__(self) -> Self:
        for _ in range(self._number):
            process = None
            with suppress(OSError):
                process = start("batchkit.counting")
                self._all.append(process)
                assert process.stdin is not None
                _send(process.stdin, orjson.dumps(dict(self._defaults)))
            self._idle.put(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = True
        for process in self._all:
            process.kill()
            with suppress(OSError), process:
                pass

    def count(self, piece: Piece) -> Demand:
        """What the lines of `piece` ask for; nothing any more when the caller has left."""
        process = self._idle.get()
        try:
            if process is not None:
                with suppress(OSError, EOFError, ValueError):
                    return _ask(process, piece)
            process = None
            return Demand() if self._is_left else count_lines(piece, self._defaults)
        finally:
            self._idle.put(process)


def _ask(process: subprocess.Popen[bytes], piece: Piece) -> Demand:
    assert process.stdin is not None
    assert process.stdout is not None
    whole = [line.raw for line in piece if line.raw is not None]
    _send(process.stdin, b"\n".join(whole))
    demand = Demand.from_state(orjson.loads(_receive(process.stdout)))
    demand.invalid += len(piece) - len(whole)
    return demand


def main() -> None:
    """What a process does: first the defaults on stdin, then pieces of lines; what each asks for on stdout."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError):
        defaults = orjson.loads(_receive(source))
        while True:
            lines = _receive(source).split(b"\n")
            demand = count_lines((Line(index, 0, raw) for index, raw in enumerate(lines) if raw), defaults)
            _send(sink, orjson.dumps(demand.state()))


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(_SIZE_BYTES, "big"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    size = int.from_bytes(_exactly(stream, _SIZE_BYTES), "big")
    return _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _answers(n: Any) -> int:
    return n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else 1


if __name__ == "__main__":
    main()
