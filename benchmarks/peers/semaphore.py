"""A job as most scripts do it: a task for each line, a semaphore before each call, an answer written as it comes.

    python over_….py REQUESTS RESULTS BASE_URL IN_FLIGHT

Ends with 1 if a request got no answer; its line then has an `error`.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

Ask = Callable[[dict[str, Any]], Awaitable[Any]]
"""Send a body; give back a completion as OpenAI's client has it."""


async def work(
    lines: Iterable[bytes], out: BinaryIO, in_flight: int, connect: Callable[[], Ask]
) -> Counter[str]:
    ask, turns = connect(), asyncio.Semaphore(in_flight)
    sums: Counter[str] = Counter()

    async def answer(line: bytes) -> None:
        record = json.loads(line)
        written = {"custom_id": record["custom_id"], "response": None, "error": None}
        async with turns:
            try:
                completion = await ask(record["body"])
            except Exception as error:  # noqa: BLE001 - as a script does that is to live through the night
                sums["lost"] += 1
                written["error"] = str(error)
            else:
                written["response"] = completion.model_dump(mode="json")
                for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                    sums[name] += getattr(completion.usage, name)
        out.write(json.dumps(written).encode() + b"\n")

    await asyncio.gather(*map(answer, lines))
    return sums


def main(connect: Callable[[str], Ask]) -> None:
    """`connect` makes a client of a base URL."""
    requests, results, base_url, in_flight = sys.argv[1:5]
    with Path(requests).open("rb") as lines, Path(results).open("ab", buffering=0) as out:
        sums = asyncio.run(work(lines, out, int(in_flight), lambda: connect(base_url)))
    print(dict(sums))
    raise SystemExit(1 if sums["lost"] else 0)
