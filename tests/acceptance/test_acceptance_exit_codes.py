"""Each exit code, by what brings it about; and what stands in the files afterwards."""

import json
import signal
import urllib.request

import forked_command
import pytest

forker, command = forked_command.forker, forked_command.command


@pytest.fixture
def words(files, write_requests):
    """The job of forty requests that most tests here begin."""
    return ["run", write_requests(40), "-o", files.results_path]


def test_0_every_request_has_its_result(command, provider, files, words):
    ran = command(*words, "--base-url", provider.base_url)
    assert ran.out.startswith("job ")
    assert "40 of 40 done, 0 failed" in ran.out
    files.assert_summary_is_a_fold(files.summary, 40)


def test_1_finished_with_failures(command, provider, files, tmp_path, line):
    path = tmp_path / "some_bad.jsonl"
    path.write_bytes(line(0) + b"not json\n\n" + b'{"messages": [], "stream": true}\n' + line(1))
    run = ("run", path, "-o", files.results_path, "--base-url", provider.base_url, "--json")
    summary = command(*run, code=1).json
    counts = {name: summary["requests"][name] for name in ("total", "succeeded", "failed", "pending")}
    assert counts == {"total": 4, "succeeded": 2, "failed": 2, "pending": 0}
    assert [failed["batchkit"]["index"] for failed in files.errors] == [1, 3]
    assert {failed["error"]["code"] for failed in files.errors} == {"invalid_request_line"}
    assert files.indexes == [0, 1, 3, 4]
    # Going on has nothing to do, and says the same.
    assert command(*run, code=1).json["requests"] == summary["requests"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["run", "requests.jsonl"], "-o"),
        (["run", "missing.jsonl", "-o", "o.jsonl", "--simulate"], "missing.jsonl"),
        (["run", "requests.jsonl", "-o", "o.jsonl"], "--simulate"),
        (["run", "requests.jsonl", "-o", "o.jsonl", "--simulate", "--rpm", "many"], "--rpm"),
        (["run", "requests.jsonl", "-o", "requests.jsonl", "--simulate"], "same file"),
        (["run", "requests.jsonl", "-o", "o.jsonl", "--base-url", "http://example.com/v1"], "--allow-http"),
        (["run", "-", "-o", "requests.jsonl", "--simulate"], "no output of batchkit"),
        (["status", "o.jsonl"], "o.jsonl"),
        (["status", "requests.jsonl"], "no output of batchkit"),
        (["report", "requests.jsonl"], "no output of batchkit"),
        (["repair", "requests.jsonl"], "no output of batchkit"),
    ],
)
def test_2_wrong_usage_sends_nothing_and_leaves_nothing(wrong, said, command, write_requests, tmp_path):
    write_requests(3)
    before = (tmp_path / "requests.jsonl").read_bytes()
    ran = command(*wrong, code=2)
    assert said in ran.err
    assert ran.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]
    assert (tmp_path / "requests.jsonl").read_bytes() == before


def test_fault_31_a_refused_key_at_the_first_request_costs_one_request_and_ends_with_3(command, files, words):
    child = command.start("simulate", "--port", 0, "--instant", "--refuse-key")
    base_url = child.stdout.readline().strip()
    ran = command(*words, "--base-url", base_url, "--json", code=3)
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/simulator/stats") as answer:
        assert json.load(answer)["received"] == 1
    assert ran.json["status"] == "stopped"
    assert ran.json["stop_reason"] == "invalid_api_key"
    assert ran.json["requests"]["pending"] == 40
    assert "key" in ran.err
    assert files.errors == files.results == []


def test_fault_31_no_such_model_at_the_first_request_costs_one_request_and_ends_with_3(
    command, record, words
):
    unknown = {"error": {"message": "no such model", "code": "model_not_found"}}
    endpoint = record(respond=lambda _: (404, {}, unknown))
    stopped = command(*words, "--base-url", endpoint.base_url, "--json", code=3).json
    assert stopped["stop_reason"] == "model_not_found"
    assert len(endpoint.received) == 1


