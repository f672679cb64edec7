"""How long an answer can be is known by the model, however its name is spelled, or not at all."""

import json
from pathlib import Path

import pytest

from batchkit.rules.largest_output import largest_output

LISTS = sorted(
    (Path(__file__).parents[2] / ".ci/litellm/venv").glob(
        "lib/python*/site-packages/litellm/model_prices_and_context_window_backup.json"
    )
)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o", 16_384),
        ("GPT-4o-mini-2024-07-18", 16_384),
        ("gpt-4o-2024-05-13", 4_096),
        ("openai/gpt-4.1-nano", 32_768),
        ("@openai-prod/gpt-4.1", 32_768),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", 16_384),
        ("gpt-4-turbo-2024-04-09", 4_096),
        ("gpt-4-0613", 8_192),
        ("gpt-3.5-turbo-0125", 4_096),
        ("gpt-35-turbo", 4_096),
        ("o1", 100_000),
        ("o4-mini-2025-04-16", 100_000),
        ("o1-preview", 32_768),
        ("gpt-5-nano-2025-08-07", 128_000),
        ("gpt-5.1-codex-max", 128_000),
        ("gpt-5-chat-latest", 16_384),
        ("gpt-5-pro", 272_000),
        ("claude-3-haiku-20240307", 4_096),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 64_000),
        ("claude-opus-4-1-20250805", 32_000),
        ("claude-sonnet-4-20250514", 64_000),
        ("claude-opus-4-6", 128_000),
        ("google/gemini-2.5-flash-lite-preview-06-17", 65_536),
        ("gemini-2.0-flash-001", 8_192),
    ],
)
def test_a_model_of_the_table_is_found_however_it_is_spelled(model, tokens):
    assert largest_output(model) == tokens


@pytest.mark.parametrize(
    "model", ["", "@", "ft:", "mine", "gpt-4o-64k-output", "gpt-4o:extended", "gpt-50", "o2", "claude-9"]
)
def test_of_any_other_name_nothing_is_said(model):
    assert largest_output(model) is None


@pytest.mark.skipif(not LISTS, reason="LiteLLM, whose list is compared, is not installed: make litellm")
def test_no_figure_is_below_the_one_in_litellms_list():
    """One that is too low would let a run spend more than its bound; ours are higher where an option allows more."""
    listed = json.loads(LISTS[0].read_text(encoding="utf-8"))
    vendors = {"openai", "anthropic", "gemini"}
    compared = 0
    for name, entry in listed.items():
        theirs, ours = entry.get("max_output_tokens"), largest_output(name)
        if entry.get("litellm_provider") in vendors and entry.get("mode") == "chat" and theirs and ours:
            assert ours >= theirs, name
            compared += 1
    assert compared > 60
