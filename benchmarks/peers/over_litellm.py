"""The job over LiteLLM's `acompletion`, with its defaults."""

from typing import Any

from litellm import acompletion
from semaphore import Ask, main


def connect(base_url: str) -> Ask:
    async def ask(body: dict[str, Any]) -> Any:
        return await acompletion(
            **{**body, "model": f"openai/{body['model']}"}, api_base=base_url, api_key="none"
        )

    return ask


if __name__ == "__main__":
    main(connect)
