"""Batch files from the wild run as they are, and prompts come to the tokens that were billed for them."""

import json

import pytest


def billed(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["custom_id"]: line["response"]["body"]["usage"]["prompt_tokens"] for line in lines}


@pytest.mark.parametrize("name", ["kmmlu", "go_batch"])
def test_prompt_tokens_are_those_of_the_providers_own_batch(name, command, provider, files, real_data):
    run = ("run", real_data / f"{name}_input.jsonl", "-o", files.results_path)
    summary = command(*run, "--base-url", provider.base_url, "--json").json
    wanted = billed(real_data / f"{name}_output.jsonl")
    files.assert_summary_is_a_fold(summary, len(wanted))
    assert billed(files.results_path) == wanted
    assert summary["usage"]["prompt_tokens"] == sum(wanted.values())


def test_the_example_of_vllm_runs_to_results(command, provider, files, real_data):
    run = ("run", real_data / "vllm_example_input.jsonl", "-o", files.results_path)
    summary = command(*run, "--base-url", provider.base_url, "--json").json
    files.assert_summary_is_a_fold(summary, 2)
    assert summary["cost"]["total"] is None
    assert summary["cost"]["unpriced_models"] == ["meta-llama/Meta-Llama-3-8B-Instruct"]