def test_fault_30_a_quota_gone_in_mid_run_stops_within_what_was_in_flight_and_a_full_account_goes_on(
    command, provider, simulate, files, words
):
    poor = simulate(quota=15)
    stopped = command(*words, "--base-url", poor.base_url, "--concurrency", 4, "--json", code=3).json
    assert stopped["stop_reason"] == "insufficient_quota"
    assert stopped["requests"]["succeeded"] == 15
    assert poor.stats.received <= 15 + 4
    assert not files.errors
    gone_on = command(*words, "--base-url", provider.base_url, "--force", "--json").json
    files.assert_summary_is_a_fold(gone_on, 40)


@pytest.mark.parametrize("bound", ["5", "5%"])
def test_3_as_many_failures_as_are_allowed(bound, command, provider, files, tmp_path, line):
    path = tmp_path / "bad_beginning.jsonl"
    path.write_bytes(b"{}\n" * 10 + b"".join(map(line, range(90))))
    run = ("run", path, "-o", files.results_path, "--base-url", provider.base_url, "--json")
    stopped = command(*run, "--max-failures", bound, code=3).json
    assert stopped["stop_reason"] == "max_failures"
    assert stopped["requests"]["failed"] == 5
    gone_on = command(*run, code=1).json
    assert gone_on["requests"]["failed"] == 10
    files.assert_summary_is_a_fold(gone_on, 100)


@pytest.fixture
def held(command, record, files, words, until):
    """A run with seven answers written and thirteen held back at the endpoint: the process, the endpoint, the words."""
    endpoint = record(most=7)
    words += ["--base-url", endpoint.base_url, "--concurrency", 13, "--json"]
    run = command.start(*words, "--progress", "log")
    until(lambda: len(endpoint.received) == 20 and files.count() == 7, run)
    return run, endpoint, words


def test_4_a_second_run_is_refused_and_names_the_first(command, held, files):
    run, endpoint, words = held
    before = files.results_path.read_bytes()
    refused = command(*words, code=4)
    assert f"process {run.pid}" in refused.err
    assert refused.json == {
        "error": {"code": "JobLocked", "message": refused.err.strip()[len("batchkit: ") :]}
    }
    assert command("report", files.results_path, code=4).out == ""
    assert files.results_path.read_bytes() == before
    endpoint.release()
    summary = json.loads(run.communicate()[0])
    assert run.returncode == 0
    files.assert_summary_is_a_fold(summary, 40)


def test_status_of_a_run_that_is_alive_equals_its_files(command, held, files):
    run, endpoint, _ = held
    status = command("status", files.results_path, "--json").json
    assert status["status"] == "running"
    assert status["requests"]["succeeded"] == len(files.results) == 7
    assert status["requests"]["total"] == 40
    assert status["usage"]["prompt_tokens"] == 70
    assert run.poll() is None
    endpoint.release()
    ended = json.loads(run.communicate()[0])
    assert command("status", files.results_path, "--json").json == ended == files.summary


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_what_is_in_flight_and_the_same_command_goes_on(number, code, command, held, files):
    run, endpoint, words = held
    run.send_signal(number)
    while "stopping" not in run.stderr.readline():
        pass
    assert run.poll() is None
    endpoint.release()
    summary = json.loads(run.communicate()[0])
    assert run.returncode == code
    assert summary["status"] == "interrupted"
    assert summary["requests"] == {
        "total": 40,
        "succeeded": 20,
        "failed": 0,
        "pending": 20,
        "truncated": 0,
        "from_cache": 0,
    }
    assert len(endpoint.received) == len(files.results) == 20
    files.assert_summary_is_a_fold(command(*words).json, 40)
    assert len(endpoint.received) == 40


def test_a_second_signal_leaves_at_once_with_whole_files(command, held, files):
    run, endpoint, words = held
    run.send_signal(signal.SIGINT)
    while "stopping" not in run.stderr.readline():
        pass
    run.send_signal(signal.SIGINT)
    summary = json.loads(run.communicate()[0])
    assert run.returncode == 130
    assert summary["requests"]["succeeded"] == len(files.results) == 7
    endpoint.release()
    files.assert_summary_is_a_fold(command(*words).json, 40)


def test_a_reader_that_has_enough_is_no_error(command, provider, words, files):
    run = command.start(*words, "--base-url", provider.base_url)
    run.stdout.close()
    run.stdout = None
    run.communicate()
    assert run.returncode == 0
    assert len(files.results) == 40
