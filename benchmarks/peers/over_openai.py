"""The job over OpenAI's own client, with its defaults; MAX_RETRIES in the environment is how often it asks again."""

import os

from openai import AsyncOpenAI
from semaphore import Ask, main


def connect(base_url: str) -> Ask:
    asked = os.environ.get("MAX_RETRIES")
    client = AsyncOpenAI(base_url=base_url, api_key="none", **({"max_retries": int(asked)} if asked else {}))
    return lambda body: client.chat.completions.create(**body)


if __name__ == "__main__":
    main(connect)
