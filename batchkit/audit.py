"""Reads a large output in a process of its own, beside the run that goes on with it.

Two things take longer than a user who starts a job again should wait: looking whether every old line still has its
checksum, and, where there is no checkpoint, adding the old lines up. Neither is needed to send the next request. They are
done here, on another core; what they find comes before the run ends, and damage ends it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import orjson
from anyio import run_process, to_thread

from batchkit import child
from batchkit.errors import JobDamaged
from batchkit.outputs import JobPaths, check_output, read_output, together
from batchkit.rules.tally import Tally
from batchkit.rules.tally_state import state_of, tally_of

__all__ = ["Audit", "main"]


@dataclass(frozen=True, slots=True)
class Audit:
    """What is to be read: the first `results_bytes` and `errors_bytes` of a job's files, and all superseded failures.

    With `add_up` the lines are added up as well.
    """

    output: Path
    results_bytes: int
    errors_bytes: int
    add_up: bool

    async def run(self) -> Tally | None:
        """`read`, in a process of its own; cancelled, it ends that."""
        order = {
            "output": str(self.output),
            "results_bytes": self.results_bytes,
            "errors_bytes": self.errors_bytes,
            "add_up": self.add_up,
        }
        process = None
        with suppress(OSError):
            process = await run_process(
                child.command("batchkit.audit"),
                input=orjson.dumps(order),
                check=False,
                env=child.environment(),
                start_new_session=True,
            )
        if process is None or process.returncode:
            # No room for another process, say: then here, where it takes its share of this one's time.
            left = Event()
            try:
                return await to_thread.run_sync(self.read, left, abandon_on_cancel=True)
            finally:
                left.set()
        found = orjson.loads(process.stdout)
        if found["damage"] is not None:
            raise JobDamaged(found["damage"])
        return None if found["tally"] is None else tally_of(found["tally"])

    def read(self, left: Event | None = None) -> Tally | None:
        """The totals of the lines, or None if they were not asked for. Raises JobDamaged at a broken line.

        Once `left` is set nobody waits for it any more, and adding up ends: Python does not exit before its threads have.
        """
        paths = JobPaths(self.output)
        ends = ((paths.results, self.results_bytes), (paths.errors, self.errors_bytes))
        if not self.add_up:
            for path, end in (*ends, *((path, None) for path in paths.superseded())):
                check_output(path, 0, end)
            return None
        tally = Tally()
        parts = [(read_output(path, 0, end), False) for path, end in ends]
        parts += [(read_output(path), True) for path in paths.superseded()]
        for lines, superseded in parts:
            for some in together(lines):
                if left is not None and left.is_set():
                    return None
                if some[0].run is not None:
                    tally.begin_run(some[0].run)
                tally.add_all([line.outcome for line in some], superseded=superseded)
        return tally


def main() -> None:
    """What the process does: an `Audit` on stdin, what it found on stdout."""
    order = orjson.loads(sys.stdin.buffer.read())
    audit = Audit(Path(order.pop("output")), **order)
    found: dict[str, Any] = {"damage": None, "tally": None}
    try:
        tally = audit.read()
        found["tally"] = None if tally is None else state_of(tally)
    except JobDamaged as damage:
        found["damage"] = str(damage)
    sys.stdout.buffer.write(orjson.dumps(found))


if __name__ == "__main__":
    main()
