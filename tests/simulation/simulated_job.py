"""One job, from its first line to its last, in a world made of a seed.

The clock is virtual, the endpoint bills, the disk forgets what was not synced, and the process dies at random steps: in the
middle of a write, between a write and a sync, while attempts are in flight, with the power or without. It is started again
until the job is done. The engine, the store and the job are the real ones. Then the promises are checked:

1. every index of the input stands in exactly one line;
2. the totals are those of an independent fold over the lines;
3. answers that were billed again are at most those that were in flight at a crash, and those that a loss of power took,
   none of which is older than the sync interval;
4. no more was held in memory than the concurrency allows;
5. what the endpoint billed, for answers that nobody saw too, never passes the `max_cost` of a job that has one, and such a job
   is done once that is raised often enough.

    python tests/simulation/simulated_job.py 0 1000000      checks a million seeds on all cores
    python tests/simulation/simulated_job.py 4711           checks one, and tells what happened in it

The first tells every half minute how far it is, names each seed that broke a promise, and exits 1 if one did. Stopped, it says
where to begin to go on. A story is made of its seed alone: folder, cores and other seeds are no part of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from decimal import Decimal
from errno import EIO, ENOSPC
from functools import partial
from pathlib import Path
from random import Random, seed as seed_all
from typing import Any

from msgspec.structs import replace
from virtual_time import VirtualClock

from batchkit.audit import Audit
from batchkit.engine.monitor import Monitor
from batchkit.engine.stop import Stop
from batchkit.engine.writer import SYNC_INTERVAL_S
from batchkit.errors import BatchkitError, Interrupted, JobDamaged, MaxCostReached
from batchkit.formats.headers import endpoint_address
from batchkit.job import JobRun
from batchkit.records import Answer, Failure, FailureKind, Reply, Request, Trace, Usage
from batchkit.rules.tally import Tally
from batchkit.rules.tokens import count_prompt
from batchkit.settings import Settings
from batchkit.source import Source
from batchkit.store import Store
from batchkit.testing import Crash, FaultyDisk, failure, reply

ADDRESS = endpoint_address("http://127.0.0.1:1/v1", version="0", timeout=60)
MOST_CRASHES = 8
MOST_BROKEN = 20
"""After so many seeds that broke a promise it is known that there is something wrong."""
EPOCH = 1_763_820_000.0
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
AT_ONCE = 100
TOLD_EVERY_S = 30.0
MODEL = "gpt-4o-mini"
PER_PROMPT_TOKEN, PER_COMPLETION_TOKEN = Decimal("0.15e-6"), Decimal("0.60e-6")
"""What the model costs that jobs with a `max_cost` ask, in US dollars."""


@dataclass
class World:
    """What outlives a process: the provider's books, the disk's folder, the clock on the wall."""

    seed: int
    folder: Path
    random: Random = field(init=False)
    requests: int = 0
    concurrency: int = 1
    billed: Counter[int] = field(default_factory=Counter)
    in_flight: Counter[int] = field(default_factory=Counter)
    most_in_flight: int = 0
    answered: set[int] = field(default_factory=set)
    """The indexes that this process had a good answer to."""
    wall: float = EPOCH
    forgiven: int = 0
    """Billed answers that promise 3 allows to be billed again."""
    runs: int = 0
    crashes: int = 0
    lost: int = 0
    """Indexes that have no line though the job is done."""
    doubled: int = 0
    """Lines too many."""
    broken: BaseException | None = None
    """The first promise that was not kept."""
    was_full: bool = False
    """Whether lines were held in memory in this process, which makes them older than their being written."""
    told: list[str] = field(default_factory=list)
    max_cost: Decimal | None = None
    bill: Decimal = Decimal(0)
    """What a job with a `max_cost` owes the provider, in US dollars."""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        # Money has a chance of its own, and takes nothing from the stories of jobs without it.
        self.money = Random(-1 - self.seed)
        if self.money.random() < 0.4:
            self.max_cost = Decimal(self.money.randrange(5, 400)).scaleb(-6)
        # The jitter of the waits is the one chance that the engine takes from elsewhere.
        seed_all(self.seed)
        self.requests = self.random.randint(0, 30)
        self.concurrency = self.random.randint(1, 8)
        self.input = self.folder / "in.jsonl"
        self.output = self.folder / "out" / "results.jsonl"
        self.output.parent.mkdir()
        self.indexes: list[int] = []
        lines = []
        for _ in range(self.requests):
            while self.random.random() < 0.1:
                lines.append("")
            self.indexes.append(len(lines))
            good = {"messages": [{"role": "user", "content": f"{len(lines)}"}], "model": "m"}
            if self.max_cost is not None:
                good |= {
                    "model": MODEL,
                    "max_tokens": self.money.randint(1, 20),
                    "n": self.money.randint(1, 2),
                }
            lines.append("broken" if self.random.random() < 0.05 else json.dumps(good))
        self.input.write_text("\n".join(lines) + ("\n" if self.random.random() < 0.5 else ""))

    def tell(self, what: str) -> None:
        # The names of the folder and of what is put aside are not the seed's.
        what = re.sub(r"(\.torn)-[\d-]+", r"\1", what.replace(f"{self.folder}/", ""))
        self.told.append(f"{self.wall - EPOCH:9.2f} s  {what}")


class BillingEndpoint:
    """Answers after a while, well or badly, and bills from the moment it begins a good answer."""

    def __init__(self, world: World, clock: VirtualClock, crash_at: int | None) -> None:
        self._world = world
        self._clock = clock
        self._crash_at = crash_at
        self._attempts = 0
        self.sending: Callable[[], Callable[[], Awaitable[bool]] | None] = lambda: None

    async def attempt(self, request: Request, trace: Trace) -> Answer:
        world, random = self._world, self._world.random
        while (room := self.sending()) is not None:
            if not await room():
                return failure(FailureKind.CONNECTION_ERROR)
        self._attempts += 1
        # Every other one takes a second sharp: many end in one turn of the loop, and find what they find together.
        drawn, latency = random.random(), random.choice((1.0, random.lognormvariate(0, 1)))
        answer: Answer | None = None
        for share, kind in (
            (0.08, FailureKind.SERVER_ERROR),
            (0.05, FailureKind.RATE_LIMITED),
            (0.04, FailureKind.CONNECTION_ERROR),
            (0.04, FailureKind.INVALID_REQUEST),
        ):
            if drawn < share:
                answer = failure(
                    kind,
                    code=f"{kind.value}_{request.index}",
                    status=400 if kind == "invalid_request" else None,
                )
                break
            drawn -= share
        if answer is None:
            answer = reply(f"answer {request.index}", model="m", usage=Usage(7, 3, 10))
        world.in_flight[request.index] += 1
        world.most_in_flight = max(world.most_in_flight, world.in_flight.total())
        world.billed[request.index] += isinstance(answer, Reply)
        if world.max_cost is not None:
            answer = bill(world, request, answer)
        elif isinstance(answer, Failure) and request.index % 3 == 0:
            answer = with_usage(answer)
        try:
            await self._clock.sleep(latency)
        except asyncio.CancelledError:
            # The process died elsewhere, or left at a second signal.
            world.in_flight[request.index] -= 1
            world.forgiven += 1
            raise
        if self._crash_at is not None and self._attempts >= self._crash_at:
            raise Crash
        world.in_flight[request.index] -= 1
        if isinstance(answer, Reply):
            world.answered.add(request.index)
        return answer


def with_usage(answer: Failure) -> Failure:
    """A server error that says what it took all the same; others as they are."""
    if answer.kind is not FailureKind.SERVER_ERROR:
        return answer
    usage = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    body = json.dumps({"error": {"message": "broke"}, "model": "n", "usage": usage}).encode()
    return replace(answer, status=500, body=body, model="n", usage=Usage(7, 0, 7))


def bill(world: World, request: Request, answer: Answer) -> Answer:
    """Bill an attempt as dear as its body allows, or less, from its first moment on; the answer need not say so."""
    money, body = world.money, json.loads(request.body)
    most = body["max_tokens"] * body["n"]
    prompt, completion = count_prompt(body).tokens, money.choice((most, most, money.randint(0, most)))
    drawn = money.random()
    if isinstance(answer, Reply):
        model, usage = f"{MODEL}-2024-07-18", Usage(prompt, completion, prompt + completion)
        if drawn < 0.1:
            return replace(answer, from_cache=True)
        if drawn < 0.2:
            model = "a-name-of-its-own"
        answer = reply(f"answer {request.index}", model=model, usage=usage)
        if drawn > 0.9:
            # It was billed, and nothing says how much.
            without = json.loads(answer.body)
            del without["usage"]
            answer = replace(answer, usage=None, body=json.dumps(without, separators=(",", ":")).encode())
    elif answer.kind is FailureKind.CONNECTION_ERROR and drawn < 0.5:
        answer = replace(answer, maybe_billed=True)
    elif answer.kind is not FailureKind.SERVER_ERROR or drawn < 0.5:
        return answer
    world.bill += prompt * PER_PROMPT_TOKEN + completion * PER_COMPLETION_TOKEN
    return answer


def raw_lines_of(world: World) -> list[bytes]:
    """The lines of both output files that have their newline, as they stand there."""
    found = []
    for name in ("results.jsonl", "results.errors.jsonl"):
        with suppress(FileNotFoundError):
            found += world.output.with_name(name).read_bytes().split(b"\n")[:-1]
    return found


def read(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Those of the lines that are whole, read without batchkit."""
    found = []
    for raw in lines:
        with suppress(ValueError):
            found.append(json.loads(raw))
    return found


