"""An input comes to the same sums on one core and on many, whatever becomes of the processes."""

import json
import os
import signal

import pytest

from batchkit import counting
from batchkit.counting import count_lines, count_pieces
from batchkit.records import Line
from batchkit.rules.estimating import Demand

DEFAULTS = {"model": "gpt-4o-mini", "temperature": 0}


def line(index, **body):
    messages = [{"role": "user", "content": f"What is {index} times {index}? " * (1 + index % 7)}]
    raw = json.dumps({"custom_id": f"r{index}", "body": {"messages": messages, **body}})
    return Line(index, 0, raw.encode())


PIECES = [
    [line(0), line(1, model="gpt-4", max_tokens=7), Line(2, 0, b"{broken"), Line(3, 0, None)],
    [line(4, n=3), line(5, n=3, max_completion_tokens=100), line(6, n=True), line(7, n=-1)],
    [Line(8, 0, None)],
    *[
        [line(index, model=f"m{index % 3}") for index in range(start, start + 20)]
        for start in range(20, 200, 20)
    ],
]


def whole(pieces):
    demand = Demand()
    for each in pieces:
        demand.merge(each)
    return demand


def test_lines_are_counted_by_what_they_ask_for():
    demand = count_lines(PIECES[0] + PIECES[1], DEFAULTS)
    assert demand.invalid == 2
    assert demand.requests == 6
    assert list(demand.models) == ["gpt-4", "gpt-4o-mini"]
    (gpt_4,), (mini,) = (list(bands.values()) for bands in demand.models.values())
    assert gpt_4[3:] == [1, 7, 0, 7]
    # Three of the default one answer, one three, one three of at most a hundred tokens each.
    assert mini[3:] == [1 + 3 + 3 + 1 + 1, 300, 6, 6 * 215 + 300]


def test_more_processes_come_to_the_same():
    alone = list(count_pieces(PIECES, DEFAULTS, 1))
    together = list(count_pieces(PIECES, DEFAULTS, 2, at_once_bytes=0))
    assert together == alone
    assert whole(together).requests == 5 + 1 + 180


def test_what_is_guessed_and_what_is_left_out_of_a_count_is_told_by_all_processes():
    parts = [{"type": "image_url", "image_url": {"url": "https://x"}}, {"type": "input_audio"}]
    lines = [line(index, messages=[{"role": "user", "content": parts}]) for index in range(6)]
    demand = whole(count_pieces([lines[:3], lines[3:]], DEFAULTS, 2, at_once_bytes=0))
    assert (demand.images, demand.uncounted) == (6, 6)
    assert Demand.from_state(demand.state()) == demand


def test_a_small_input_starts_no_process(monkeypatch):
    monkeypatch.setattr(counting.subprocess, "Popen", None)
    assert whole(count_pieces(PIECES, DEFAULTS, 8)).requests == 186


def test_where_no_process_can_start_all_is_counted_here(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no room for another process")

    alone = whole(count_pieces(PIECES, DEFAULTS, 1))
    monkeypatch.setattr(counting.subprocess, "Popen", refuse)
    assert whole(count_pieces(PIECES, DEFAULTS, 2, at_once_bytes=0)) == alone


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    popen, processes = counting.subprocess.Popen, []

    def start(*args, **settings):
        processes.append(popen(*args, **settings))
        return processes[-1]

    monkeypatch.setattr(counting.subprocess, "Popen", start)
    return processes


def test_what_a_killed_process_had_is_counted_here(started):
    alone = whole(count_pieces(PIECES, DEFAULTS, 1))
    parts = count_pieces(PIECES, DEFAULTS, 2, at_once_bytes=0)
    first = next(parts)
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
    rest = whole(parts)
    rest.merge(first)
    assert rest == alone
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_only_a_few_pieces_are_held_and_no_process_outlives_its_caller(started):
    taken = []

    def pieces():
        for number in range(1000):
            taken.append(number)
            # Nothing is counted of it, so nobody reads the tokenizer's tables for it.
            yield [Line(number, 0, b"{broken")]

    parts = count_pieces(pieces(), DEFAULTS, 2, at_once_bytes=0)
    next(parts)
    assert len(taken) <= 8
    parts.close()
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)
