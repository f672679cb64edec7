"""The kill campaign, bounded; `make campaign` runs it at full size."""

import json

import pytest
from kill_campaign import judge, main


@pytest.mark.campaign
def test_a_job_killed_again_and_again_loses_nothing_and_doubles_nothing(capsys):
    assert main(["--kills", "12", "--requests", "600"]) == 0
    printed = capsys.readouterr().out
    assert "600 of 600" in printed
    figures = dict(line.split()[:2] for line in printed.splitlines())
    assert (figures["kills"], figures["lost"], figures["doubled"]) == ("12", "0", "0")


def write_job(folder, indexes, *, billed, succeeded=None):
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    lines = [{"batchkit": {"index": index}, "response": {"body": {"usage": usage}}} for index in indexes]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.errors.jsonl").write_text("")
    (folder / "ledger.jsonl").write_text("{}\n" * billed)
    totals = {name: count * len(lines) for name, count in usage.items()}
    counted = len(lines) if succeeded is None else succeeded
    (folder / "results.summary.json").write_text(
        json.dumps({"requests": {"succeeded": counted}, "usage": totals})
    )


@pytest.mark.parametrize(
    ("indexes", "billed", "succeeded", "wrong"),
    [
        ([0, 1, 2, 3], 4, None, {}),
        ([0, 1, 2, 3], 8, None, {"billed_twice": 4}),
        ([0, 1, 3], 4, None, {"lost": 1, "billed_twice": 1}),
        ([0, 1, 1, 2, 3], 5, None, {"doubled": 1, "billed_twice": 1}),
        ([0, 1, 2, 3], 9, None, {"billed_twice": 5}),
        ([0, 1, 2, 3], 4, 3, {"totals_agree": False}),
        ([0, 1, 2, 3], 3, None, {"billed_twice": -1}),
    ],
)
def test_the_campaign_sees_what_is_lost_doubled_and_billed_twice(tmp_path, indexes, billed, succeeded, wrong):
    write_job(tmp_path, indexes, billed=billed, succeeded=succeeded)
    verdict = judge(tmp_path, requests=4, kills=2, concurrency=2)
    expected = {"lost": 0, "doubled": 0, "billed_twice": 0, "totals_agree": True} | wrong
    assert {name: getattr(verdict, name) for name in expected} == expected
    assert verdict.good == (wrong in ({}, {"billed_twice": 4}))
