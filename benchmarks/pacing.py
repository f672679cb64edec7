"""How well batchkit finds a hidden limit, beside what its peers do, in simulated time.

A provider that takes a median of 4 s (lognormal, sigma 0.5) for an answer and 50 ms for a refusal hides a limit. A thousand workers
have requests without end. `ideal` knows the limit, never has a request refused, and is what the others are measured by. Three
figures stand in each cell: useful answers over those of the ideal; refusals for each hundred answers; and the time until nine
of ten of the ideal's answers were there, over the ideal's own (`-` if they never were).

batchkit is its real gate and delivery, on a clock that passes while nobody has anything to do. No figure depends on the machine,
only on the seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import mean

from controllers import CONTROLLERS, Controller, Ideal
from limits import ROWS, Provider, Row, VirtualClock, requests


@dataclass(frozen=True)
class Ran:
    answered: list[float]
    refused: int


def run(
    make: Callable[[Provider, VirtualClock, Random], Controller],
    row: Row,
    seed: int,
    watch: Callable[[float, Controller, Provider], None] | None = None,
) -> Ran:
    """A job of `row` until its time is over. `watch` sees it once a second."""
    clock = VirtualClock(0.0)

    async def main() -> Ran:
        provider = Provider(row, clock, seed)
        controller = make(provider, clock, Random(seed + 2))
        following = requests(row, seed)

        async def work() -> None:
            while True:
                await controller.deliver(following())

        workers = [asyncio.ensure_future(work()) for _ in range(row.workers)]
        while (
            left := row.seconds - clock.now()
        ) > 1e-6:  # waits add up to a little less than they are together
            await clock.sleep(min(1.0, left) if watch else left)
            if watch is not None:
                watch(clock.now(), controller, provider)
        ran = Ran(provider.answered[:], provider.refused)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return ran

    with asyncio.Runner(loop_factory=clock.loop) as runner:
        return runner.run(main())


def measured(cell: tuple[str, str, int]) -> Ran:
    name, row, seed = cell
    return run(Ideal if name == "ideal" else CONTROLLERS[name], ROWS[row], seed)


def told(ran: list[Ran], ideal: list[Ran]) -> str:
    goodput = mean(len(each.answered) / len(best.answered) for each, best in zip(ran, ideal, strict=True))
    refused = mean(each.refused / max(1, len(each.answered)) for each in ran)
    late = []
    for each, best in zip(ran, ideal, strict=True):
        wanted = int(0.9 * len(best.answered))
        if len(each.answered) > wanted:
            late.append(each.answered[wanted] / best.answered[wanted])
    time = f"{mean(late):.2f}" if len(late) == len(ran) else "-"
    return f"{goodput:.1%} ({100 * refused:.1f}) {time}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        metavar="ROW",
        help=" · ".join(ROWS).replace("%", "%%"),
    )
    parser.add_argument(
        "--controllers", nargs="+", choices=CONTROLLERS, default=list(CONTROLLERS), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    chosen = parser.parse_args()
    seeds = range(1, chosen.seeds + 1)
    names = ["ideal", *chosen.controllers]
    cells = [(name, row, seed) for row in chosen.rows for name in names for seed in seeds]
    width = max(map(len, chosen.rows))
    print(
        f"{'answers/ideal (refusals %) time':{width}}  "
        + "  ".join(f"{name:>20}" for name in chosen.controllers)
    )
    with multiprocessing.Pool() as pool:
        ran = pool.imap(measured, cells)
        for row in chosen.rows:
            found = {name: [next(ran) for _ in seeds] for name in names}
            line = "  ".join(f"{told(found[name], found['ideal']):>20}" for name in chosen.controllers)
            print(f"{row:{width}}  {line}", flush=True)


if __name__ == "__main__":
    main()
