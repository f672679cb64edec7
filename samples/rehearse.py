"""A rehearsal: a job against a provider that limits, fails and breaks off, before it meets a real one.

The simulator below fails a share of the requests once each and admits only so many a minute. A job that ends well here
has had each of its answers repeated, paced or waited for.
"""

import asyncio
import tempfile
from pathlib import Path

import batchkit

TICKETS = Path(__file__).parent / "support_tickets.jsonl"

BAD_DAY = batchkit.SimulatorSettings(
    speed=20, rpm=6_000, faults={"500": 0.05, "reset": 0.03, "cut": 0.03, "error200": 0.02}
)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with batchkit.Simulator(BAD_DAY) as simulator:
            summary = await batchkit.arun(
                TICKETS, Path(folder) / "replies.jsonl", base_url=simulator.base_url, progress="off"
            )
        print(summary["requests"])
        print(summary["attempts"])
        print(f"the provider billed {simulator.stats.billed_completion_tokens} completion tokens,")
        print(f"the answers hold {summary['usage']['completion_tokens']}: the rest broke off on its way")


asyncio.run(main())
