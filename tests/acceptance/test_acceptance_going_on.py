"""Started again, a job goes on where it was, whatever its input comes from; and only with what belongs to it."""

import gzip
import os
import sys
from pathlib import Path

import forked_command
import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REQUESTS = 30
forker, command = forked_command.forker, forked_command.command


@pytest.fixture
def to(provider, files):
    """Where all runs here send and write."""
    return ["-o", files.results_path, "--base-url", provider.base_url, "--json"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_compressed_input_is_read_as_it_is(pack, command, files, write_requests, to):
    plain = write_requests(REQUESTS)
    packed = plain.with_name("packed")  # it is known by its bytes, not by its name
    packed.write_bytes(pack(plain.read_bytes()))
    command("run", packed, *to, "--limit", 10)
    assert len(files.results) == 10
    files.assert_summary_is_a_fold(command("run", packed, *to).json, REQUESTS)


def test_stdin_is_an_input_and_goes_on(command, provider, files, write_requests, to):
    lines = write_requests(REQUESTS).read_bytes()
    first = command("run", "-", *to, "--limit", 12, stdin=lines).json
    assert first["requests"]["succeeded"] == 12
    before = provider.stats.received
    files.assert_summary_is_a_fold(command("run", "-", *to, stdin=lines).json, REQUESTS)
    assert provider.stats.received - before == REQUESTS - 12


def test_a_limit_is_of_the_first_requests_and_may_be_lifted(command, provider, files, write_requests, to):
    requests = write_requests(REQUESTS)
    limited = command("run", requests, *to, "--limit", 10).json
    assert limited["requests"]["total"] == 10
    assert files.indexes == list(range(10))
    assert command("run", requests, *to, "--limit", 10).json["requests"] == limited["requests"]
    before = provider.stats.received
    files.assert_summary_is_a_fold(command("run", requests, *to).json, REQUESTS)
    assert provider.stats.received - before == REQUESTS - 10


def test_failures_are_asked_once_more_and_stay_in_the_totals(
    command, provider, simulate, files, write_requests
):
    requests = write_requests(REQUESTS)
    broken = simulate(faults={"empty": 0.3}, fault_times=1_000)
    run = ["run", requests, "-o", files.results_path, "--json", "--max-attempts", 1]
    first = command(*run, "--base-url", broken.base_url, code=1).json
    failed = {line["batchkit"]["index"] for line in files.errors}
    assert failed
    files.assert_summary_is_a_fold(first, REQUESTS)
    before = provider.stats.received
    healthy = [*run, "--base-url", provider.base_url, "--force"]
    second = command(*healthy, "--retry-failed").json
    assert provider.stats.received - before == len(failed)
    assert {line["batchkit"]["index"] for line in files.superseded} == failed
    assert files.results_path.with_name("results.errors.1.jsonl").exists()
    files.assert_summary_is_a_fold(second, REQUESTS)
    assert second["attempts"]["total"] == REQUESTS + len(failed)
    # Asked from the files alone, and by a run that finds nothing to do, it is the same.
    assert command("report", files.results_path, "--json").json == second
    assert command(*healthy).json["attempts"] == second["attempts"]


def test_failures_that_fail_alike_again_do_not_end_the_run_that_asks_them(
    command, provider, files, write_requests, to
):
    requests = write_requests(REQUESTS)
    refused = requests.read_bytes().replace(b'"max_tokens": 20', b'"max_tokens": -1')
    requests.write_bytes(requests.read_bytes()[: requests.read_bytes().index(b"\n") + 1] + refused)
    first = command("run", requests, *to, code=1).json
    assert (first["requests"]["succeeded"], first["requests"]["failed"]) == (1, REQUESTS)
    again = command("run", requests, *to, "--retry-failed", code=1).json
    assert (again["status"], again["requests"]["failed"], again["requests"]["pending"]) == (
        "completed",
        REQUESTS,
        0,
    )
    assert again["attempts"]["total"] == 1 + 2 * REQUESTS
    # Nor the next, which asks what such a run has left open.
    words = ["--retry-failed", "--max-failures", 5, "--concurrency", 1]
    stopped = command("run", requests, *to, *words, code=3).json
    assert stopped["requests"]["pending"] > 20
    again = command("run", requests, *to, code=1).json
    assert (again["status"], again["requests"]["pending"]) == ("completed", 0)


def test_that_some_failed_before_does_not_speak_for_those_that_are_new(
    command, provider, files, write_requests, to
):
    requests = write_requests(REQUESTS)
    first, rest = requests.read_bytes().split(b"\n", 1)
    requests.write_bytes(first + b"\n" + rest.replace(b'"max_tokens": 20', b'"max_tokens": -1'))
    command("run", requests, *to, "--limit", 2, code=1)
    stopped = command("run", requests, *to, "--retry-failed", "--concurrency", 1, code=3)
    assert "each of the first 20 requests failed alike" in stopped.err
    assert stopped.json["requests"]["pending"] == REQUESTS - 2 - 19


def test_overwrite_moves_the_old_files_aside(command, files, write_requests, to):
    requests = write_requests(REQUESTS)
    command("run", requests, *to)
    old = files.results_path.read_bytes()
    files.assert_summary_is_a_fold(command("run", requests, *to, "--overwrite").json, REQUESTS)
    (aside,) = files.results_path.parent.glob("results.jsonl.old-*")
    assert aside.read_bytes() == old
    assert files.results_path.read_bytes() != old


def test_an_edited_input_is_refused_by_its_line(command, provider, files, write_requests, to):
    requests = write_requests(REQUESTS)
    command("run", requests, *to, "--limit", 10)
    before, received = files.results_path.read_bytes(), provider.stats.received
    edited = requests.read_bytes().replace(b"What is 7?", b"What is 8?")
    requests.write_bytes(edited)
    os.utime(requests, ns=(0, 0))
    assert "line 8 " in command("run", requests, *to, code=4).err
    assert files.results_path.read_bytes() == before
    assert provider.stats.received == received


def test_a_line_that_failed_may_be_mended_and_asked_again(command, files, write_requests, to):
    requests = write_requests(REQUESTS)
    good = requests.read_bytes()
    requests.write_bytes(good.replace(b'"max_tokens": 20', b'"max_tokens":-1', 3).replace(b"{", b"[", 1))
    broken = command("run", requests, *to, code=1).json
    assert broken["requests"]["failed"] == 3
    requests.write_bytes(good)
    assert "--retry-failed" in command("run", requests, *to, "--allow-growth", code=4).err
    assert "mended, go on with --allow-growth" in command("run", requests, *to, "--retry-failed", code=4).err
    files.assert_summary_is_a_fold(
        command("run", requests, *to, "--retry-failed", "--allow-growth").json, REQUESTS
    )
    # What was answered stays as it is, in the next run too.
    requests.write_bytes(good.replace(b"What is 7?", b"What is 8?"))
    assert "line 8 " in command("run", requests, *to, "--retry-failed", code=4).err


def test_a_longer_input_is_gone_on_with_when_that_is_meant(command, files, write_requests, to):
    requests = write_requests(REQUESTS)
    command("run", requests, *to)
    write_requests(REQUESTS + 5)
    assert "--allow-growth" in command("run", requests, *to, code=4).err
    grown = command("run", requests, *to, "--allow-growth").json
    files.assert_summary_is_a_fold(grown, REQUESTS + 5)


@pytest.mark.parametrize("other", [["--model", "gpt-4o"], ["--set", "seed=2"]])
def test_other_defaults_are_refused_unless_forced(other, command, files, write_requests, to):
    requests = write_requests(REQUESTS)
    command("run", requests, *to, "--limit", 10)
    assert "--force" in command("run", requests, *to, *other, code=4).err
    files.assert_summary_is_a_fold(command("run", requests, *to, *other, "--force").json, REQUESTS)


def test_another_endpoint_is_refused(command, simulate, files, write_requests, to):
    requests = write_requests(REQUESTS)
    command("run", requests, *to, "--limit", 10)
    elsewhere = simulate()
    run = ["run", requests, "-o", files.results_path, "--base-url", elsewhere.base_url]
    assert "--force" in command(*run, code=4).err
    assert elsewhere.stats.received == 0


def test_stdout_holds_the_summary_and_nothing_else(command, files, write_requests, to):
    plain = [word for word in to if word != "--json"]
    ran = command("run", write_requests(REQUESTS), *plain, "--progress", "log")
    assert ran.out.startswith("job job-")
    assert ran.out.endswith("Every request has its result.\n")
    assert "done" in ran.err
    assert command("report", files.results_path).out == ran.out
    assert command("status", files.results_path).out == ran.out


def test_the_report_from_the_files_alone_is_what_the_run_said(command, files, write_requests, to):
    said = command("run", write_requests(REQUESTS), *to).json
    assert said["cost"]["total"] > 0
    page = files.report_path.read_bytes()
    for path in (files.summary_path, files.checkpoint_path, files.report_path):
        path.unlink()
    assert command("report", files.results_path, "--json").json == said == files.summary
    assert files.report_path.read_bytes() == page
    assert b"http" not in page.replace(b"http://127.0.0.1", b"")


def test_all_files_are_for_their_owner_alone(command, files, write_requests, to):
    command("run", write_requests(3), *to)
    made = [path for path in Path(files.results_path.parent).iterdir() if path.name != "requests.jsonl"]
    assert {path.name for path in made} == {
        f"results{ending}"
        for ending in (".jsonl", ".errors.jsonl", ".checkpoint.json", ".summary.json", ".report.html")
    }
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}


def test_validate_tells_bad_lines_and_twins_and_sends_nothing(command, tmp_path, line):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(line(1) + b"\n" + b"[]\n" + line(1))
    found = command("validate", path, "--json", code=1).json
    assert (found["lines"], found["requests"]) == (3, 2)
    assert [bad["index"] for bad in found["invalid"]] == [2]
    assert found["duplicate_custom_ids"] == [{"custom_id": "request-1", "indexes": [0, 3]}]
    assert command("validate", "-", stdin=line(1)).out == "1 requests, 0 bad lines of 1\n"
    assert [each.name for each in tmp_path.iterdir()] == ["mixed.jsonl"]
