"""The totals of a job against folds over its files that share nothing with batchkit.

The provider repeats answers that OpenAI gave, byte for byte, or, where there are none, some of our own making; among them some that were changed to what providers also do:
billed answers that are no completion, withheld ones, answers without usage, a gateway's cache.
"""

import json
import re
import shutil
import subprocess
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from scripted_server import ScriptedServer, http

import batchkit

DATA = Path(__file__).parents[3] / "shared" / "data"
DOCS = Path(__file__).parents[2] / "docs" / "totals.md"
NANODOLLARS = {
    "gpt-4o-mini-2024-07-18": {"prompt": 150, "cached": 75, "completion": 600},
    "gpt-4o-2024-08-06": {"prompt": 2500, "cached": 1250, "completion": 10000},
}
"""For one token."""
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
SOON = "retry-after-ms: 1"


def real_answers():
    """The bodies as they came, by custom_id."""
    bodies = {}
    for name in ("kmmlu_output.jsonl", "go_batch_output.jsonl"):
        path = DATA / name
        if not path.exists():
            pytest.skip(f"there are no real answers at {path}")
        for line in path.read_bytes().splitlines():
            start = line.index(b'"body": ') + len(b'"body": ')
            body = line[start : line.rindex(b'}, "error": ')]
            assert json.loads(body) == json.loads(line)["response"]["body"]
            bodies[json.loads(line)["custom_id"]] = body
    return bodies


def made_answers():
    """Bodies of our own making, for wherever there are no real ones."""
    bodies = {}
    for number in range(210):
        prompt, completion = 1000 + 7919 * number % 4001, 1 + 104_729 * number % 613
        body = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "model": sorted(NANODOLLARS)[number % 7 == 0],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": f'"usage": {{"prompt_tokens": {number}}}'},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": 128 * (number % 5)},
                "completion_tokens_details": {"reasoning_tokens": completion // 3},
            },
        }
        bodies[f"made-{number}"] = json.dumps(body, indent=1).encode()
    return bodies


def changed(body, **changes):
    return json.dumps({**json.loads(body), **changes}).encode()


def withheld(body, **changes):
    choice = json.loads(body)["choices"][0]
    return changed(body, choices=[{**choice, "finish_reason": "content_filter"}], **changes)


def script(number, body, model):
    """What the provider says to the request of this number, the last of it again and again."""
    usage = {**json.loads(body)["usage"]}
    good = http(200, body)
    nothing = http(200, changed(body, choices=[]), SOON)
    match number % 12:
        case 0:
            return [nothing, good]
        case 1:
            return [http(200, withheld(body)), good]
        case 2:
            return [http(200, withheld(body))]
        case 3:
            return [http(200, changed(body, usage=None))]
        case 4:
            return [http(200, body, "x-portkey-cache-status: HIT")]
        case 5:
            usage |= {
                "prompt_tokens_details": {"cached_tokens": 1024},
                "completion_tokens_details": {"reasoning_tokens": 1},
            }
            return [http(200, changed(body, usage=usage))]
        case 6:
            again = http(200, withheld(body), SOON, "x-should-retry: true")
            return [again, again, nothing, http(200, withheld(body)), good]
        case 7:
            return [http(200, changed(body, model=model))]
        case 8:
            unsaid = http(200, withheld(body, usage=None))
            return [unsaid, good] if number % 24 == 8 else [unsaid]
        case 9:
            refusal = {"error": {"code": "context_length_exceeded", "message": "too long"}}
            return [http(400, json.dumps(refusal).encode())]
        case _:
            return [good]


class Provider(ScriptedServer):
    """Answers each request by a script of its own, whatever the order in which they come, and keeps books of it."""

    def __init__(self, scripts):
        super().__init__(b"")
        self._scripts = scripts
        self.books = Counter()

    def _next(self):
        own = self._scripts[json.loads(self.bodies[-1])["messages"][0]["content"]]
        answer = own.pop(0) if len(own) > 1 else own[0]
        usage = json.loads(answer.partition(b"\r\n\r\n")[2]).get("usage") or {}
        self.books.update({name: count for name, count in usage.items() if isinstance(count, int)})
        return answer


