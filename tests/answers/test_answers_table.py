"""Every answer of the table is really sent by a server on loopback, and what stands in the output for it is read there."""

from __future__ import annotations

import json

import orjson
import pytest
from answer_rows import (
    BODY,
    GOOD,
    HTML,
    LARGE_HEADERS,
    LOST,
    OTHERS,
    ROWS,
    USELESS,
    Failed,
    Result,
    Row,
    Stopped,
    error,
)
from bare_delivery import bare_delivery
from scripted_server import ScriptedServer, http

import batchkit
from batchkit import job
from batchkit.errors import RunStopped
from batchkit.formats.headers import endpoint_address
from batchkit.formats.requests import parse_record
from batchkit.formats.results import OutputLine, encode
from batchkit.records import Request
from batchkit.testing import ManualClock

ONE_TOO_MANY = http(400, error(code="one_attempt_too_many"))
RECORD = {"messages": [{"role": "user", "content": "Hello"}], "model": "m-1"}


class Answered:
    """What a job says after a run: the lines of its two files by index, the summary, and why it stopped."""

    def __init__(self, folder, results, errors, summary=None, stopped=None):
        self.folder = folder
        self.results = {line["batchkit"]["index"]: line for line in results}
        self.errors = {line["batchkit"]["index"]: line for line in errors}
        self.summary = summary
        self.stopped = stopped


def lines_of(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def run(folder, base_url, requests, **settings):
    """A whole run, into files."""
    output = folder / "out.jsonl"
    (folder / "in.jsonl").write_text((json.dumps(RECORD) + "\n") * requests)
    settings = {"base_url": base_url, "concurrency": 1, "progress": "off", **settings}
    stopped = None
    try:
        await batchkit.arun(folder / "in.jsonl", output, **settings)
    except RunStopped as stop:
        stopped = stop.code
    summary = orjson.loads((folder / "out.summary.json").read_bytes())
    errors = lines_of(folder / "out.errors.jsonl")
    return Answered(folder, lines_of(output), errors, summary, stopped)


async def deliver(folder, base_url, requests, *, timeout=10.0):
    """The same requests without a job around them, on a clock that nobody waits for."""
    clock = ManualClock()
    address = endpoint_address(base_url, version="0", timeout=timeout)
    lines = []
    async with job.open_endpoint(address, timeout=timeout) as endpoint:
        delivery = bare_delivery(endpoint, clock, lambda _: None)
        for index in range(requests):
            request = parse_record(RECORD, index, {})
            assert isinstance(request, Request)
            outcome = await delivery.deliver(request)
            if outcome is not None:
                lines.append(orjson.loads(encode(OutputLine(outcome, "job"))))
    results = [line for line in lines if line["error"] is None]
    return Answered(folder, results, [line for line in lines if line["error"] is not None])


@pytest.fixture
def hurried(monkeypatch):
    """No wait before a retry: full jitter that always draws 0."""
    monkeypatch.setattr("batchkit.parts.random.random", lambda: 0.0)


def each_of(rows):
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.says)


@pytest.mark.usefixtures("hurried")
@each_of(OTHERS)
async def test_what_follows_an_answer(row, tmp_path):
    await send_and_compare(row, tmp_path)


@pytest.mark.usefixtures("hurried")
@each_of(LOST)
async def test_fault_27_what_follows_a_reset_a_cut_body_a_cut_chunk_or_silence(row, tmp_path):
    await send_and_compare(row, tmp_path)


@pytest.mark.usefixtures("hurried")
@each_of(USELESS)
async def test_fault_28_what_follows_a_malformed_200(row, tmp_path):
    await send_and_compare(row, tmp_path)


@pytest.mark.usefixtures("hurried")
@each_of(LARGE_HEADERS)
async def test_fault_36_what_follows_a_header_of_64_kb(row, tmp_path):
    await send_and_compare(row, tmp_path)


async def send_and_compare(row: Row, tmp_path):
    first = () if row.proven_by is None else (row.proven_by,)
    server = ScriptedServer(*first, *row.sends, after=ONE_TOO_MANY)
    async with server.listening() as url:
        work = deliver if row.waits else run
        answered = await work(tmp_path, url, len(first) + 1, timeout=row.timeout)
    index = len(first)
    assert server.received == len(first) + len(row.sends)
    match row.stands:
        case Stopped(reason):
            assert answered.stopped == reason
            assert index not in answered.results | answered.errors
            assert answered.summary["requests"]["pending"] == 1
            return
        case Result():
            line = answered.results[index]
            assert line["response"]["status_code"] == row.stands.status
            assert line["response"]["body"] == orjson.loads(row.stands.body)
            assert tuple(line["batchkit"].get("flags", ())) == row.stands.flags
            if not row.waits:
                assert row.stands.body in (tmp_path / "out.jsonl").read_bytes()
                assert answered.summary["usage"]["unknown"] == row.stands.unknown_usage
        case Failed():
            line = answered.errors[index]
            assert line["error"]["code"] == row.stands.code
            assert line["error"]["message"]
            assert line["batchkit"]["reason"] == row.stands.reason
            if row.stands.status is None:
                assert line["response"] is None
            else:
                assert line["response"]["status_code"] == row.stands.status
                kept = row.stands.body
                assert line["response"]["body"] == (None if kept is None else orjson.loads(kept))
    assert answered.stopped is None
    assert line["batchkit"]["attempts"] == len(row.sends)
    assert line["batchkit"].get("retries", {}) == row.retries
    assert line["batchkit"].get("maybe_billed", 0) == row.maybe_billed
    assert line["batchkit"].get("gateway_retries", 0) == row.gateway_retries


