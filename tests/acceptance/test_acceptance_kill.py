"""Whatever kills it, going on brings each request to exactly one line, and asks nothing again that was written."""

import json
from pathlib import Path

import pytest

KILLS = 5
BETWEEN_KILLS = 200
REQUESTS = (KILLS + 1) * BETWEEN_KILLS
CONCURRENCY = 64


@pytest.fixture
def billing(command, tmp_path):
    """`batchkit simulate` with a ledger: its base URL, and what it billed."""
    ledger = tmp_path / "ledger.jsonl"
    child = command.start(
        "simulate", "--port", 0, "--speed", 20, "--output-tokens", 10, "--ledger", ledger, "--json"
    )
    base_url = json.loads(child.stdout.readline())["base_url"]
    yield base_url, lambda: [json.loads(line) for line in ledger.read_bytes().split(b"\n")[:-1]]
    child.terminate()
    child.communicate()
    assert child.returncode == 0


def test_killed_five_times_each_index_stands_once_and_nothing_written_is_sent_again(
    command, billing, files, write_requests, until, kill
):
    base_url, billed = billing
    requests = write_requests(REQUESTS)
    words = ["run", requests, "-o", files.results_path, "--base-url", base_url, "--concurrency", CONCURRENCY]
    written_before: list[tuple[int, set[str]]] = []
    for number in range(KILLS):
        run = command.start(*words, "--progress", "off")
        until(lambda least=(number + 1) * BETWEEN_KILLS: files.count() >= least, run)
        kill(run)
        whole = files.results_path.read_bytes().split(b"\n")[:-1]
        written_before.append((len(billed()), {json.loads(line)["batchkit"]["trace_id"] for line in whole}))
    summary = command(*words, "--json").json

    files.assert_summary_is_a_fold(summary, REQUESTS)
    assert summary == files.summary
    assert summary["status"] == "completed"
    assert not files.errors
    ledger = billed()
    assert REQUESTS <= len(ledger) <= REQUESTS + KILLS * CONCURRENCY
    for position, traces in written_before:
        later = {each["client_request_id"][:32] for each in ledger[position:]}
        assert not later & traces
    # The ids of a request are the same over its runs, those of an attempt are never used twice.
    sent = [each["client_request_id"] for each in ledger]
    assert len(set(sent)) == len(sent)
    assert {line["batchkit"]["trace_id"] for line in files.results} == {each[:32] for each in sent}


@pytest.fixture
def half_done(command, provider, files, write_requests):
    """A job of 40 requests of which 20 are done; gives the words of the command that goes on."""
    words = ["run", write_requests(40), "-o", files.results_path, "--base-url", provider.base_url]
    command(*words, "--limit", 20)
    return [*words, "--json"]


def test_a_torn_last_line_is_moved_aside_and_asked_again(command, files, half_done):
    whole = files.results_path.read_bytes()
    files.results_path.write_bytes(whole[:-30])
    files.checkpoint_path.unlink()
    gone_on = command(*half_done)
    files.assert_summary_is_a_fold(gone_on.json, 40)
    assert "torn" in gone_on.err
    (aside,) = files.results_path.parent.glob("results.jsonl.torn-*")
    assert aside.read_bytes().rstrip(b"\n") == whole[:-30].split(b"\n")[-1]


def test_a_deleted_checkpoint_is_rebuilt_and_costs_nothing(command, provider, files, half_done):
    files.checkpoint_path.unlink()
    before = provider.stats.received
    files.assert_summary_is_a_fold(command(*half_done).json, 40)
    assert provider.stats.received - before == 20
    assert files.checkpoint_path.exists()


def test_damage_in_the_middle_is_refused_and_nothing_is_written(command, provider, files, half_done):
    damaged = files.results_path.read_bytes().replace(b'"custom_id":"request-3"', b'"custom_id":"request-X"')
    files.results_path.write_bytes(damaged)
    files.checkpoint_path.unlink()
    before = provider.stats.received
    assert "damaged" in command(*half_done, code=4).err
    assert provider.stats.received == before
    assert files.results_path.read_bytes() == damaged


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the child in /proc")
def test_the_embedded_simulator_ends_with_the_run_that_is_killed(command, files, write_requests, until, kill):
    run = command.start("run", write_requests(200), "-o", files.results_path, "--simulate")
    until(lambda: files.count() >= 1, run)
    children = {
        int(pid)
        for path in Path(f"/proc/{run.pid}/task").glob("*/children")
        for pid in path.read_text().split()
    }
    kill(run)
    assert len(children) == 1
    until(lambda: not any(map(_lives, children)))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