async def work_through(folder, model, bodies):
    """A job over all these answers and a second run for its failures. Returns its last summary."""
    lines = [
        {
            "custom_id": custom_id,
            "body": {
                "model": "gpt-4o-mini",
                "messages": [{"role": "user", "content": custom_id}],
                **({"metadata": {"team": "ABC"[number % 3]}} if number % 5 else {}),
            },
        }
        for number, custom_id in enumerate(bodies)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scripts = {
        custom_id: script(number, body, model) for number, (custom_id, body) in enumerate(bodies.items())
    }
    provider = Provider(scripts)
    async with provider.listening() as base_url:
        for retry_failed in (False, True):
            summary = await batchkit.arun(
                folder / "in.jsonl",
                folder / "results.jsonl",
                base_url=base_url,
                concurrency=16,
                progress="off",
                retry_failed=retry_failed,
            )
    assert batchkit.report(folder / "results.jsonl") == summary
    # Each answer that was sent is in the totals once, whatever became of it.
    assert {name: summary["usage"][name] for name in provider.books} == provider.books
    return summary


def fold(folder):
    """Model, outcome and figure: how much. In whole numbers, with the lines read anew."""
    sums = {}
    for path in sorted(folder.glob("results*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            own, response = line["batchkit"], line["response"] or {"body": None, "status_code": None}
            body = response["body"] if isinstance(response["body"], dict) else {}
            usage = body.get("usage")
            answers = []
            if line["error"] is None:
                answers.append(("results", body.get("model"), usage, "from_cache" in own.get("flags", ())))
            elif usage is not None or (own["reason"] == "content_filter" and response["status_code"] < 300):
                outcome = "failures" if path.name == "results.errors.jsonl" else "retries"
                answers.append((outcome, body.get("model"), usage, False))
            answers += [("retries", each["model"], each["usage"], False) for each in own.get("billed", ())]
            for outcome, model, taken, free in answers:
                cell = sums.setdefault(model or "unknown", {}).setdefault(outcome, Counter())
                cell["answers"] += 1
                if taken is None:
                    cell["unknown"] += 1
                    continue
                cached = min(
                    taken["prompt_tokens"],
                    taken.get("prompt_tokens_details", taken).get("cached_tokens", 0),
                )
                cell["prompt_tokens"] += taken["prompt_tokens"]
                cell["completion_tokens"] += taken["completion_tokens"]
                cell["total_tokens"] += taken["total_tokens"]
                cell["cached_tokens"] += cached
                cell["reasoning_tokens"] += taken.get("completion_tokens_details", taken).get(
                    "reasoning_tokens", 0
                )
                if model in NANODOLLARS and not free:
                    price = NANODOLLARS[model]
                    cell["nanodollars"] += (taken["prompt_tokens"] - cached) * price["prompt"]
                    cell["nanodollars"] += cached * price["cached"]
                    cell["nanodollars"] += taken["completion_tokens"] * price["completion"]
    return sums


def jq_fold(folder):
    """The same by the command of the docs."""
    if shutil.which("jq") is None:
        pytest.skip("there is no jq on this machine")
    command = re.search(r"```sh\n(jq .*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(["bash", "-c", command[1]], cwd=folder, capture_output=True, check=True)
    return json.loads(done.stdout)


def nanodollars(dollars):
    return Decimal(repr(dollars)) * 10**9


def assert_told(told, cell, *, priced):
    """That one part of the summary says what a fold says."""
    assert told.get("requests", told.get("attempts")) == (cell.get("answers") or 0)
    assert told["usage"] == {name: cell.get(name) or 0 for name in (*TOKENS, "unknown")}
    known = nanodollars(told["known_cost"] if told["cost"] is None else told["cost"])
    assert known == (cell.get("nanodollars") or 0)
    all_unknown = cell.get("answers") and cell["answers"] == cell.get("unknown")
    assert (told["cost"] is None) == bool(cell and (not priced or all_unknown))


@pytest.mark.parametrize("read", [fold, jq_fold], ids=["python", "jq"])
@pytest.mark.parametrize(
    ("answers", "model"),
    [(real_answers, "gpt-4o-2024-08-06"), (real_answers, "house-model"), (made_answers, "house-model")],
    ids=["real", "real-unpriced", "made"],
)
async def test_the_summary_says_what_an_independent_fold_says(tmp_path, read, answers, model):
    summary = await work_through(tmp_path, model, answers())
    sums = read(tmp_path)
    outcomes = {"results": Counter(), "failures": Counter(), "retries": Counter()}
    for by_outcome in sums.values():
        for outcome, cell in by_outcome.items():
            outcomes[outcome].update({name: value or 0 for name, value in cell.items()})
    whole = outcomes["results"] + outcomes["failures"] + outcomes["retries"]
    # The job has some of everything, or this would show nothing.
    for outcome, least in (("results", 100), ("failures", 15), ("retries", 60)):
        assert outcomes[outcome]["answers"] >= least
    assert all(outcomes[outcome]["unknown"] for outcome in outcomes)

    assert set(summary["models"]) == set(sums)
    for name, told in summary["models"].items():
        for outcome in outcomes:
            assert_told(told["outcomes"][outcome], sums[name].get(outcome, {}), priced=name in NANODOLLARS)
        cells = sums[name].values()
        assert told["usage"] == {
            each: sum(cell.get(each) or 0 for cell in cells) for each in (*TOKENS, "unknown")
        }
        if name in NANODOLLARS:
            assert nanodollars(told["cost"]) == sum(cell.get("nanodollars") or 0 for cell in cells)
    assert summary["usage"] == {each: whole[each] for each in (*TOKENS, "unknown")}
    for outcome, cell in outcomes.items():
        told = summary["outcomes"][outcome]
        assert told.get("requests", told.get("attempts")) == cell["answers"]
        assert told["usage"] == {each: cell[each] for each in (*TOKENS, "unknown")}
        assert nanodollars(told.get("known_cost", told["cost"])) == cell["nanodollars"]
    cost = summary["cost"]
    assert nanodollars(cost.get("known_total", cost["total"])) == whole["nanodollars"]
    assert cost["unpriced_models"] == [name for name in sums if name not in NANODOLLARS]


async def test_an_answer_with_more_cached_tokens_than_its_prompt_has_takes_nothing_off_another(tmp_path):
    taken = [
        {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 1000}},
        {"prompt_tokens": 990, "completion_tokens": 0},
    ]
    body = next(iter(made_answers().values()))
    answers = [http(200, changed(body, model="m", usage=usage)) for usage in taken]
    messages = [json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}]}) + "\n"]
    (tmp_path / "in.jsonl").write_text("".join(messages * 2))
    async with ScriptedServer(*answers).listening() as base_url:
        summary = await batchkit.arun(
            tmp_path / "in.jsonl",
            tmp_path / "results.jsonl",
            base_url=base_url,
            prices={"m": {"prompt": 1, "completion": 1, "cached": Decimal("0.1")}},
            progress="off",
        )
    assert summary["usage"]["cached_tokens"] == 10
    assert summary["cost"]["total"] == 0.000991


async def test_groups_by_metadata_add_up_to_the_summary(tmp_path):
    whole = await work_through(tmp_path, "house-model", made_answers())
    told = batchkit.report(tmp_path / "results.jsonl", by="metadata.team")
    groups = told.pop("by")["metadata.team"]
    assert told == whole
    assert list(groups) == ["A", "B", "C", "(none)"]
    for name in ("requests", "succeeded", "failed"):
        wanted = {**whole["requests"], "requests": whole["requests"]["total"]}[name]
        assert sum(group[name] for group in groups.values()) == wanted
    assert sum(group["attempts"] for group in groups.values()) == whole["attempts"]["total"]
    for name, count in whole["usage"].items():
        assert sum(group["usage"][name] for group in groups.values()) == count
    costs = [nanodollars(group.get("known_cost", group["cost"])) for group in groups.values()]
    assert sum(costs) == nanodollars(whole["cost"]["known_total"])
    assert "by" not in json.loads((tmp_path / "results.summary.json").read_text())
