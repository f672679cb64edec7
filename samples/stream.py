"""Requests made on the fly, answers used as they come: no files in between.

Outcomes arrive in the order in which they end, and `index` tells which record each belongs to. No more records are taken
from the iterator than are being worked on, so it may be endless.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import batchkit

CITIES = ("Lagos", "Lima", "Lisbon", "Ljubljana", "London", "Lyon")


def questions() -> Iterator[dict[str, Any]]:
    for city in CITIES:
        yield {
            "messages": [{"role": "user", "content": f"Name one thing to see in {city}."}],
            "max_tokens": 20,
        }


async def main() -> None:
    async for outcome in batchkit.stream(questions(), simulate=True, model="gpt-4o-mini", concurrency=3):
        city = CITIES[outcome.index]
        if isinstance(outcome.answer, batchkit.Reply):
            message = json.loads(outcome.answer.body)["choices"][0]["message"]
            print(f"{city}: {message['content']}")
        else:
            print(f"{city}: failed, {outcome.answer.code}: {outcome.answer.message}")


asyncio.run(main())
