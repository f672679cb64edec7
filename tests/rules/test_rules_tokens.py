"""Prompts are counted as they are billed, and nothing in a body can stop the count."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from batchkit.records import Request
from batchkit.rules.tokens import PromptCount, count_prompt, count_text, encoding_for, exact_prompt

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def lines(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("batch", ["kmmlu", "go_batch"])
def test_every_prompt_counts_what_openai_billed(batch):
    bodies = {line["custom_id"]: line["body"] for line in lines(f"{batch}_input.jsonl")}
    answers = lines(f"{batch}_output.jsonl")
    assert len(answers) == len(bodies)
    for answer in answers:
        billed = answer["response"]["body"]["usage"]["prompt_tokens"]
        assert count_prompt(bodies[answer["custom_id"]]) == PromptCount(billed, exact=True)


def test_answers_count_what_openai_billed_but_for_the_end_of_turn():
    for answer in lines("go_batch_output.jsonl"):
        body = answer["response"]["body"]
        counted = count_text(body["choices"][0]["message"]["content"])
        assert body["usage"]["completion_tokens"] == counted + 1


@pytest.mark.parametrize(
    ("model", "encoding", "known"),
    [
        ("gpt-4o", "o200k_base", True),
        ("GPT-4o-mini-2024-07-18", "o200k_base", True),
        ("openai/gpt-4.1-nano", "o200k_base", True),
        ("@prod/chatgpt-4o-latest", "o200k_base", True),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "o200k_base", True),
        ("gpt-5-mini", "o200k_base", False),
        ("o3-mini", "o200k_base", False),
        ("gpt-4", "cl100k_base", True),
        ("gpt-4-turbo", "cl100k_base", True),
        ("gpt-3.5-turbo-0125", "cl100k_base", True),
        ("gpt-3.5-turbo-0301", "cl100k_base", False),
        ("claude-3-5-sonnet", "o200k_base", False),
        ("", "o200k_base", False),
        (None, "o200k_base", False),
    ],
)
def test_a_model_names_its_encoding(model, encoding, known):
    assert encoding_for(model) == (encoding, known)


def test_a_name_costs_its_tokens_and_one():
    plain = {"role": "user", "content": "Hello!"}
    named = {**plain, "name": "alice"}
    without = count_prompt({"model": "gpt-4o", "messages": [plain]})
    assert without == PromptCount(3 + 3 + 1 + 2, exact=True)
    assert count_prompt({"model": "gpt-4o", "messages": [named]}) == PromptCount(
        without.tokens + 1 + count_text("alice"), exact=True
    )


def test_special_tokens_in_a_text_are_plain_text():
    text = "ignore <|endoftext|> and <|im_start|>system"
    assert count_text(text) > 10
    assert count_text("<|endoftext|>", "cl100k_base") > 1


def user(content: object) -> dict:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}


def test_one_text_part_counts_like_its_text():
    assert count_prompt(user([{"type": "text", "text": "Hello world!"}])) == count_prompt(
        user("Hello world!")
    )


def test_an_image_is_not_counted_as_the_text_it_is_sent_in():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    count = count_prompt(user([{"type": "text", "text": "What is this?"}, image]))
    assert not count.exact
    assert 765 < count.tokens < 1_000
    image["image_url"]["detail"] = "low"
    assert count_prompt(user([image])) == PromptCount(3 + 3 + 1 + 85, exact=False, images=1)


@pytest.mark.parametrize(
    ("model", "usual", "low"),
    [
        ("gpt-4o-mini-2024-07-18", 2_833 + 4 * 5_667, 2_833),
        ("openai/ft:gpt-4o-mini:acme::abc", 2_833 + 4 * 5_667, 2_833),
        ("gpt-4.1", 765, 85),
        ("gpt-4.1-mini", 1_659, 1_659),
        ("gpt-5", 630, 70),
        ("gpt-5-nano", 2_519, 2_519),
        ("o3", 675, 75),
        ("o4-mini", 1_761, 1_761),
        ("anthropic/claude-sonnet-4", 1_398, 1_398),
        (None, 765, 85),
    ],
)
def test_an_image_has_as_many_tokens_as_its_model_takes_for_it(model, usual, low):
    for detail, tokens in ((None, usual), ("high", usual), ("low", low)):
        image = {"type": "image_url", "image_url": {"url": "https://x", "detail": detail}}
        count = count_prompt({**user([image, image]), "model": model})
        assert count == PromptCount(7 + 2 * tokens, exact=False, images=2)


def test_sound_and_files_are_told_and_not_counted():
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 10_000, "format": "wav"}}
    file = {"type": "file", "file": {"file_id": "f"}}
    assert count_prompt(user([sound, file])) == PromptCount(7, exact=False, uncounted=2)
    heard = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    count = count_prompt({"model": "gpt-4o-audio-preview", "messages": [heard]})
    assert count == PromptCount(3 + 3 + 1, exact=False, uncounted=1)


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]},
        {"functions": [{"name": "weather"}]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "object"}},
            }
        },
    ],
)
def test_tools_and_schemas_are_estimated(extra):
    plain = count_prompt(user("hi"))
    count = count_prompt({**user("hi"), **extra})
    assert count.tokens > plain.tokens
    assert plain.exact
    assert not count.exact


def test_a_plain_response_format_adds_nothing():
    assert count_prompt({**user("hi"), "response_format": {"type": "json_object"}}) == count_prompt(
        user("hi")
    )


NESTED: list = []
for _ in range(5_000):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": "hi"},
        {"messages": [None, 7, "hi", []]},
        {"model": 7, "messages": [{"role": 7, "content": 7}]},
        {"model": "gpt-4o", "messages": [{"role": "user"}]},
        {
            "model": "gpt-4o",
            "messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}],
        },
        {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": [None, {}, {"type": []}, {"type": "text"}]}],
        },
        {"model": "gpt-4o", "messages": [{"role": "user", "content": "a", "name": ["b"]}]},
        {"model": "gpt-4o", "messages": [{"role": "user", "content": {"deep": NESTED}}], "tools": NESTED},
        {"model": "gpt-4o", "messages": [], "response_format": "json"},
        {"model": "o1", "messages": [{"role": "user", "content": "lone \ud800 surrogate"}]},
    ],
)
def test_strange_bodies_are_estimated(body):
    count = count_prompt(body)
    assert count.tokens >= 3
    assert not count.exact or body["messages"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "name", "type", "text", "image_url", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["model", "messages", "tools", "response_format"]), JSON))
def test_no_body_raises(body):
    assert count_prompt(body).tokens >= 3


@pytest.mark.filterwarnings("ignore:open_binary:DeprecationWarning")
@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
def test_the_package_around_the_tokenizer_counts_the_same(encoding):
    import bpe_openai

    text = "".join(f"Line {n}: the café naïve FOOBAR isn't 12,345.67 가나 다라\n\n" for n in range(3_000))
    assert len(text) > 150_000
    assert count_text(text, encoding) == len(bpe_openai.get_encoding(encoding).encode_ordinary(text))


def test_a_text_without_any_space_is_counted_at_any_length():
    assert count_text("a" * 1_200_000) == 150_000
    assert count_text("") == 0


@pytest.mark.parametrize(
    ("model", "content", "known"),
    [
        ("gpt-4o-mini", "a few words", True),
        ("gpt-4o-mini", [{"type": "image_url", "image_url": {"url": "https://x"}}], False),
        ("llama-3.3-70b", "a few words", False),
        (None, "a few words", False),
    ],
)
def test_a_prompt_is_exact_where_it_is_known_how_it_is_billed(model, content, known):
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    count = exact_prompt(Request(0, "a", json.dumps(body).encode(), model))
    assert count == (count_prompt(body).tokens if known else None)


def test_importing_the_rule_reads_no_tables():
    code = "import sys; from batchkit.rules import tokens; sys.exit(tokens._tokenizer.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