async def run_once(
    world: World, clock: VirtualClock, disk: FaultyDisk, *, crash_at: int | None, retry_failed: bool
) -> dict[str, Any]:
    random = world.random
    settings = Settings(
        concurrency=world.concurrency,
        job_id=f"seed-{world.seed}",
        progress="off",
        retry_failed=retry_failed,
        max_attempts=3,
        max_cost=world.max_cost,
    )
    stop = Stop()
    source = Source(str(world.input), in_thread=clock.in_thread)
    store = Store.open(world.output, disk=disk)
    try:
        job = JobRun(
            store,
            source,
            # Its path stands in the output and the folder's name is not the seed's.
            dataclasses.replace(source.identify(), path=world.input.name),
            settings,
            ADDRESS,
            Monitor((), clock),
            clock,
            stop,
            at_once_bytes=random.choice((0, 1 << 20)),
            audit=read_here,
        )
        await job.load()
        for notice in store.notices:
            world.tell(notice)

        async def signal() -> None:
            await clock.sleep(random.expovariate(0.1))
            (stop.request if random.random() < 0.7 else stop.abandon)(Interrupted(15, "signal"))

        signalled = (
            asyncio.ensure_future(signal())
            if crash_at is None and world.crashes < MOST_CRASHES and random.random() < 0.3
            else None
        )
        try:
            return await job.work(BillingEndpoint(world, clock, crash_at))  # type: ignore[arg-type]
        finally:
            if signalled is not None:
                signalled.cancel()
    finally:
        store.close()


