"""The simulator in a process of its own: on another core, and gone when whoever started it is.

A child is told its settings by the first line of its standard input and answers with a line that says where it listens.
Then it serves until its input ends, which a parent cannot fail to bring about, kill -9 included. It has a session of its
own, so a Ctrl-C meant for the parent leaves it there for what is still to be drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import orjson

from batchkit.child import start
from batchkit.errors import RunStopped, UsageError
from batchkit.simulator.settings import SimulatorSettings

__all__ = ["EmbeddedSimulator", "main", "serve"]

_LONGEST_START_S = 60
_LONGEST_STOP_S = 5
_NOT_STARTED = "simulator_not_started"


class EmbeddedSimulator:
    """A simulator in a child process: `async with EmbeddedSimulator(settings) as simulator: simulator.base_url`.

    Entering takes about a second, during which the event loop is free; it raises `UsageError` where the settings
    cannot be had (a port in use), `RunStopped` where the child does not start.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings if settings is not None else SimulatorSettings()
        self.base_url = ""
        """The part before `/chat/completions`, known once it is entered."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process is not None else None

    async def __aenter__(self) -> Self:
        self._process = process = start("batchkit.simulator", stderr=None)
        try:
            async with asyncio.timeout(_LONGEST_START_S):
                # A thread, because asyncio's own child processes do not work in every loop and thread.
                line = await asyncio.to_thread(_greet, process, self.settings)
        except TimeoutError:
            await self._stop(patience_s=0)
            raise RunStopped(
                f"the simulator did not start within {_LONGEST_START_S} s. Nothing was sent; start the same command again.",
                code=_NOT_STARTED,
            ) from None
        except BaseException:
            await self._stop(patience_s=0)
            raise
        if not line:
            status = process.wait()
            await self._stop(patience_s=0)
            raise RunStopped(
                f"the simulator ended before it was ready, with status {status}. Nothing was sent; what it said of the cause "
                "stands above.",
                code=_NOT_STARTED,
            )
        answer: dict[str, str] = orjson.loads(line)
        if "error" in answer:
            await self._stop(patience_s=_LONGEST_STOP_S)
            raise UsageError(answer["error"])
        self.base_url = answer["base_url"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop(patience_s=_LONGEST_STOP_S)

    async def _stop(self, *, patience_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, patience_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()


def _greet(process: subprocess.Popen[bytes], settings: SimulatorSettings) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(orjson.dumps(asdict(settings), option=orjson.OPT_APPEND_NEWLINE))
        process.stdin.flush()
    return process.stdout.readline()


def serve(
    settings: SimulatorSettings,
    *,
    announce: Callable[[str], None],
    watch: Callable[[asyncio.AbstractEventLoop, Callable[[], None]], None],
) -> None:
    """Make this process a simulator. Blocks until it is told to stop.

    `watch` gets the loop and what stops it, to be called from within the loop; `announce` gets the base URL once
    requests are let in. Raises `UsageError` as `Simulator` does.
    """
    _raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, announce, watch))


async def _serve(
    settings: SimulatorSettings,
    announce: Callable[[str], None],
    watch: Callable[[asyncio.AbstractEventLoop, Callable[[], None]], None],
) -> None:
    from batchkit.simulator.server import Simulator  # noqa: PLC0415 - the parent of a child needs no server

    stop = asyncio.Event()
    watch(asyncio.get_running_loop(), stop.set)
    async with Simulator(settings) as simulator:
        gc.freeze()  # the tokenizer's tables stay; no collection need look at them again
        announce(simulator.base_url)
        await stop.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - it does not exist everywhere
    except ImportError:
        return None
    return uvloop.new_event_loop


def _raise_file_limit() -> None:
    """Each request in flight is a connection, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """What the child does; its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fields: dict[str, Any] = orjson.loads(sys.stdin.buffer.readline() or b"{}")
    try:
        serve(SimulatorSettings(**fields), announce=_announce, watch=_watch_input)
    except UsageError as error:
        _tell({"error": str(error)})
        return error.exit_code
    return 0


def _announce(base_url: str) -> None:
    _tell({"base_url": base_url})


def _tell(words: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is there to hear it; the input has ended too
        sys.stdout.buffer.write(orjson.dumps(words, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()


def _watch_input(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop()

    loop.add_reader(descriptor, read)
