"""The samples run as they stand, and their inputs are what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchkit import validate

SAMPLES = Path(__file__).parent.parent / "samples"
INPUTS = ("reviews.jsonl", "translations.jsonl", "support_tickets.jsonl")


def run_sample(name, *words):
    names = ("PORTKEY_", "OPENAI_", "BATCHKIT_")
    return subprocess.run(
        [sys.executable, str(SAMPLES / name), *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith(names)},
    ).stdout


@pytest.mark.parametrize("name", INPUTS)
def test_each_input_has_300_good_lines_with_an_id_of_their_own(name):
    assert validate(SAMPLES / name) == {
        "lines": 300,
        "requests": 300,
        "invalid": [],
        "duplicate_custom_ids": [],
    }


def test_the_shortest(tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join((SAMPLES / "translations.jsonl").read_bytes().splitlines(keepends=True)[:5]))
    assert run_sample("shortest.py", few, tmp_path / "results.jsonl").startswith(
        "{'total': 5, 'succeeded': 5, 'failed': 0, 'pending': 0"
    )


def test_stream_prints_an_answer_for_each_city():
    lines = run_sample("stream.py").splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "Lagos",
        "Lima",
        "Lisbon",
        "Ljubljana",
        "London",
        "Lyon",
    ]
    assert not any("failed" in line for line in lines)


def test_a_rehearsal_on_a_bad_day_ends_well():
    out = run_sample("rehearse.py")
    assert "'succeeded': 300, 'failed': 0" in out
    assert "'server_error'" in out


def test_a_resume_answers_each_request_exactly_once():
    assert run_sample("resume.py").endswith("each of the 300 requests exactly once\n")


def test_each_sample_program_has_its_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    for program in SAMPLES.glob("*.py"):
        assert f'"{program.name}"' in tested
