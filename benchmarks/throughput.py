"""batchkit beside a bare aiohttp loop and what people use, all at the same job, in turn, in one run.

The job: read a JSONL file of requests, POST each body, write a file of answers, add up the tokens. batchkit is the command as it
is, with checksums, syncing, checkpoint, retries, pacing, summary and report; the others do what stands in benchmarks/peers. The
endpoint is a process on a core of its own that costs next to nothing, the client has one other core (where there are two, and the
system lets a program be tied to one).

Figures leave the start of a program out, which is measured by a job of one request. CPU is that of the client and its children,
user and system, as the kernel counted it; memory is the peak of its largest process. In parentheses: how many times
batchkit's, which is compared round by round.

    python benchmarks/throughput.py --rows all --markdown docs/speed.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from endpoint import Manner, serving
from inputs import write_requests
from processes import Cost, environment, machine, measure, raise_file_limit
from programs import PROGRAMS, Program, prepare
from tables import say, show, table

STARTS = 2
VERSIONS = 5
SPARE_FILES = 200
"""Files that a client needs besides its connections."""

AT_ONCE, SAME, MIXED = Manner(), Manner(latency_s=1.0), Manner(latency_s=1.0, sigma=0.5)


@dataclass(frozen=True)
class Row:
    """One job, for whoever is to do it."""

    title: str
    in_flight: int = 64
    requests: int = 20_000
    manner: Manner = AT_ONCE
    request_bytes: int = 1_024
    everyone: bool = False
    """For all peers; else for batchkit and the bare loop."""
    once: bool = False
    """Long enough for one round to tell."""


ROWS: Mapping[str, Row] = {
    "64": Row("64 in flight, 20,000 lines", everyone=True),
    "256": Row("256 in flight, 10,000 lines", 256, 10_000, everyone=True),
    "100k": Row("64 in flight, 100,000 lines", requests=100_000, once=True),
    "1M": Row("64 in flight, 1,000,000 lines", requests=1_000_000, once=True),
    "12KB": Row("64 in flight, 12 KB prompts", requests=4_000, request_bytes=12 << 10),
    "100KB": Row("64 in flight, 100 KB answers", requests=2_000, manner=Manner(answer_bytes=100 << 10)),
    "2000": Row("2,000 in flight, 1 s each", 2_000, 10_000, SAME, once=True),
    "2000-mixed": Row("2,000 in flight, median 1 s, sigma 0.5", 2_000, 10_000, MIXED, once=True),
    "10000": Row("10,000 in flight, 1 s each", 10_000, 30_000, SAME, once=True),
    "10000-long": Row("10,000 in flight, 1 s each, 200,000 lines", 10_000, 200_000, SAME, once=True),
    "10000-mixed": Row("10,000 in flight, median 1 s, sigma 0.5", 10_000, 30_000, MIXED, once=True),
}
START = "start"
DEFAULT = ("64", "256", "12KB", "100KB", "2000", "10000", START)
"""What takes some two minutes."""


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a program did in a row: requests a second, microseconds of CPU for each, MiB at its peak."""

    rate: float
    cpu_us: float
    peak_mib: float


class Bench:
    """The measurements of one call, in a folder of its own."""

    def __init__(self, folder: Path, programs: Iterable[Program], rounds: int) -> None:
        self._folder = folder
        self.programs = list(programs)
        self._rounds = rounds
        self._starts: dict[str, Cost] = {}
        self.endpoint_share = 0.0
        """The largest share of its core's time that the endpoint took."""

    def run(self, program: Program, row: Row, requests: int) -> Cost:
        """One run of `program` over so many requests of `row`, all of which it has to answer."""
        source = self._folder / f"{requests}-{row.request_bytes}.jsonl"
        if not source.exists():
            write_requests(source, requests, row.request_bytes)
        with tempfile.TemporaryDirectory(dir=self._folder) as work:
            results = Path(work) / "results.jsonl"
            with serving(row.manner) as here:
                argv = program.argv(source, results, here.base_url, row.in_flight)
                cost = measure(argv, program.env(), log=Path(work) / "log")
            if count_lines(results) != requests:
                raise SystemExit(f"{program.name} did not answer all requests")
        if requests > 1:
            self.endpoint_share = max(self.endpoint_share, here.cpu_s / cost.wall_s)
        return cost

    def start(self, program: Program) -> Cost:
        """What a job of one request takes: the least of some, for only disturbance makes a start longer."""
        if program.name not in self._starts:
            ran = [self.run(program, Row("one line", in_flight=1), 1) for _ in range(STARTS)]
            least = [min(each) for each in zip(*map(astuple, ran), strict=True)]
            self._starts[program.name] = Cost(*least)
        return self._starts[program.name]

    def requests(self, program: Program, row: Row) -> int:
        """How many requests of `row` a program is given."""
        return max(int(program.share * row.requests), min(row.requests, 2 * row.in_flight))

    def measure(self, row: Row) -> dict[str, list[Figures]]:
        """A row's figures for each program, of each round: in one all take turns."""
        programs = [program for program in self.programs if row.everyone or not program.versions]
        found: dict[str, list[Figures]] = {program.name: [] for program in programs}
        for turn in range(1 if row.once else self._rounds):
            for program in programs:
                if turn and program.share < 1.0:
                    continue
                requests = self.requests(program, row)
                start, cost = self.start(program), self.run(program, row, requests)
                worked = cost.cpu_s - start.cpu_s
                # Where others keep the core busy, a start can be as long as the whole run; nobody is faster than their own CPU.
                took = max(cost.wall_s - start.wall_s, worked)
                figures = Figures(requests / took, worked / requests * 1e6, cost.peak_mib)
                found[program.name].append(figures)
                say(
                    f"{row.title}: {program.name:<9} {figures.rate:7,.0f} requests/s {figures.cpu_us:6,.0f} µs CPU a request "
                    f"{figures.peak_mib:6,.0f} MiB ({requests:,} requests)"
                )
        return found


