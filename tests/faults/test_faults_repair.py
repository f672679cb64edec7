"""Repair: damage is moved aside byte for byte, whatever can be read stays, and the next run asks for what is gone."""

import json

import anyio
import pytest
from msgspec.structs import replace

import batchkit
from batchkit import mending
from batchkit.audit import Audit
from batchkit.engine.stop import Stop
from batchkit.errors import Interrupted, JobDamaged, JobLocked, JobMismatch
from batchkit.formats.results import decode, encode
from batchkit.job import JobRun
from batchkit.mending import repair
from batchkit.outputs import read_output
from batchkit.store import Store
from batchkit.testing import ScriptedEndpoint, failure, reply


@pytest.fixture
async def done(make_job):
    """A finished job of four requests whose checkpoint is gone, so that each byte of it is looked at."""
    job = make_job(4)
    await job.run()
    forget(job)
    return job


def forget(job):
    job.output.with_name("results.checkpoint.json").unlink(missing_ok=True)


def indexes(job):
    return sorted(each.outcome.index for each in read_output(job.output))


def lines(job):
    """Index and bytes of each line, in the order of the file."""
    raw = job.output.read_bytes().splitlines(keepends=True)
    return [(each.outcome.index, line) for each, line in zip(read_output(job.output), raw, strict=True)]


def aside(job):
    return [path.read_bytes() for path in job.output.parent.glob("results.jsonl.damaged-*")]


async def test_a_bit_flipped_anywhere_costs_at_most_its_own_line_and_nothing_is_deleted(done):
    job = done
    stood = lines(job)
    data = job.output.read_bytes()
    for place in range(0, len(data) - 1, 5):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        for path in job.output.parent.iterdir():
            path.unlink()
        job.output.write_bytes(flipped)
        starts = [sum(len(line) for _, line in stood[:number]) for number in range(4)]
        hit = max(number for number, start in enumerate(starts) if start <= place)
        at, (index, line) = starts[hit], stood[hit]
        found = repair(job.output)
        if data[place] == 10:  # two lines that were joined, each of which can still be read
            assert found["asked_again"] == []
        else:
            kept = [line for other, line in stood if other != index]
            assert job.output.read_bytes() == b"".join(kept)
            assert b"".join(aside(job)).replace(b"\n", b"") == bytes(flipped[at : at + len(line)]).replace(
                b"\n", b""
            )
            assert found["asked_again"] == [index] or not found["complete"]
            assert found["kept"] == 3
        before = job.billed
        await job.run()
        assert indexes(job) == list(range(4))
        assert job.billed - before == (0 if data[place] == 10 else 1)


@pytest.mark.parametrize("where", ["results.jsonl", "results.errors.1.jsonl"])
async def test_damage_that_is_found_beside_a_run_with_nothing_left_to_send_is_told(
    where, make_job, monkeypatch
):
    monkeypatch.setitem(JobRun.__init__.__kwdefaults__, "at_once_bytes", 0)
    job = make_job(6)
    filtered = failure("content_filter")
    await job.run(
        endpoint=ScriptedEndpoint(otherwise=lambda request: reply("a") if request.index else filtered)
    )
    await job.run(retry_failed=True)
    path = job.output.with_name(where)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"attempts"', b'"attempst"', 1))
    if where != "results.jsonl":
        # Its totals are in the checkpoint, and nobody looks at it otherwise.
        forget(job)
    with pytest.raises(JobDamaged, match=where):
        await job.run()
    summary = json.loads(job.output.with_name("results.summary.json").read_bytes())
    assert summary["requests"]["succeeded"] == 6
    path.write_bytes(data)
    assert (await job.run())["status"] == "completed"