async def read_here(audit: Audit) -> Tally | None:
    return audit.read()


def faults(world: World, crash_at: int | None) -> Any:
    random = world.random
    moody = random.random() < 0.3 and world.crashes < MOST_CRASHES

    def fault(what: str, number: int) -> int | None:
        if number == crash_at:
            world.tell(f"killed at its {number}th {what}")
            if what == "write":
                return -random.randrange(1, 10_000)
            raise Crash
        if what == "write" and random.random() < 0.05:
            return random.randrange(1, 200)
        if moody and what == "write" and random.random() < 0.05:
            world.was_full = True
            raise OSError(ENOSPC, "No space left on device")
        if moody and what == "sync" and random.random() < 0.02:
            raise OSError(EIO, "Input/output error")
        return None

    return fault


def crash(world: World, disk: FaultyDisk) -> None:
    """What a process that died leaves behind, with the power on or off."""
    random = world.random
    world.crashes += 1
    before = raw_lines_of(world)
    # What was answered and has no line yet, and what is on its way: together no more than may be in flight.
    without_line = world.answered - {line["batchkit"]["index"] for line in read(before)}
    lost_in_memory = len(without_line) + world.in_flight.total()
    assert lost_in_memory <= world.concurrency, f"{lost_in_memory} were lost in memory"
    world.forgiven += lost_in_memory
    if random.random() < 0.5:
        disk.lose_power(world.output.parent, random)
        after = frozenset(raw_lines_of(world))
        gone = read(line for line in before if line not in after)
        lost = [line["batchkit"]["finished_at"] for line in gone if line["error"] is None]
        world.tell(f"lost its power and {len(lost)} results")
        for at in lost:
            age = world.wall - at
            assert world.was_full or age <= SYNC_INTERVAL_S + 1e-6, (
                f"a result {age:.3f} s old was lost with the power"
            )
        world.forgiven += len(lost)
    world.in_flight.clear()
    checkpoint = world.output.with_name("results.checkpoint.json")
    if checkpoint.exists() and random.random() < 0.2:
        if random.random() < 0.5:
            checkpoint.unlink()
        else:
            checkpoint.write_bytes(checkpoint.read_bytes()[: random.randrange(100)])


