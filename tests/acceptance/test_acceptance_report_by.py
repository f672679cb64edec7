"""`report --by` for someone at a terminal, and for a program."""

import json

import pytest

import batchkit
from batchkit.cli.main import main
from batchkit.formats.summary_text import render


@pytest.fixture
def job(files, provider, tmp_path):
    lines = [
        {
            "body": {
                "model": "gpt-4o-mini",
                "messages": [{"role": "user", "content": f"What is {number}?"}],
                **({"metadata": {"team": "a\x1b[2J"}} if number % 2 else {}),
            }
        }
        for number in range(6)
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batchkit.run(path, files.results_path, base_url=provider.base_url, progress="off")
    return files.results_path


def test_the_groups_stand_below_the_summary(command, job):
    told = command("report", job, "--by", "metadata.team").out
    assert told.startswith(render(batchkit.report(job)).rstrip() + "\n\nmetadata.team ")
    assert r"a\x1b[2J" in told
    assert "\x1b" not in told
    assert sorted(line.split()[0] for line in told.splitlines()[-2:]) == ["(none)", r"a\x1b[2J"]


def test_a_program_gets_one_object_and_the_file_stays_as_it_is(command, job, files):
    told = command("report", job, "--by", "metadata.team", "--json").json
    groups = told.pop("by")["metadata.team"]
    assert {value: group["requests"] for value, group in groups.items()} == {"a\x1b[2J": 3, "(none)": 3}
    assert told == files.summary


def test_a_key_that_no_request_has_is_said_so(job, capsys):
    assert main(["report", str(job), "--by", "metadata.tema"]) == 0
    assert capsys.readouterr().out.endswith("\nNo request of the job has metadata.tema.\n")


def test_what_cannot_be_meant_is_wrong_usage(job, capsys):
    assert main(["report", str(job), "--by", "team"]) == 2
    told = capsys.readouterr()
    assert "metadata.KEY" in told.err
    assert told.out == ""