def test_each_row_has_a_sentence_of_its_own():
    assert len({row.says for row in ROWS}) == len(ROWS)


# --- what several requests say together ----------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
async def test_the_same_refusal_for_each_of_the_first_twenty_ends_the_run(tmp_path):
    refused = http(400, error(code="unsupported_parameter"))
    server = ScriptedServer(after=refused)
    async with server.listening() as url:
        answered = await run(tmp_path, url, 30)
    assert answered.stopped == "unsupported_parameter"
    assert server.received == 20
    assert (len(answered.errors), answered.summary["requests"]["pending"]) == (19, 11)


@pytest.mark.usefixtures("hurried")
async def test_twenty_pages_in_a_row_end_the_run_also_after_a_success(tmp_path):
    server = ScriptedServer(GOOD, after=http(200, HTML))
    async with server.listening() as url:
        answered = await run(tmp_path, url, 30)
    assert answered.stopped == "not_an_api"
    assert server.received == 1 + 20


@pytest.mark.usefixtures("hurried")
async def test_a_missing_model_of_the_runs_own_ends_it(tmp_path):
    server = ScriptedServer(after=http(404, error(code="model_not_found", message="no such model")))
    async with server.listening() as url:
        answered = await run(tmp_path, url, 2, model="m-1")
    assert answered.stopped == "model_not_found"
    assert (server.received, answered.errors) == (1, {})


@pytest.mark.usefixtures("hurried")
async def test_a_record_that_names_a_model_nobody_has_fails_alone_until_another_names_it(tmp_path):
    missing = http(404, error(code="model_not_found", message="no such model"))
    server = ScriptedServer(missing, after=GOOD)
    async with server.listening() as url:
        answered = await run(tmp_path, url, 2)
    assert answered.stopped == "model_not_found"
    assert server.received == 1
    assert answered.errors[0]["error"]["code"] == "model_not_found"


async def test_a_name_nobody_knows_ends_the_run_before_anything_is_sent(tmp_path):
    answered = await run(tmp_path, "https://nobody.invalid/v1", 2)
    assert answered.stopped == "host_unknown"
    assert answered.summary["requests"]["pending"] == 2


# --- the wait a server asks for ------------------------------------------------------------------------------------

ASKED = [
    (["Retry-After: 7"], 7.0),
    (["Retry-After: 0.25"], 0.25),
    (["Retry-After: 9", "Retry-After-Ms: 1500"], 1.5),
    (["Retry-After-Ms: soon", "Retry-After: 9"], 9.0),
    (["Retry-After: 5, 5"], 5.0),
    (["Retry-After: 99999999999999999999"], 300.0),
    (["Retry-After: inf"], 300.0),
    (["Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"], 300.0),
]
NOT_ASKED = [
    ["Retry-After: nan"],
    ["Retry-After: -3"],
    ["Retry-After: 0"],
    ["Retry-After: 6m0s"],
    ["Retry-After: soon"],
    ["Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"],
    ["x-ratelimit-reset-requests: 6m0s"],
    [],
]


async def waited(folder, status, headers):
    server = ScriptedServer(http(status, b"", *headers), after=GOOD)
    async with server.listening() as url:
        answered = await deliver(folder, url, 1)
    line = answered.results[0]
    assert line["batchkit"]["attempts"] == 2
    assert line["response"]["body"] == orjson.loads(BODY)
    return line["batchkit"]["finished_at"] - ManualClock().time()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("headers", "seconds"), ASKED, ids=str)
async def test_the_wait_a_server_asks_for_is_kept_within_bounds(headers, seconds, status, tmp_path):
    # A tenth more at most, so that all who were refused together do not return together.
    assert seconds <= await waited(tmp_path, status, headers) <= 1.1 * seconds + 1.01


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", NOT_ASKED, ids=str)
async def test_what_makes_no_sense_as_a_wait_is_none(headers, status, tmp_path):
    assert await waited(tmp_path, status, headers) <= 2.0
