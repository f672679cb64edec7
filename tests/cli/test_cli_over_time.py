"""A job over time, as the terminal shows it."""

import io
import sys

import pytest

import batchkit
from batchkit.cli.main import main
from batchkit.formats.results import OutputLine, encode
from batchkit.records import FoundLimit, Outcome, Reply, RunHeader, Usage

BODY = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'


@pytest.fixture
def output(tmp_path):
    """A job of 80 seconds, 8 answers in each, with a pause of a day in the middle."""
    path = tmp_path / "results.jsonl"
    lines = []
    for index in range(640):
        began = 1763812800.0 + 86400 * (index >= 320)
        outcome = Outcome(
            index,
            f"r{index}",
            Reply(200, "r", BODY, model="m", usage=Usage(1, 1, 2)),
            "t",
            1 + (index % 320 == 300),
            1.0,
            began + index % 320 / 8,
            {"rate_limited": 1} if index % 320 == 300 else {},
            limits=(FoundLimit("m", 480.0),) if index % 320 == 80 else (),
        )
        header = RunHeader(began, "http://127.0.0.1:1/v1", input_path=str(tmp_path / "gone.jsonl"))
        lines.append(encode(OutputLine(outcome, "job", header if index % 320 == 0 else None)))
    path.write_bytes(b"".join(lines))
    return path


def test_report_and_status_tell_the_rate_the_limit_and_the_refusals(output, capsys):
    for command in ("report", "status"):
        assert main([command, str(output)]) == 0
        shown = capsys.readouterr().out
        assert "  over time   ████████████████████┆████████████████████ up to 8.00 requests/s\n" in shown
        assert "  limit found 480 requests/min (m), refused 2 of 642 attempts (0.3 %)\n" in shown


def test_a_terminal_without_such_letters_shows_marks_in_their_place(output, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["report", str(output)]) == 0
    assert b"over time   ????" in written.getvalue()


def test_the_report_draws_the_two_runs_apart(output, tmp_path):
    over_time = batchkit.report(output)["over_time"]
    assert over_time["width_s"] == 2.0
    assert over_time["limits"] == {"m": {"requests_per_min": ([None] * 5 + [480] * 15) * 2}}
    page = (tmp_path / "results.report.html").read_text()
    assert "nothing was at work for 23 h 59 min" in page
