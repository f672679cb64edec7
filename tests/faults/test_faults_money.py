"""Fault 48, a job that costs more than it may: each way to spend is tried against a server that bills whatever it worked on.

The server bills at list prices, always for the longest answer that the body allows, and from the moment it has read a
request: for answers that nobody waits for too, and for those it then withholds.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from decimal import Decimal
from errno import ENOSPC
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web
from forked_command import ForkedCommand, Forker

import batchkit
from batchkit.formats.summary_text import render
from batchkit.job import JobRun
from batchkit.rules.tokens import count_prompt
from batchkit.testing import Crash, FaultyDisk, ManualClock, ScriptedEndpoint

MODEL = "gpt-4o-mini"
PER_PROMPT_TOKEN, PER_COMPLETION_TOKEN = Decimal("0.15e-6"), Decimal("0.60e-6")
"""What it costs, in US dollars."""
MOST_TOKENS = 40
OFTEN = 30
"""As many runs as a job here needs at most, killed and given more."""


class Biller:
    """An endpoint that adds up what it is owed. `moods` are what it does to one request after the other, in turn.

    good: answers. late: takes its time. lost: works, and never answers. broken: works, and answers 500. silent: does not say what it took.
    renamed: calls its model by a name without a price. thoughtful: tells of its thoughts in the total alone. denied: works, and
    has a guardrail deny the answer. busy: refuses with 429, before any work. refused: 400, before any work.
    """

    def __init__(self, *moods: str) -> None:
        self.moods = moods or ("good",)
        self.owed = Decimal(0)
        self.received = 0
        self.answered = 0
        self.base_url = ""

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.01
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        body = json.loads(await request.read())
        mood = self.moods[self.received % len(self.moods)]
        self.received += 1
        if mood == "busy":
            error = {"message": "slowly", "code": "rate_limit_exceeded"}
            return web.json_response({"error": error}, status=429, headers={"retry-after-ms": "10"})
        if mood == "refused":
            return web.json_response({"error": {"message": "no", "code": "invalid_value"}}, status=400)
        prompt, choices = count_prompt(body).tokens, body.get("n", 1)
        completion = choices * body["max_tokens"]
        self.owed += prompt * PER_PROMPT_TOKEN + completion * PER_COMPLETION_TOKEN
        if mood == "late":
            await asyncio.sleep(0.05)
        if mood == "lost":
            await asyncio.get_running_loop().create_future()
        if mood == "broken":
            return web.json_response({"error": {"message": "oh no", "type": "server_error"}}, status=500)
        if mood == "denied":
            results = {"before_request_hooks": [], "after_request_hooks": [{"verdict": False, "deny": True}]}
            return web.json_response(
                {"error": {"message": "no", "type": "hooks_failed"}, "hook_results": results}, status=446
            )
        self.answered += 1
        message = {"role": "assistant", "content": "Yes."}
        answer = {
            "id": f"chatcmpl-{self.answered}",
            "object": "chat.completion",
            "model": "a-name-of-its-own" if mood == "renamed" else f"{MODEL}-2024-07-18",
            "choices": [
                {"index": at, "message": message, "finish_reason": "length"} for at in range(choices)
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": choices if mood == "thoughtful" else completion,
                "total_tokens": prompt + completion,
            },
        }
        if mood == "silent":
            del answer["usage"]
        return web.json_response(answer)


def record(number: int, **fields: Any) -> dict[str, Any]:
    # Prompts of all lengths, short ones among them: each tells less than its bytes are.
    messages = [{"role": "user", "content": f"{number}: " + "What is it? " * (number * 7 % 23)}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 1 + number * 11 % MOST_TOKENS, **fields}
    return {"custom_id": f"r{number}", "body": body}


def dearest(body: dict[str, Any]) -> Decimal:
    """What one attempt can cost."""
    answers = body.get("n", 1) * body["max_tokens"]
    return count_prompt(body).tokens * PER_PROMPT_TOKEN + answers * PER_COMPLETION_TOKEN


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


async def finish(
    biller: Biller, path: Path, output: Path, cap: Decimal, **settings: Any
) -> tuple[dict[str, Any], int]:
    """Run the job with caps that double until it is done. The summary, and how many runs it took."""
    for runs in range(1, OFTEN):
        try:
            return await batchkit.arun(
                path, output, base_url=biller.base_url, progress="off", max_cost=cap, **settings
            ), runs
        except batchkit.MaxCostReached as error:
            summary = error.summary
        assert biller.owed <= cap
        assert summary["stop_reason"] == "max_cost"
        assert summary["cost"]["max_cost"] == float(cap)
        cap *= 2
    raise AssertionError("it is never done")


@pytest.mark.parametrize("concurrency", [1, 5, 64])
@pytest.mark.parametrize("cap", ["0.00002", "0.0003", "0.0011"])
async def test_fault_48_max_cost_is_never_passed_and_is_used_up_to_the_last_request_that_fits(
    cap, concurrency, tmp_path
):
    records = [record(number) for number in range(100)]
    path = write(tmp_path / "in.jsonl", *records)
    async with Biller("good", "late") as biller:
        with pytest.raises(batchkit.MaxCostReached) as stopped:
            await batchkit.arun(
                path,
                tmp_path / "out.jsonl",
                base_url=biller.base_url,
                progress="off",
                max_cost=cap,
                concurrency=concurrency,
            )
        most = max(dearest(each["body"]) for each in records)
        assert Decimal(cap) - most < biller.owed <= Decimal(cap)
    assert stopped.value.exit_code == 3
    summary = stopped.value.summary
    assert summary is not None
    # What is told is what was billed, to the last digit.
    assert summary["cost"]["total"] == float(biller.owed)
    assert "maybe_cost" not in summary["cost"]
    text = render(summary)
    assert "never more than $" in text
    assert "Stopped before --max-cost could be passed" in text
    for words in (f"--max-cost ${Decimal(cap)}", " spent", "$0 reserved", " left", "larger --max-cost"):
        assert words in str(stopped.value)


@pytest.mark.parametrize("mood", ["denied", "thoughtful"])
async def test_fault_48_max_cost_is_never_passed_by_answers_that_were_worked_for_and_do_not_look_so(
    mood, tmp_path
):
    path = write(tmp_path / "in.jsonl", *(record(number) for number in range(24)))
    async with Biller("good", mood) as biller:
        summary, _ = await finish(biller, path, tmp_path / "out.jsonl", Decimal("0.0001"), concurrency=2)
    cost = summary["cost"]
    assert cost["total"] < float(biller.owed) <= cost["total"] + cost["maybe_cost"]


MOODS = ("good", "broken", "busy", "late", "silent", "good", "lost", "renamed", "refused", "late", "good")


@pytest.mark.parametrize("concurrency", [1, 7, 64])
async def test_fault_48_max_cost_is_never_passed_by_retries_failures_timeouts_or_answers_that_do_not_tell(
    concurrency, tmp_path
):
    path = write(tmp_path / "in.jsonl", *(record(number, n=1 + number % 3) for number in range(33)))
    settings = {"concurrency": concurrency, "timeout": 0.3, "max_attempts": 2}
    async with Biller(*MOODS) as biller:
        summary, runs = await finish(biller, path, tmp_path / "out.jsonl", Decimal("0.0001"), **settings)
    assert runs > 2
    assert summary["requests"]["pending"] == 0
    assert summary["cost"]["known_total"] <= float(biller.owed)
    assert float(biller.owed) <= summary["cost"]["known_total"] + summary["cost"]["maybe_cost"]


def start(command, biller, path, output, cap, *words):
    return command.start(
        "run",
        path,
        "-o",
        output,
        "--base-url",
        biller.base_url,
        "--max-cost",
        cap,
        "--progress",
        "off",
        *words,
    )


@pytest.fixture
def command(tmp_path: Path, forker: Forker) -> Iterator[ForkedCommand]:
    made = ForkedCommand(tmp_path, forker)
    yield made
    made.close()


@pytest.fixture
def bill(run_elsewhere) -> Callable[..., Any]:
    """Starts billers."""
    with ExitStack() as running:
        yield lambda *moods: running.enter_context(run_elsewhere(Biller(*moods)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_fault_48_max_cost_is_never_passed_over_runs_that_are_ended_in_the_middle(
    number, bill, command, files, until, tmp_path
):
    biller = bill("late", "silent", "late", "broken")
    path = write(tmp_path / "in.jsonl", *(record(each) for each in range(60)))
    cap = Decimal("0.0009")
    ended = stopped = 0
    for _ in range(OFTEN):
        before = biller.received
        run = start(command, biller, path, files.results_path, cap, "--concurrency", 16, "--max-attempts", 2)
        if ended < 3:
            until(lambda run=run, before=before: run.poll() is not None or biller.received >= before + 14)
            run.send_signal(number)
            ended += 1
        run.communicate()
        assert biller.owed <= cap
        if run.returncode == 3:
            stopped += 1
            cap *= 2
        elif run.returncode in (0, 1):
            break
    else:
        raise AssertionError("it is never done")
    assert ended == 3
    assert stopped
    assert files.indexes == list(range(60))
    cost = files.summary["cost"]
    told = cost["total"] if cost["total"] is not None else cost["known_total"]
    assert told <= float(biller.owed) <= told + cost["maybe_cost"]
    assert cost["max_cost"] == float(cap)


def test_fault_48_a_kill_before_the_first_line_is_paid_for_too(bill, command, files, until, tmp_path):
    """No line tells of the attempt, nor that there was a run at all."""
    biller, cap = bill("lost"), Decimal("0.00004")
    path = write(tmp_path / "in.jsonl", *(record(each) for each in range(9)))
    killed = 0
    while killed < OFTEN:
        before = biller.received
        run = start(command, biller, path, files.results_path, cap)
        until(lambda run=run, before=before: run.poll() is not None or biller.received > before)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert biller.owed <= cap
        if run.returncode == 3:
            break
        killed += 1
    assert 1 < killed < OFTEN
    biller.moods = ("good",)
    summary = command(
        "run",
        path,
        "-o",
        files.results_path,
        "--base-url",
        biller.base_url,
        "--max-cost",
        1,
        "--json",
        "--progress",
        "off",
    ).json
    assert summary["requests"]["succeeded"] == 9
    assert float(biller.owed) <= summary["cost"]["total"] + summary["cost"]["maybe_cost"]


async def test_fault_48_a_run_goes_on_with_a_larger_cap_and_with_the_same_one_sends_nothing(tmp_path):
    path, output = (
        write(tmp_path / "in.jsonl", *(record(number) for number in range(30))),
        tmp_path / "out.jsonl",
    )
    async with Biller() as biller:
        settings = {"base_url": biller.base_url, "progress": "off"}
        with pytest.raises(batchkit.MaxCostReached):
            await batchkit.arun(path, output, max_cost="0.0001", **settings)
        sent = biller.received
        for cap in ("0.0001", "0.00005"):
            with pytest.raises(batchkit.MaxCostReached):
                await batchkit.arun(path, output, max_cost=cap, **settings)
        assert biller.received == sent
        summary = await batchkit.arun(path, output, max_cost=1, **settings)
        assert summary["requests"]["succeeded"] == biller.received == 30
        # One that is done has nothing left to pay for, whatever the cap.
        assert (await batchkit.arun(path, output, max_cost="0.0001", **settings))["status"] == "completed"


async def test_fault_48_a_job_that_is_begun_anew_has_all_of_its_cap(tmp_path):
    path = write(tmp_path / "in.jsonl", *(record(number) for number in range(30)))
    output = tmp_path / "out.jsonl"
    async with Biller() as biller:
        settings = {"base_url": biller.base_url, "progress": "off", "max_cost": "0.0001"}
        with pytest.raises(batchkit.MaxCostReached):
            await batchkit.arun(path, output, **settings)
        once = biller.owed
        with pytest.raises(batchkit.MaxCostReached):
            await batchkit.arun(path, output, overwrite=True, **settings)
        assert biller.owed == 2 * once
    assert len([*tmp_path.glob("out.spending.json.old-*")]) == 1


async def test_fault_48_prices_of_ones_own_count_and_a_model_that_has_them_is_sent(tmp_path):
    path = write(tmp_path / "in.jsonl", *(record(number, model="mine") for number in range(30)))
    # Ten times what the server bills, and the name that it answers by is not the one that was asked for.
    prices = {name: {"prompt": 1.5, "completion": 6} for name in ("mine", f"{MODEL}-2024-07-18")}
    async with Biller() as biller:
        settings = {"base_url": biller.base_url, "progress": "off", "prices": prices}
        with pytest.raises(batchkit.MaxCostReached) as stopped:
            await batchkit.arun(path, tmp_path / "out.jsonl", max_cost="0.002", **settings)
        assert stopped.value.summary["cost"]["total"] == float(biller.owed * 10)
        assert Decimal("0.00015") < biller.owed <= Decimal("0.0002")


async def test_fault_48_failures_that_are_asked_again_are_paid_out_of_the_same_cap(tmp_path):
    path = write(tmp_path / "in.jsonl", *(record(number) for number in range(20)))
    output, cap, runs = tmp_path / "out.jsonl", Decimal("0.002"), 0
    async with Biller("broken") as biller:
        settings = {"base_url": biller.base_url, "progress": "off", "max_attempts": 1}
        try:
            while runs < OFTEN:
                await batchkit.arun(path, output, max_cost=cap, retry_failed=runs > 0, **settings)
                runs += 1
                assert biller.received == 20 * runs
        except batchkit.MaxCostReached:
            assert biller.received < 20 * (runs + 1)
        assert 2 <= runs < OFTEN
        assert cap / 4 < biller.owed <= cap
        biller.moods = ("good",)
        summary = await batchkit.arun(path, output, max_cost=1, retry_failed=True, **settings)
    assert summary["requests"]["succeeded"] == 20
    assert float(biller.owed) <= summary["cost"]["total"] + summary["cost"]["maybe_cost"] <= 1


@pytest.mark.parametrize("gone", ["checkpoint", "spending", "both"])
def test_fault_48_without_the_files_beside_the_output_max_cost_holds_all_the_same(
    gone, bill, command, files, until, tmp_path
):
    """Without the checkpoint nothing changes; without the other all of the cap counts as spent, and a larger one goes on."""
    biller = bill("late", "silent", "late")
    path = write(tmp_path / "in.jsonl", *(record(number) for number in range(60)))
    cap = Decimal("0.001")
    run = start(command, biller, path, files.results_path, cap, "--concurrency", 8)
    until(lambda: files.count() > 5, run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    sent = biller.received
    if gone != "spending":
        files.checkpoint_path.unlink(missing_ok=True)
    if gone != "checkpoint":
        files.results_path.with_name("results.spending.json").unlink()
    words = ("run", path, "-o", files.results_path, "--base-url", biller.base_url, "--progress", "log")
    ran = command(*words, "--max-cost", cap, code=None)
    assert biller.owed <= cap
    if gone == "checkpoint":
        assert biller.received > sent
    else:
        assert ran.code == 3
        assert biller.received == sent
        assert "counts as spent" in ran.err
    command(*words, "--max-cost", 1)
    assert files.indexes == list(range(60))
    assert float(biller.owed) <= files.summary["cost"]["total"] + files.summary["cost"]["maybe_cost"]


def test_fault_48_a_broken_file_of_what_was_spent_is_refused_by_name(bill, command, files, tmp_path):
    biller = bill()
    path = write(tmp_path / "in.jsonl", *(record(number) for number in range(9)))
    words = ("run", path, "-o", files.results_path, "--base-url", biller.base_url, "--progress", "off")
    command(*words, "--max-cost", "0.00005", code=3)
    sent = biller.received
    files.results_path.with_name("results.spending.json").write_bytes(b'{"version":1,"authorised":"0"}')
    ran = command(*words, "--max-cost", 1, code=4)
    assert "results.spending.json cannot be used" in ran.err
    assert biller.received == sent


@pytest.mark.parametrize("at_once_bytes", [0, 1 << 20])
async def test_fault_48_what_runs_without_a_cap_have_spent_counts(at_once_bytes, tmp_path, monkeypatch):
    """Also of an output that is too large to be read at once and has no checkpoint: then that comes first."""
    monkeypatch.setitem(JobRun.__init__.__kwdefaults__, "at_once_bytes", at_once_bytes)
    path = write(tmp_path / "in.jsonl", *(record(number) for number in range(40)))
    output = tmp_path / "out.jsonl"
    async with Biller("good", "silent") as biller:
        settings = {"base_url": biller.base_url, "progress": "off", "concurrency": 2}
        await batchkit.arun(path, output, limit=20, **settings)
        spent = biller.owed
        (tmp_path / "out.checkpoint.json").unlink()
        with pytest.raises(batchkit.MaxCostReached):
            await batchkit.arun(path, output, max_cost=spent / 2, **settings)
        assert biller.owed == spent
        # Each of those who did not tell counts as the dearest, and two may have been on their way.
        cap = spent * 2
        with pytest.raises(batchkit.MaxCostReached):
            await batchkit.arun(path, output, max_cost=cap, **settings)
        assert spent < biller.owed <= cap
        # And the other way round: what a run with a cap has spent is no less for one without.
        summary = await batchkit.arun(path, output, **settings)
    assert summary["requests"]["succeeded"] == 40
    assert "max_cost" not in summary["cost"]


UNBOUNDED = [
    ({"model": "no-such-model"}, "'no-such-model', which has no known price"),
    ({"web_search_options": {}, "n": "3"}, "web search"),
    ({"model": "deepseek-ai/a-name-of-its-own", "max_tokens": None}, "no known price"),
]


@pytest.mark.parametrize(("fields", "why"), UNBOUNDED)
def test_fault_48_a_request_whose_cost_has_no_bound_is_refused_before_the_first_one_is_sent(
    fields, why, bill, command, files, tmp_path
):
    biller = bill()
    path = write(tmp_path / "in.jsonl", record(0), record(1), record(2, **fields))
    words = ("run", path, "-o", files.results_path, "--base-url", biller.base_url, "--progress", "off")
    ran = command(*words, "--max-cost", 1, code=2)
    assert why in ran.err
    assert "line 3" in ran.err
    assert biller.received == 0
    # Within the limit there is none.
    command(*words, "--max-cost", 1, "--limit", 2)
    assert biller.received == 2
    command(*words, "--max-cost", 1, code=2)
    assert biller.received == 2


def test_fault_48_a_line_from_stdin_whose_cost_has_no_bound_stops_the_run_before_it_is_sent(
    bill, command, files
):
    biller = bill()
    lines = "".join(
        json.dumps(each) + "\n" for each in (record(0), record(1, model="no-such-model"), record(2))
    )
    ran = command(
        "run",
        "-",
        "-o",
        files.results_path,
        "--base-url",
        biller.base_url,
        "--max-cost",
        1,
        "--concurrency",
        1,
        "--progress",
        "off",
        code=3,
        stdin=lines.encode(),
    )
    assert "request 1 names the model 'no-such-model'" in ran.err
    assert biller.received == 1
    assert files.indexes == [0]


async def test_fault_48_lines_that_are_no_requests_fail_by_themselves_as_ever(tmp_path):
    path = tmp_path / "in.jsonl"
    numbered = json.dumps({**record(2, model="no-such-model"), "custom_id": 5})
    path.write_text(f"not json\n{json.dumps(record(1))}\n[]\n{numbered}\n")
    async with Biller() as biller:
        summary = await batchkit.arun(
            path, tmp_path / "out.jsonl", base_url=biller.base_url, progress="off", max_cost=0.5
        )
    assert (summary["requests"]["succeeded"], summary["requests"]["failed"]) == (1, 3)
    assert summary["cost"]["max_cost"] == 0.5


async def ends(outcomes):
    return [outcome async for outcome in outcomes]


async def test_fault_48_a_stream_has_a_cap_of_its_own():
    async with Biller("good", "late", "broken") as biller:
        bodies = (record(number)["body"] for number in range(200))
        with pytest.raises(batchkit.MaxCostReached):
            await ends(batchkit.stream(bodies, base_url=biller.base_url, max_cost="0.0007"))
        assert 10 < biller.answered < 200
        assert Decimal("0.0005") < biller.owed <= Decimal("0.0007")
        unknown = [record(0, model="no-such-model")]
        with pytest.raises(batchkit.MaxCostReached, match="no-such-model"):
            await ends(batchkit.stream(unknown, base_url=biller.base_url, max_cost=1))


@pytest.mark.parametrize("step", range(3, 30, 2))
async def test_fault_48_a_kill_before_anything_was_sent_costs_nothing(step, make_job):
    job = make_job(3)

    def kill(_what, number):
        if number >= step and not endpoint.attempts:
            raise Crash

    clock = ManualClock()
    endpoint = ScriptedEndpoint(clock=clock, latency_s=0.1)
    with suppress(Crash, BaseExceptionGroup):
        await job.run(FaultyDisk(kill), clock=clock, endpoint=endpoint, max_cost=1)
    if endpoint.attempts:
        return
    summary = await job.run(clock=ManualClock(clock.time() + 10), max_cost=1)
    assert summary["requests"]["succeeded"] == 3
    # What was reserved when it was killed counts, and no more.
    assert summary["cost"].get("maybe_cost", 0.0) < 0.1


async def test_fault_48_a_full_disk_holds_back_what_is_not_written_down(make_job):
    """What may be spent finds no room: no attempt starts until it does."""
    job, clock = make_job(20), ManualClock()
    room = False

    def full(what, _number):
        if what == "open" and not room and any("spending" in str(each) for each in opening):
            raise OSError(ENOSPC, "No space left on device")

    opening: list[Path] = []

    class Disk(FaultyDisk):
        def open(self, path, flags):
            opening[:] = [path]
            return super().open(path, flags)

    endpoint = ScriptedEndpoint(clock=clock, latency_s=0.1)

    async def make_room():
        nonlocal room
        await clock.sleep(30)
        assert not endpoint.attempts
        room = True

    _, summary = await asyncio.gather(
        make_room(), job.run(Disk(full), clock=clock, endpoint=endpoint, max_cost=1)
    )
    assert summary["requests"]["succeeded"] == 20
    assert any("No attempt starts until there is room" in str(each) for each in job.told)
