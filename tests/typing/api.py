"""The public types as a user's program meets them: checked by mypy, never run."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Unpack, assert_type

import batchkit


def work_through_files() -> None:
    assert_type(batchkit.run("in.jsonl", Path("out.jsonl")), dict[str, Any])
    batchkit.run(
        Path("in.jsonl"),
        "out.jsonl",
        base_url="http://127.0.0.1:8000/v1",
        model="gpt-4o-mini",
        set={"temperature": 0},
        concurrency=512,
        rpm=500,
        tpm=90_000.5,
        timeout=30,
        fixed_timeout=True,
        max_attempts=3,
        max_cost=12.5,
        max_failures="5%",
        hedge="2%",
        limit=10,
        retry_failed=True,
        job_id="nightly",
        progress="log",
        portkey_config="pc-main",
        portkey_provider="openai",
        portkey_metadata={"team": "emea"},
        cache_namespace="shared",
        cache_force_refresh=True,
        allow_http=True,
        allow_growth=True,
        force=True,
        rescan=True,
    )
    batchkit.run("in.jsonl", "out.jsonl", concurency=512)  # type: ignore[call-arg]  # a wrong word is found
    batchkit.run("in.jsonl", "out.jsonl", progress="loud")  # type: ignore[arg-type]  # so is a wrong value
    batchkit.rnu("in.jsonl", "out.jsonl")  # type: ignore[attr-defined]  # and a wrong name
    assert_type(batchkit.status("out.jsonl"), dict[str, Any])
    assert_type(batchkit.report("out.jsonl"), dict[str, Any])
    assert_type(batchkit.report("out.jsonl", by="metadata.team"), dict[str, Any])
    assert_type(batchkit.validate("in.jsonl"), dict[str, Any])
    assert_type(batchkit.estimate(Path("in.jsonl"), pilot=20, rpm=500, prices="prices.toml"), dict[str, Any])
    batchkit.estimate("in.jsonl", prices={"mine": {"prompt": 0.1, "completion": 0.4}})
    batchkit.estimate("in.jsonl", pilot="20")  # type: ignore[arg-type]  # a number of requests


def with_the_same_settings(*outputs: str, **settings: Unpack[batchkit.RunSettings]) -> None:
    for output in outputs:
        batchkit.run("in.jsonl", output, **settings)


def with_settings_from_elsewhere() -> None:
    settings: batchkit.RunSettings = {"simulate": True, "max_failures": "5%"}
    with_the_same_settings("one.jsonl", "other.jsonl", **settings)
    settings["rmp"] = 500  # type: ignore[typeddict-unknown-key]  # a wrong word is found here too


async def in_a_loop_of_ones_own() -> None:
    assert_type(await batchkit.arun("in.jsonl", "out.jsonl", simulate=True), dict[str, Any])


def records() -> Iterator[dict[str, Any]]:
    yield {"messages": []}


async def records_as_they_come() -> AsyncIterator[dict[str, Any]]:
    yield {"messages": []}


async def stream() -> None:
    async for outcome in batchkit.stream(records_as_they_come(), simulate=True):
        assert_type(outcome, batchkit.Outcome)
    async for outcome in batchkit.stream(records(), simulate=True):
        match outcome.answer:
            case batchkit.Reply(body=body, usage=usage):
                assert_type(body, bytes)
                assert_type(usage, batchkit.Usage | None)
            case batchkit.Failure(kind=kind, code=code):
                assert_type(kind, batchkit.FailureKind)
                assert_type(code, str)
    async with aclosing(batchkit.stream([], simulate=True)) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, batchkit.Outcome)


def errors() -> None:
    try:
        batchkit.run("in.jsonl", "out.jsonl")
    except batchkit.RunStopped as stopped:
        assert_type(stopped.code, str)
    except batchkit.Interrupted as interrupted:
        assert_type(interrupted.signal, int)
    except batchkit.BatchkitError as error:
        assert_type(error.exit_code, int)


async def simulate() -> None:
    settings = batchkit.SimulatorSettings(instant=True, faults={"500": 0.1})
    async with batchkit.Simulator(settings) as simulator:
        assert_type(simulator.base_url, str)
        os.environ["OPENAI_BASE_URL"] = simulator.base_url