# --- the tables ----------------------------------------------------------------------------------------------------


def compare(bench: Bench, row: Row) -> list[list[str]]:
    """Medians over the rounds. So are the ratios, each of a round: what slows a machine for a minute slows all that ran in it."""
    figures = bench.measure(row)
    ours = figures["batchkit"]

    def cell(name: str, unit: str, of: Callable[[Figures], float]) -> str:
        written = f"{median(map(of, figures[name])):,.0f}{unit}"
        times = median(of(their) / of(our) for their, our in zip(figures[name], ours, strict=False))
        return written if name == "batchkit" else f"{written} ({times:.{0 if times >= 10 else 2}f})"

    lines = []
    for name in figures:
        program = PROGRAMS[name]
        requests = bench.requests(program, row)
        lines.append(
            [
                row.title if name == "batchkit" else "",
                program.title + (f", {requests:,} lines" if requests < row.requests else ""),
                cell(name, "", lambda ran: ran.rate),
                cell(name, " µs", lambda ran: ran.cpu_us),
                cell(name, " MiB", lambda ran: ran.peak_mib),
            ]
        )
    return lines


def starts(bench: Bench) -> list[list[str]]:
    version = [
        measure([sys.executable, "-m", "batchkit", "--version"], environment()) for _ in range(VERSIONS)
    ]
    lines = [("`batchkit --version`", sorted(version, key=lambda cost: cost.wall_s)[VERSIONS // 2])]
    lines += [(f"one line, {program.title}", bench.start(program)) for program in bench.programs]
    return [
        [what, f"{cost.wall_s:.2f} s", f"{cost.cpu_s:.2f} s", f"{cost.peak_mib:,.0f} MiB"]
        for what, cost in lines
    ]


def main() -> None:
    names = [*ROWS, START]
    peers = [name for name, program in PROGRAMS.items() if program.versions]
    also = [name for name, program in PROGRAMS.items() if program.asked_for]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", nargs="+", choices=[*names, "all"], default=DEFAULT, metavar="ROW",
        help=f"{' · '.join(names)} · all (default: {' '.join(DEFAULT)})",
    )  # fmt: skip
    parser.add_argument(
        "--peers", nargs="*", choices=peers, default=peers, metavar="PEER", help=" · ".join(peers)
    )
    parser.add_argument(
        "--also", nargs="+", choices=also, default=[], metavar="NAME",
        help=f"batchkit with one thing changed: {' · '.join(also)}",
    )  # fmt: skip
    parser.add_argument(
        "--rounds",
        type=int,
        choices=range(1, 100),
        metavar="N",
        default=3,
        help="of the short rows (default: %(default)s)",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="also write into a page, between its marks"
    )
    chosen = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    files = raise_file_limit()
    rows = names if "all" in chosen.rows else chosen.rows
    notes, programs = [], []
    for program in PROGRAMS.values():
        if (program.versions and program.name not in chosen.peers) or (
            program.asked_for and program.name not in chosen.also
        ):
            continue
        if missing := prepare(program):
            notes.append(f"Not measured: {program.name}. Its environment could not be made: {missing}")
            say(notes[-1])
        else:
            programs.append(program)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), programs, chosen.rounds)
        lines = []
        for name in rows:
            if name == START:
                continue
            if files < ROWS[name].in_flight + SPARE_FILES:
                notes.append(
                    f"Not measured: {ROWS[name].title}. Only {files} files may be open here (`ulimit -Hn`)."
                )
                say(notes[-1])
            else:
                lines += compare(bench, ROWS[name])
        parts = []
        if lines:
            parts.append(table(["job", "client", "requests/s", "CPU a request", "peak memory"], lines))
        if START in rows:
            parts.append(table(["start and end", "seconds", "CPU", "peak memory"], starts(bench)))
    share = f"The endpoint took at most {bench.endpoint_share:.0%} of its core." if lines else ""
    parts += [*notes, f"On {machine()}, load average {load:.1f} when it began. {share}".strip()]
    show(parts, "throughput", chosen.markdown)
    say(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