def run_process(world: World, *, retry_failed: bool) -> dict[str, Any] | None:
    """One start of the program: its summary, or None where it died."""
    random = world.random
    dies = world.crashes < MOST_CRASHES and random.random() < 0.7
    at_step = int(random.expovariate(1 / 30)) if dies and random.random() < 0.7 else None
    at_attempt = int(random.expovariate(1 / 15)) if dies and at_step is None else None
    clock = VirtualClock(world.wall)
    world.runs += 1
    world.was_full = False
    world.answered.clear()
    most = world.max_cost
    disk = FaultyDisk(faults(world, at_step))
    try:
        with asyncio.Runner(loop_factory=clock.loop) as runner:
            return runner.run(run_once(world, clock, disk, crash_at=at_attempt, retry_failed=retry_failed))
    except (Crash, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.split(Crash)[1] is not None:
            raise
        disk.dead = True
        world.wall = clock.time()
        crash(world, disk)
        return None
    except JobDamaged:
        raise
    except BatchkitError as error:
        world.tell(f"stopped: {type(error).__name__}: {error}")
        if isinstance(error, MaxCostReached) and world.max_cost is not None:
            world.max_cost *= 2
        # A failed sync, or a second signal: what was in flight is gone.
        world.forgiven += world.in_flight.total() + world.concurrency
        world.in_flight.clear()
        return None
    finally:
        world.wall = clock.time() + random.expovariate(1)
        assert world.max_cost is None or world.bill <= most, f"${world.bill} were billed, ${most} may be"


def check(seed: int) -> World:
    """Live through one seed. Raises what broke a promise, if one was broken, and tells the story."""
    world = live_through(seed)
    if world.broken is not None:
        print(f"seed {seed}:", *world.told, sep="\n  ", file=sys.stderr)
        raise world.broken
    return world


def live_through(seed: int, within: str | None = IN_MEMORY) -> World:
    """Live through one seed, to the end of the job or until a promise is `broken`, in a folder `within` another."""
    folder = Path(tempfile.mkdtemp(prefix="batchkit-", dir=within))
    try:
        world = World(seed, folder)
        try:
            work_through(world)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - whatever it is, it was promised not to be
            world.broken = error
    finally:
        shutil.rmtree(folder)
    return world


def work_through(world: World) -> None:
    retry = world.random.random() < 0.3
    summary = None
    for _ in range(100):
        summary = run_process(world, retry_failed=False)
        if summary is not None:
            break
    assert summary is not None, "the job is never done"
    verify(world, summary)
    if retry and summary["requests"]["failed"]:
        world.tell("its failures are asked again")
        again = run_process(world, retry_failed=True)
        for _ in range(100):
            if again is not None:
                break
            again = run_process(world, retry_failed=False)
        assert again is not None, "the job is never done again"
        verify(world, again)


def verify(world: World, summary: dict[str, Any]) -> None:
    lines = read(raw_lines_of(world))
    indexes = sorted(line["batchkit"]["index"] for line in lines)
    world.lost = (Counter(world.indexes) - Counter(indexes)).total()
    world.doubled = (Counter(indexes) - Counter(world.indexes)).total()
    assert indexes == world.indexes, f"indexes {indexes}, not {world.indexes}"

    results = [line for line in lines if line["error"] is None]
    superseded = [
        json.loads(raw)
        for path in world.output.parent.glob("results.errors.[0-9]*.jsonl")
        for raw in path.read_bytes().splitlines()
    ]
    requests = summary["requests"]
    assert (requests["total"], requests["succeeded"], requests["failed"], requests["pending"]) == (
        len(world.indexes),
        len(results),
        len(lines) - len(results),
        0,
    )
    assert summary["attempts"]["total"] == sum(line["batchkit"]["attempts"] for line in lines + superseded)
    failures = [line for line in lines if line["error"] is not None]
    taken = {
        "results": [usage_of(line) for line in results],
        "failures": [usage_of(line) for line in failures],
        "retries": [usage_of(line) for line in superseded]
        + [each["usage"] for line in lines + superseded for each in line["batchkit"].get("billed", ())],
    }
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        sums = {outcome: sum(usage.get(name, 0) for usage in usages) for outcome, usages in taken.items()}
        assert {outcome: each["usage"][name] for outcome, each in summary["outcomes"].items()} == sums
        assert summary["usage"][name] == sum(sums.values())
        assert sum(model["usage"][name] for model in summary["models"].values()) == sum(sums.values())
    reasons = Counter[str]()
    for line in lines + superseded:
        reasons.update(line["batchkit"].get("retries", {}))
    assert summary["attempts"]["by_reason"] == dict(reasons)

    twice = sum(world.billed.values()) - len(results)
    assert 0 <= twice <= world.forgiven, f"{twice} answers were billed again, {world.forgiven} may be"
    assert world.most_in_flight <= world.concurrency, "more in flight than the concurrency allows"


def usage_of(line: dict[str, Any]) -> dict[str, Any]:
    body = (line["response"] or {}).get("body") or {}
    return body.get("usage") or {}


@dataclass(slots=True)
class Totals:
    """What happened over many seeds."""

    seeds: int = 0
    runs: int = 0
    crashes: int = 0
    billed: int = 0
    again: int = 0
    lost: int = 0
    doubled: int = 0
    broken: list[tuple[int, str]] = field(default_factory=list)
    """Seeds that broke a promise, and which."""

    def add(self, world: World) -> None:
        self.seeds += 1
        self.runs += world.runs
        self.crashes += world.crashes
        self.billed += world.billed.total()
        self.again += world.billed.total() - len(+world.billed)
        self.lost += world.lost
        self.doubled += world.doubled
        if world.broken is not None:
            self.broken.append((world.seed, f"{type(world.broken).__name__}: {world.broken}"))

    def merge(self, other: Totals) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def __str__(self) -> str:
        return (
            f"{self.seeds:,} seeds, {self.runs:,} runs, {self.crashes:,} crashes, {self.billed:,} answers billed, of them "
            f"{self.again:,} again, {self.lost:,} lost, {self.doubled:,} doubled, {len(self.broken):,} seeds with a broken promise"
        )


def live_through_all(seeds: range, within: str | None = IN_MEMORY) -> Totals:
    totals = Totals()
    for seed in seeds:
        totals.add(live_through(seed, within))
    return totals


def begin_worker() -> None:
    """Leave Ctrl-C to the process that began this one, and end when it says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def live_through_range(first: int, last: int) -> int:
    """Live through the seeds from `first` to before `last` on all cores, and tell. The exit code."""
    pieces = [range(start, min(start + AT_ONCE, last)) for start in range(first, last, AT_ONCE)]
    totals = Totals()
    told_at = began = time.monotonic()
    following = first
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # A process that is ended in the middle leaves its folder to the one around it.
        with (
            tempfile.TemporaryDirectory(prefix="batchkit-", dir=IN_MEMORY) as folder,
            multiprocessing.Pool(initializer=begin_worker) as pool,
        ):
            work = partial(live_through_all, within=folder)
            for piece, found in zip(pieces, pool.imap(work, pieces), strict=False):
                totals.merge(found)
                following = piece.stop
                for seed, what in found.broken:
                    print(f"seed {seed} broke a promise: {what}", flush=True)
                if len(totals.broken) >= MOST_BROKEN:
                    break
                now = time.monotonic()
                if now - told_at >= TOLD_EVERY_S:
                    told_at = now
                    per_s = totals.seeds / (now - began)
                    print(
                        f"{totals}; {per_s:,.0f} seeds/s, {(last - following) / per_s / 60:,.0f} min left",
                        file=sys.stderr,
                        flush=True,
                    )
    except KeyboardInterrupt:
        print(f"stopped; to go on: {sys.argv[0]} {following} {last}", file=sys.stderr)
        return 130
    finally:
        print(f"{totals}; {totals.seeds / (time.monotonic() - began):,.0f} seeds/s")
    return 1 if totals.broken else 0


def main() -> int:
    first, *last = map(int, sys.argv[1:])
    if last:
        return live_through_range(first, *last)
    print(*check(first).told, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
