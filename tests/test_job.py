"""The Python API over a real simulator on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator
from errno import EACCES
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import batchkit
from batchkit.errors import UsageError
from batchkit.simulator.server import Simulator
from batchkit.simulator.settings import SimulatorSettings

KEYS = ("PORTKEY_API_KEY", "OPENAI_API_KEY", "PORTKEY_VIRTUAL_KEY", "PORTKEY_PROVIDER_VIRTUAL_KEY")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    async with Simulator(SimulatorSettings(instant=True)) as simulator:
        yield simulator.base_url


def record(number: int) -> dict[str, Any]:
    return {
        "custom_id": f"r{number}",
        "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Say {number}."}]},
    }


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(record(number)) + "\n" for number in range(50)))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_arun_answers_every_request_and_returns_the_summary_in_the_file(base_url, requests, tmp_path):
    output = tmp_path / "results.jsonl"
    summary = await batchkit.arun(requests, output, base_url=base_url, progress="off")
    assert summary["status"] == "completed"
    assert summary["requests"] == {
        "total": 50,
        "succeeded": 50,
        "failed": 0,
        "pending": 0,
        "truncated": 0,
        "from_cache": 0,
    }
    assert sorted(line["batchkit"]["index"] for line in lines(output)) == list(range(50))
    assert orjson.loads((tmp_path / "results.summary.json").read_bytes()) == summary
    assert (tmp_path / "results.report.html").read_text().startswith("<!")
    assert not (tmp_path / "results.lock").exists()


async def test_run_may_be_called_while_an_event_loop_is_running(base_url, requests, tmp_path):
    def call() -> dict[str, Any]:
        return batchkit.run(requests, tmp_path / "out.jsonl", base_url=base_url, progress="off")

    # The simulator lives in this loop, so the call is made from a thread, in which a loop is running as well.
    async def inside() -> dict[str, Any]:
        return call()

    summary = await asyncio.to_thread(lambda: asyncio.run(inside()))
    assert summary["requests"]["succeeded"] == 50


async def test_a_second_run_sends_nothing_and_says_the_same(base_url, requests, tmp_path):
    output = tmp_path / "results.jsonl"
    first = await batchkit.arun(requests, output, base_url=base_url, progress="off")
    before = output.read_bytes()
    second = await batchkit.arun(requests, output, base_url=base_url, progress="off")
    assert output.read_bytes() == before
    assert second == first


async def test_report_rebuilds_the_summary_from_the_lines_alone(base_url, requests, tmp_path):
    output = tmp_path / "results.jsonl"
    first = await batchkit.arun(requests, output, base_url=base_url, progress="off")
    for name in ("results.checkpoint.json", "results.summary.json", "results.report.html"):
        (tmp_path / name).unlink()
    assert batchkit.report(output) == first
    assert orjson.loads((tmp_path / "results.summary.json").read_bytes()) == first


async def test_a_limit_that_is_found_stands_in_a_line_and_in_the_summary_that_files_alone_give(tmp_path):
    path, output = tmp_path / "in.jsonl", tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record(number)) + "\n" for number in range(140)))
    async with Simulator(SimulatorSettings(instant=True, rpm=2_400)) as simulator:
        summary = await batchkit.arun(path, output, base_url=simulator.base_url, progress="off")
    told = [limit for line in lines(output) for limit in line["batchkit"].get("limits", ())]
    assert told
    assert {limit["model"] for limit in told} == {"gpt-4o-mini"}
    assert told[-1]["requests_per_min"] == pytest.approx(2_400, rel=0.4)

    over_time = summary["over_time"]
    found = over_time["limits"]["gpt-4o-mini"]["requests_per_min"]
    assert found[0] is None
    assert found[-1] == told[-1]["requests_per_min"]
    assert sum(over_time["results"]) == 140
    assert sum(over_time["refused"]) == summary["attempts"]["by_reason"].get("rate_limited", 0)
    assert sum(over_time["tokens"]) == summary["usage"]["total_tokens"]
    assert "limit found: " in (tmp_path / "results.report.html").read_text()

    assert batchkit.status(output) == summary
    for name in ("results.checkpoint.json", "results.summary.json", "results.report.html"):
        (tmp_path / name).unlink()
    assert batchkit.report(output) == summary
    assert "limit found: " in (tmp_path / "results.report.html").read_text()


async def test_report_tells_groups_apart_by_what_the_requests_say_of_themselves(base_url, tmp_path):
    path, output = tmp_path / "in.jsonl", tmp_path / "results.jsonl"
    told = [{}, {"metadata": {"team": "blue"}}, {"metadata": {"team": "red"}, "stream": True}]
    bodies = [{**record(number)["body"], **told[number % 3]} for number in range(9)]
    path.write_text("".join(json.dumps({"body": body}) + "\n" for body in bodies))
    summary = await batchkit.arun(path, output, base_url=base_url, progress="off")
    found = batchkit.report(output, by="metadata.team")
    groups = found.pop("by")["metadata.team"]
    assert found == summary
    assert {team: (group["succeeded"], group["failed"]) for team, group in groups.items()} == {
        "blue": (3, 0),
        "red": (0, 3),
        "(none)": (3, 0),
    }
    assert orjson.loads((tmp_path / "results.summary.json").read_bytes()) == summary


@pytest.mark.parametrize(
    "by", ["team", "metadata", "metadata.", "", "model", "Metadata.team", 5, b"metadata.team", False]
)
async def test_a_group_that_cannot_be_meant_is_wrong_usage(base_url, requests, tmp_path, by):
    output = tmp_path / "results.jsonl"
    await batchkit.arun(requests, output, base_url=base_url, progress="off", limit=1)
    with pytest.raises(batchkit.UsageError, match=r"by is metadata\.KEY"):
        batchkit.report(output, by=by)


@pytest.mark.parametrize("name", ["results.summary.json", "results.errors.jsonl", "results.checkpoint.json"])
def test_an_input_that_has_the_name_of_a_file_beside_the_output_is_refused(
    name, base_url, requests, tmp_path
):
    source = requests.rename(tmp_path / name)
    before = source.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="are the same file"):
            batchkit.run(source, tmp_path / "results.jsonl", base_url=base_url, overwrite=overwrite)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_input_that_cannot_be_read_leaves_no_job_behind(base_url, requests, tmp_path, monkeypatch):
    opening = os.open

    def locked(path, *words, **flags):
        if str(path) == str(requests):
            raise PermissionError(EACCES, os.strerror(EACCES))
        return opening(path, *words, **flags)

    monkeypatch.setattr(os, "open", locked)
    with pytest.raises(UsageError, match=r"cannot read the input .*Permission denied"):
        batchkit.run(requests, tmp_path / "out" / "results.jsonl", base_url=base_url)
    assert not (tmp_path / "out").exists()


async def test_status_tells_what_the_files_tell(base_url, requests, tmp_path):
    output = tmp_path / "results.jsonl"
    first = await batchkit.arun(requests, output, base_url=base_url, progress="off", limit=20)
    assert first["requests"]["total"] == 20
    assert batchkit.status(output) == first


async def test_settings_fill_what_a_record_leaves_out_and_no_more(base_url, tmp_path):
    path = tmp_path / "in.jsonl"
    own = {"messages": [{"role": "user", "content": "x"}], "model": "gpt-4o", "max_tokens": 3}
    path.write_text(json.dumps(own) + "\n" + json.dumps({"messages": own["messages"]}) + "\n")
    await batchkit.arun(
        path, tmp_path / "o.jsonl", base_url=base_url, progress="off", model="filled", set={"max_tokens": 5}
    )
    answers = {line["batchkit"]["index"]: line["response"]["body"] for line in lines(tmp_path / "o.jsonl")}
    assert answers[0]["model"].startswith("gpt-4o")
    assert answers[1]["model"] == "filled"
    assert answers[0]["usage"]["completion_tokens"] <= 3
    assert answers[1]["usage"]["completion_tokens"] <= 5


async def test_a_refused_key_raises_with_the_summary_and_one_request_was_sent(requests, tmp_path):
    async with Simulator(SimulatorSettings(instant=True, refuse_key=True)) as simulator:
        with pytest.raises(batchkit.EndpointRefused) as caught:
            await batchkit.arun(requests, tmp_path / "o.jsonl", base_url=simulator.base_url, progress="off")
        assert simulator.stats.received == 1
    assert caught.value.summary is not None
    assert caught.value.summary["status"] == "stopped"
    assert caught.value.summary["stop_reason"] == "invalid_api_key"
    assert caught.value.summary["requests"]["pending"] == 50


async def test_a_quota_that_ends_in_mid_run_stops_it_and_a_top_up_goes_on(requests, tmp_path):
    output = tmp_path / "o.jsonl"
    async with Simulator(SimulatorSettings(instant=True, quota=20)) as simulator:
        with pytest.raises(batchkit.RunStopped):
            await batchkit.arun(requests, output, base_url=simulator.base_url, progress="off", concurrency=4)
        assert len(lines(output)) == 20
        assert (tmp_path / "o.errors.jsonl").read_bytes() == b""
    async with Simulator(SimulatorSettings(instant=True)) as simulator:
        summary = await batchkit.arun(
            requests, output, base_url=simulator.base_url, progress="off", force=True
        )
    assert summary["requests"]["succeeded"] == 50
    assert sorted(line["batchkit"]["index"] for line in lines(output)) == list(range(50))


async def test_max_failures_stops_the_run_and_nothing_is_lost(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("not json\n" * 100)
    async with Simulator(SimulatorSettings(instant=True)) as simulator:
        with pytest.raises(batchkit.TooManyFailures):
            await batchkit.arun(
                path, tmp_path / "o.jsonl", base_url=simulator.base_url, progress="off", max_failures=10
            )
    assert len(lines(tmp_path / "o.errors.jsonl")) == 10


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"max_attempts": "6"}, "max_attempts"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"base_url": "ftp://host"}, "base URL"),
        ({"base_url": "http://example.com/v1"}, "clear text"),
        ({}, "--simulate"),
    ],
)
async def test_settings_that_mean_nothing_are_refused_before_anything_is_written(
    settings, says, requests, tmp_path
):
    with pytest.raises(batchkit.UsageError, match=says):
        await batchkit.arun(requests, tmp_path / "o.jsonl", **{"progress": "off", **settings})
    assert not (tmp_path / "o.jsonl").exists()


async def test_an_empty_input_has_a_summary(base_url, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n")
    summary = await batchkit.arun(path, tmp_path / "o.jsonl", base_url=base_url, progress="off")
    assert summary["status"] == "completed"
    assert summary["requests"]["total"] == 0
    assert (tmp_path / "o.jsonl").read_bytes() == b""


async def test_stream_yields_an_outcome_for_each_record(base_url):
    outcomes = [
        outcome
        async for outcome in batchkit.stream([record(number) for number in range(300)], base_url=base_url)
    ]
    assert sorted(outcome.index for outcome in outcomes) == list(range(300))
    assert all(outcome.succeeded for outcome in outcomes)


async def test_stream_takes_generators_of_either_kind_and_tells_bad_records(base_url):
    def plain():
        yield record(0)
        yield {"nothing": "here"}

    async def later():
        for item in plain():
            yield item

    for source in (plain(), later()):
        outcomes = {outcome.index: outcome async for outcome in batchkit.stream(source, base_url=base_url)}
        assert outcomes[0].succeeded
        assert isinstance(outcomes[1].answer, batchkit.Failure)
        assert outcomes[1].answer.code == "invalid_request_line"


async def test_stream_reads_no_further_than_its_consumer_takes(base_url):
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 1
            yield record(read)

    seen = 0
    async for _ in batchkit.stream(endless(), base_url=base_url, concurrency=4):
        seen += 1
        await asyncio.sleep(0)
        if seen == 50:
            break
    assert read <= seen + 2 * 4 + 4 + 1


async def test_a_loop_over_a_stream_that_fails_leaves_no_task_behind(base_url):
    before = asyncio.all_tasks()

    async def fail_at_the_first():
        async for _ in batchkit.stream((record(number) for number in range(1000)), base_url=base_url):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_at_the_first()
    async with asyncio.timeout(30):
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0)


async def test_a_stream_within_aclosing_is_over_when_its_block_is(base_url):
    before = asyncio.all_tasks()
    endless = (record(number) for number in itertools.count())
    async with contextlib.aclosing(batchkit.stream(endless, base_url=base_url)) as outcomes:
        async for _ in outcomes:
            break
        assert asyncio.all_tasks() != before
    assert asyncio.all_tasks() == before


async def test_a_caller_that_is_cancelled_while_its_stream_closes_ends_there(base_url):
    outcomes = batchkit.stream((record(number) for number in itertools.count()), base_url=base_url)
    went_on = False

    async def call():
        nonlocal went_on
        async with contextlib.aclosing(outcomes):
            async for _ in outcomes:
                break
            asyncio.get_running_loop().call_soon(caller.cancel)
        went_on = True

    caller = asyncio.create_task(call())
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not went_on


async def test_a_stream_that_closes_under_repeated_cancellation_leaves_nothing_behind(base_url):
    def tasks():
        # The simulator works in this loop too, and may see later that nobody is there any more.
        return {task for task in asyncio.all_tasks() if "RequestHandler" not in repr(task.get_coro())}

    before = tasks()
    endless = (record(number) for number in itertools.count())
    with anyio.CancelScope() as scope:
        async with contextlib.aclosing(batchkit.stream(endless, base_url=base_url)) as outcomes:
            async for _ in outcomes:
                scope.cancel()
    assert scope.cancelled_caught
    assert tasks() == before


async def test_a_stream_raises_the_error_of_its_records_as_it_is(base_url):
    def broken():
        yield record(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async for _ in batchkit.stream(broken(), base_url=base_url):
            pass


@pytest.mark.parametrize(
    "wrong", [record(0), "requests.jsonl", None, 5], ids=lambda wrong: type(wrong).__name__
)
async def test_stream_wants_records_in_an_iterable(wrong, base_url):
    with pytest.raises(batchkit.UsageError, match=type(wrong).__name__):
        async for _ in batchkit.stream(wrong, base_url=base_url):
            pass


async def test_stream_raises_what_stopped_it(tmp_path):
    async with Simulator(SimulatorSettings(instant=True, refuse_key=True)) as simulator:
        with pytest.raises(batchkit.EndpointRefused):
            async for _ in batchkit.stream([record(0), record(1)], base_url=simulator.base_url):
                pass


async def outcomes_until(error, outcomes):
    """What came before `error` was raised."""
    came = []
    try:
        async for outcome in outcomes:
            came.append(outcome)  # noqa: PERF401 - what came before an error is kept
    except error:
        return came
    pytest.fail(f"{error.__name__} was not raised")


def records_that_fail(failing, others=0):
    yield from ({"nothing": "here"} for _ in range(failing))
    yield from (record(number) for number in range(others))


async def test_max_failures_ends_a_stream_behind_what_is_in_flight(base_url):
    came = await outcomes_until(
        batchkit.TooManyFailures,
        batchkit.stream(records_that_fail(100), base_url=base_url, max_failures=10),
    )
    assert [outcome.index for outcome in came] == list(range(10))
    records = [*(record(number) for number in range(20)), {"nothing": "here"}, *records_that_fail(0, 1000)]
    came = await outcomes_until(
        batchkit.TooManyFailures,
        batchkit.stream(records, base_url=base_url, max_failures=1, concurrency=4),
    )
    assert sorted(outcome.index for outcome in came) == list(range(len(came)))
    assert [outcome.index for outcome in came if not outcome.succeeded] == [20]


@pytest.mark.parametrize(
    ("records", "limit", "failures"),
    [
        (list(records_that_fail(40, 360)), None, 20),
        (list(records_that_fail(40, 360)), 200, 10),
        (records_that_fail(40, 360), None, 5),
    ],
    ids=["all", "the first of them", "nobody knows how many"],
)
async def test_a_share_of_failures_is_one_of_the_records_of_a_stream(records, limit, failures, base_url):
    came = await outcomes_until(
        batchkit.TooManyFailures,
        batchkit.stream(records, base_url=base_url, max_failures="5%", limit=limit, concurrency=1),
    )
    assert len(came) == failures


async def test_a_stream_whose_last_record_is_a_failure_too_many_has_nothing_left_to_stop(base_url):
    outcomes = batchkit.stream(list(records_that_fail(3)), base_url=base_url, max_failures=3)
    assert len([outcome async for outcome in outcomes]) == 3


@pytest.mark.parametrize("name", ["retry_failed", "overwrite", "allow_growth", "force", "rescan"])
async def test_a_stream_refuses_what_is_about_a_jobs_files(name, base_url):
    with pytest.raises(batchkit.UsageError, match=f"no files.*{name}"):
        async for _ in batchkit.stream([record(0)], base_url=base_url, **{name: True}):
            pass
    async for outcome in batchkit.stream([record(0)], base_url=base_url, job_id="mine", **{name: False}):
        assert outcome.succeeded


def first_step_of(call, path):
    if call is batchkit.arun:
        return batchkit.arun(path, path.parent / "o.jsonl", simulate=True)
    return anext(batchkit.stream([record(0)], simulate=True))


@pytest.mark.parametrize("call", [batchkit.arun, batchkit.stream], ids=lambda call: call.__name__)
def test_under_another_event_loop_than_asyncios_is_wrong_usage_at_once(call, requests):
    # As trio does it, which asks a coroutine for its next step with no loop of asyncio's around.
    with pytest.raises(batchkit.UsageError, match="asyncio"):
        first_step_of(call, requests).__await__().__next__()


@pytest.mark.parametrize("call", [batchkit.arun, batchkit.stream], ids=lambda call: call.__name__)
async def test_in_a_callback_of_asyncios_loop_is_wrong_usage_too(call, requests):
    # Where trio is a guest there.
    ended = asyncio.get_running_loop().create_future()

    def step():
        try:
            first_step_of(call, requests).__await__().__next__()
        except batchkit.UsageError as error:
            ended.set_result(error)

    asyncio.get_running_loop().call_soon(step)
    assert "asyncio" in str(await asyncio.wait_for(ended, 5))


@pytest.mark.parametrize("name", [".", "", "a" * 250 + ".jsonl", "nul\0.jsonl", "/dev/null"])
def test_a_name_that_is_no_output_is_refused_in_words(name):
    for look in (batchkit.status, batchkit.report, batchkit.repair):
        with pytest.raises(batchkit.UsageError):
            look(name)


async def test_a_file_that_stands_where_the_lock_would_be_is_left_alone(base_url, requests, tmp_path):
    other = tmp_path / "uv.lock"
    other.write_text("version = 1\n")
    with pytest.raises(batchkit.UsageError, match="in the way"):
        await batchkit.arun(requests, tmp_path / "uv.jsonl", base_url=base_url, progress="off")
    assert other.read_text() == "version = 1\n"


async def test_after_a_kill_the_summary_says_how_many_answers_may_have_been_billed_twice(
    base_url, requests, tmp_path
):
    output = tmp_path / "results.jsonl"
    first = await batchkit.arun(requests, output, base_url=base_url, progress="off", concurrency=7, limit=20)
    assert first["attempts"]["in_flight_at_kills"] == 0
    # A run that ended by itself says so in its checkpoint; one that was killed could not.
    (tmp_path / "results.checkpoint.json").unlink()
    second = await batchkit.arun(requests, output, base_url=base_url, progress="off", concurrency=9)
    assert second["attempts"]["in_flight_at_kills"] == 7
    bodies = [json.loads(line)["response"]["body"] for line in output.read_bytes().splitlines()]
    # The price of gpt-4o-mini, in dollars a million tokens.
    dearest = 0.15 * max(body["usage"]["prompt_tokens"] for body in bodies) + 0.60 * max(
        body["usage"]["completion_tokens"] for body in bodies
    )
    assert second["cost"]["in_flight_at_kills"] == pytest.approx(7 * dearest / 1e6)
    assert second["cost"]["in_flight_at_kills"] > second["cost"]["total"] / 50 * 7
    assert batchkit.report(output) == second