@pytest.mark.parametrize("end", [b"\x8a", b"\0" * 200])
async def test_a_last_line_that_lost_its_newline_is_not_believed_for_being_in_the_checkpoint(end, make_job):
    job = make_job(5)
    await job.run()
    data = job.output.read_bytes()
    job.output.write_bytes(data[: -len(end)] + end)
    before = job.billed
    summary = await job.run()
    assert (summary["requests"]["succeeded"], summary["requests"]["pending"]) == (5, 0)
    assert indexes(job) == list(range(5))
    assert job.billed == before + 1


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_signal_before_the_earlier_lines_were_looked_at_hides_neither_damage_nor_that_they_were_not(
    signals, make_job, monkeypatch
):
    monkeypatch.setitem(JobRun.__init__.__kwdefaults__, "at_once_bytes", 0)
    job, stop = make_job(6), Stop()
    await job.run()
    summary = job.output.with_name("results.summary.json").read_bytes()
    data = job.output.read_bytes()
    if signals == 1:
        job.output.write_bytes(data.replace(b'"attempts"', b'"attempst"', 1))
    else:
        forget(job)

    async def late(audit):
        stop.request(Interrupted(2, "stopped"))
        if signals == 2:
            stop.abandon(Interrupted(2, "stopped"))
            await anyio.sleep_forever()
        return await Audit.run(audit)

    monkeypatch.setitem(JobRun.__init__.__kwdefaults__, "audit", late)
    with pytest.raises(JobDamaged if signals == 1 else Interrupted):
        await job.run(stop=stop)
    told = json.loads(job.output.with_name("results.summary.json").read_bytes())
    assert told["requests"] == json.loads(summary)["requests"]


async def test_lines_that_lost_the_newline_between_them_both_stay(done):
    data = done.output.read_bytes()
    at = data.index(b"\n")
    done.output.write_bytes(data[:at] + b"\x8a" + data[at + 1 :])
    with pytest.raises(JobDamaged):
        await done.run()
    found = repair(done.output)
    assert done.output.read_bytes() == data
    assert (found["kept"], found["asked_again"], found["complete"]) == (4, [], True)


async def test_of_two_lines_for_one_request_the_first_stays(done):
    data = done.output.read_bytes()
    second = lines(done)[2]
    done.output.write_bytes(data + second[1])
    with pytest.raises(JobDamaged, match="two lines"):
        await done.run()
    found = repair(done.output)
    assert done.output.read_bytes() == data
    assert aside(done) == [second[1]]
    assert found["moved"] == [
        {"file": "results.jsonl", "offset": len(data), "bytes": len(second[1]) - 1, "index": second[0]}
    ]
    assert (found["kept"], found["asked_again"], found["complete"]) == (4, [], True)


@pytest.mark.parametrize(
    "strange", [b"\0" * 4096, b"\xff" * 100, b"{}", b'{"id":"batch_req_', b"x" * (3 << 20)]
)
async def test_bytes_that_were_never_a_line_are_moved_aside_wherever_they_stand(strange, done):
    stood = [line for _, line in lines(done)]
    for place in range(5):
        job_lines = [*stood[:place], strange + b"\n", *stood[place:]]
        done.output.write_bytes(b"".join(job_lines))
        for path in done.output.parent.glob("*.damaged-*"):
            path.unlink()
        found = repair(done.output)
        assert done.output.read_bytes() == b"".join(stood)
        assert [each.rstrip(b"\n") for each in aside(done)] == [strange]
        assert (found["kept"], found["asked_again"]) == (4, [])
        assert not found["complete"] or len(strange) <= 8
    before = done.billed
    await done.run()
    assert done.billed == before


async def test_a_line_of_another_job_goes_wherever_it_stands_and_however_few_are_left_of_ones_own(
    done,
):
    stood = done.output.read_bytes()
    other = encode(replace(next(iter(read_output(done.output))), job_id="other", run=None))
    done.output.write_bytes(other + stood)
    found = repair(done.output)
    assert done.output.read_bytes() == stood
    assert aside(done) == [other]
    assert found["kept"] == 4


async def test_the_checkpoint_knows_whose_lines_they_are(make_job):
    job = make_job(2)
    await job.run()
    stood = job.output.read_bytes()
    line = replace(next(iter(read_output(job.output))), job_id="other", run=None)
    job.output.write_bytes(encode(line) * 3 + stood)
    repair(job.output)
    assert job.output.read_bytes() == stood


async def test_what_the_last_run_was_started_with_outlives_the_line_that_told_of_it(make_job):
    job = make_job(4)
    summary = await job.run(prices={"gpt-4o-mini": {"prompt": 50, "completion": 50}})
    first = lines(job)[0]
    job.output.write_bytes(job.output.read_bytes().replace(b'"run":{', b'"ran":{'))
    assert repair(job.output)["asked_again"] == [first[0]]
    told = batchkit.status(job.output)
    assert (told["status"], told["requests"]["pending"]) == ("interrupted", 1)
    for look in (batchkit.status, batchkit.report):
        again = look(job.output)
        assert again["job_id"] == summary["job_id"]
        assert again["cost"]["total"] == pytest.approx(summary["cost"]["total"] * 3 / 4)
    with pytest.raises(JobMismatch, match="another model and body defaults"):
        await job.run(set={"temperature": 0})


