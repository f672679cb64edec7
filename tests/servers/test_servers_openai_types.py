"""Output files as others read them: OpenAI's own client's types take every line."""

import json

import pytest


@pytest.fixture
def finished(command, simulate, files, write_requests):
    """A job of the simulator's that is done, with results and failures of all kinds: how many of each."""
    simulator = simulate(faults={"500": 0.1, "empty": 0.1, "hang": 0.05}, fault_times=100)
    path = write_requests(60)
    with path.open("ab") as requests:
        requests.write(b"not json\n")
    run = ["run", path, "-o", files.results_path, "--base-url", simulator.base_url, "--json"]
    command(*run, "--max-attempts", 1, "--timeout", 1, code=1)
    assert {type(line["response"]) for line in files.errors} == {dict, type(None)}
    return len(files.results), len(files.errors)


def test_openais_types_read_every_line_of_a_job(finished, files, read_with_openai):
    results, _ = finished
    assert results > 30
    assert read_with_openai(files.results_path) == {"read": results, "refused": []}


def test_failures_are_batch_output_too(finished, files, read_with_openai):
    _, errors = finished
    assert read_with_openai(files.errors_path) == {"read": errors, "refused": []}


def without(*path):
    def spoil(line):
        *above, name = path
        for each in above:
            line = line[each]
        del line[name]

    return spoil


def with_value(value, *path):
    def spoil(line):
        *above, name = path
        for each in above:
            line = line[each]
        line[name] = value

    return spoil


BODY = ("response", "body")
SPOILERS = [
    without("custom_id"),
    without("error"),
    without("response", "request_id"),
    without(*BODY, "choices"),
    without(*BODY, "created"),
    with_value("200", "response", "status_code"),
    with_value("1763820000", *BODY, "created"),
    with_value("text_completion", *BODY, "object"),
    with_value("done", *BODY, "choices", 0, "finish_reason"),
    with_value("12", *BODY, "usage", "total_tokens"),
    with_value("a string", *BODY),
]


def test_openais_types_refuse_each_line_that_is_not_what_it_says(
    command, provider, files, write_requests, read_with_openai
):
    command("run", write_requests(len(SPOILERS)), "-o", files.results_path, "--base-url", provider.base_url)
    lines = files.results
    good = json.dumps(lines[0])
    for spoil, line in zip(SPOILERS, lines, strict=True):
        spoil(line)
    files.results_path.write_text("".join(f"{each}\n" for each in [good, *map(json.dumps, lines)]))
    seen = read_with_openai(files.results_path)
    assert seen["read"] == 1
    assert len(seen["refused"]) == len(SPOILERS)


@pytest.mark.parametrize("name", ["kmmlu", "go_batch"])
def test_real_jobs_are_read_as_openais_own_output_of_them_is(
    name, command, provider, files, real_data, read_with_openai
):
    run = ("run", real_data / f"{name}_input.jsonl", "-o", files.results_path)
    command(*run, "--base-url", provider.base_url)
    ours, openais = read_with_openai(files.results_path), read_with_openai(real_data / f"{name}_output.jsonl")
    assert ours == openais
    assert ours["refused"] == []
    assert ours["read"] == len(files.results) > 0
