"""The job over lm-evaluation-harness, by its model of kind `local-chat-completions`, with its defaults.

It hands back texts alone, all at the end; the usage is added up where it reads an answer.

    python over_lm_eval.py REQUESTS RESULTS BASE_URL IN_FLIGHT
"""

import json
import sys
from collections import Counter
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion

usage: Counter[str] = Counter()


class Counting(LocalChatCompletion):
    def parse_generations(self, outputs: dict, **kwargs: object) -> list[str]:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            usage[name] += outputs["usage"][name]
        return super().parse_generations(outputs, **kwargs)


def main() -> None:
    requests, results, base_url, in_flight = sys.argv[1:5]
    with Path(requests).open("rb") as lines:
        records = [json.loads(line) for line in lines]
    model = Counting(
        base_url=f"{base_url}/chat/completions",
        model=records[0]["body"]["model"],
        num_concurrent=max(2, int(in_flight)),  # with 1 it leaves asyncio for another client
        tokenizer_backend=None,
    )
    asked = [
        Instance("generate_until", {}, (model.apply_chat_template(record["body"]["messages"]), {}), number)
        for number, record in enumerate(records)
    ]
    texts = model.generate_until(asked)
    with Path(results).open("w", encoding="utf-8") as out:
        out.writelines(
            json.dumps({"custom_id": record["custom_id"], "response": text, "error": None}) + "\n"
            for record, text in zip(records, texts, strict=True)
        )
    print(dict(usage))


if __name__ == "__main__":
    main()