async def test_an_output_that_was_cut_behind_a_line_is_not_complete(make_job):
    job = make_job(4)
    await job.run()
    job.output.write_bytes(b"".join(line for _, line in lines(job)[:2]))
    found = repair(job.output)
    assert (found["moved"], found["kept"], found["complete"]) == ([], 2, False)


async def test_an_output_that_was_cut_within_a_line_is_not_complete(make_job):
    job = make_job(4)
    await job.run()
    first, second, *_ = lines(job)
    job.output.write_bytes(first[1] + second[1][:-40])
    found = repair(job.output)
    assert (found["asked_again"], found["kept"], found["complete"]) == ([second[0]], 1, False)


async def test_where_a_link_leads_to_is_what_is_repaired(done):
    target = done.output.rename(done.output.parent.with_name("elsewhere.jsonl"))
    done.output.symlink_to(target)
    stood = lines(done)
    target.write_bytes(b"x" * 20 + b"\n" + b"".join(line for _, line in stood))
    repair(done.output)
    assert done.output.is_symlink()
    assert lines(done) == stood


async def test_what_was_written_over_newlines_does_not_say_how_many_lines_are_gone(done):
    data = bytearray(done.output.read_bytes())
    stood = lines(done)
    begin = len(stood[0][1]) + 200
    until = len(stood[0][1]) + len(stood[1][1]) + len(stood[2][1]) - 10
    data[begin:until] = bytes(until - begin)
    done.output.write_bytes(data)
    found = repair(done.output)
    assert found["kept"] == 2
    assert not found["complete"]


async def test_the_ids_of_lines_that_openai_wrote_are_no_indexes(done):
    foreign = (
        b'{"id":"batch_req_67923fb2e27881908df094a5093ae17d","custom_id":"a","response":null,"error":null}\n'
    )
    done.output.write_bytes(done.output.read_bytes() + foreign)
    found = repair(done.output)
    assert [piece["index"] for piece in found["moved"]] == [None]
    assert (found["kept"], found["asked_again"], found["complete"]) == (4, [], False)


async def test_lines_that_are_joined_and_broken_are_each_read_once(done, monkeypatch):
    broken = b"".join(line[:-12] + b'00000000"}}' for _, line in lines(done)).replace(b"\n", b"")
    tried = []
    monkeypatch.setattr(mending, "decode", lambda line: tried.append(len(line)) or decode(line))
    done.output.write_bytes(broken * 50 + b"\n" + done.output.read_bytes())
    assert repair(done.output)["kept"] == 4
    # The file is gone through three times.
    assert sum(tried) <= 8 * done.output.stat().st_size + 8 * 50 * len(broken)


async def test_a_job_without_damage_is_left_as_it_is(done):
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in done.output.parent.iterdir()
    }
    assert repair(done.output) == {"moved": [], "kept": 4, "asked_again": [], "complete": True}
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in done.output.parent.iterdir()}
    assert after == before


async def test_a_job_that_is_worked_on_is_not_repaired(done):
    store = Store.open(done.output)
    try:
        with pytest.raises(JobLocked):
            repair(done.output)
    finally:
        store.close()


def test_the_command_says_what_was_moved_and_the_next_run_asks_exactly_that_again(
    command, provider, files, write_requests
):
    words = ["run", write_requests(30), "-o", files.results_path, "--base-url", provider.base_url, "--json"]
    command(*words)
    stood = files.results_path.read_bytes().splitlines(keepends=True)
    damaged = [stood[4], stood[20]]
    lost = [line["batchkit"]["index"] for line in (files.results[4], files.results[20])]
    stood[4] = damaged[0].replace(b'"assistant"', b'"assistent"')
    stood[20] = damaged[1][:50] + damaged[1][51:]
    files.results_path.write_bytes(b"".join(stood))
    assert "batchkit repair" in command(*words, "--rescan", code=4).err
    said = command("repair", files.results_path, "--json").json
    assert [piece["index"] for piece in said["moved"]] == lost
    assert [piece["offset"] for piece in said["moved"]] == [
        sum(map(len, stood[:4])),
        sum(map(len, stood[:20])),
    ]
    assert (said["kept"], said["asked_again"], said["complete"]) == (28, sorted(lost), True)
    received = provider.stats.received
    files.assert_summary_is_a_fold(command(*words).json, 30)
    assert provider.stats.received == received + 2
    # Once repaired, there is nothing to repair.
    assert "0 pieces moved aside" in command("repair", files.results_path).out
