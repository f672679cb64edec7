"""The job over aiohttp in the fewest lines that do it well: workers on uvloop that share the lines, orjson, one write an answer.

It has nothing for the day on which something fails.

    python over_aiohttp.py REQUESTS RESULTS BASE_URL IN_FLIGHT
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import aiohttp
import orjson
import uvloop


async def main(lines: Iterable[bytes], out: FileIO, base_url: str, in_flight: int) -> Counter[str]:
    usage: Counter[str] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for line in lines:
                record = orjson.loads(line)
                async with session.post(
                    f"{base_url}/chat/completions",
                    data=orjson.dumps(record["body"]),
                    headers={"Content-Type": "application/json"},
                ) as response:
                    body = orjson.loads(await response.read())
                for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                    usage[name] += body["usage"][name]
                answer = {"custom_id": record["custom_id"], "response": body, "error": None}
                out.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))

        await asyncio.gather(*(work() for _ in range(in_flight)))
    return usage


if __name__ == "__main__":
    requests, results, url, most = sys.argv[1:5]
    with Path(requests).open("rb") as source, Path(results).open("ab", buffering=0) as target:
        print(dict(uvloop.run(main(source, target, url, int(most)))))
