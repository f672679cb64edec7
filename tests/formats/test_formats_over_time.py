"""What a job did when, as JSON and in a line of blocks."""

import orjson
import pytest

from batchkit.formats.over_time import limits_in_words, over_time_to_json, refusals_in_words, sparkline
from batchkit.formats.summary import Totals, build
from batchkit.formats.summary_text import render
from batchkit.records import FoundLimit, TimeBin


def told(*results, width=1.0, start=1000.0, limits=(), **counts):
    bins = [
        TimeBin(start + at * width, each, limits=tuple(limits), **counts) for at, each in enumerate(results)
    ]
    return over_time_to_json(width, bins)


def text(over_time, attempts=100):
    summary = build(Totals(90, 3, attempts), job_id="j", status="completed", stop_reason=None, requests=93)
    return render({**summary, "over_time": over_time})


def test_arrays_are_equally_long_and_null_where_no_limit_was_known():
    bins = [
        TimeBin(8.0, 3, 1, 2, 40),
        TimeBin(12.0, 5, limits=(FoundLimit("b", 480.0, None, 20), FoundLimit("a", None, 2.5))),
        TimeBin(400.0, 1, limits=(FoundLimit("b", None, None, 20.0),)),
    ]
    made = over_time_to_json(4.0, bins)
    assert made == {
        "width_s": 4.0,
        "start": [8.0, 12.0, 400.0],
        "results": [3, 5, 1],
        "failures": [1, 0, 0],
        "refused": [2, 0, 0],
        "tokens": [40, 0, 0],
        "limits": {
            "a": {"tokens_per_min": [None, 2.5, None]},
            "b": {"requests_per_min": [None, 480, None], "in_flight": [None, 20, 20]},
        },
    }
    assert b"480,null" in orjson.dumps(made)


def test_the_summary_has_it_only_where_something_ended():
    nothing = build(Totals(0, 0, 0), job_id="j", status="running", stop_reason=None, requests=None)
    assert "over_time" not in nothing
    some = Totals(1, 0, 1, bin_s=1.0, bins=[TimeBin(5.0, 1)])
    made = build(some, job_id="j", status="running", stop_reason=None, requests=None)
    assert made["over_time"]["results"] == [1]


@pytest.mark.parametrize(
    ("over_time", "line"),
    [
        (told(8, 8, 8, 8), "████"),
        (told(0, 1, 2, 4, 8), " ▁▂▄█"),
        (told(80, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8), "█▆▆▆▆▆▆▆▆▆▆▆"),
        (told(1, 1), ""),
        (told(), ""),
        (told(0, 0, 0), ""),
    ],
)
def test_the_rate_is_a_line_of_blocks(over_time, line):
    assert sparkline(over_time)[0] == line


def test_the_line_tells_the_highest_rate_of_what_it_shows():
    assert sparkline(told(8, 6, 4, width=2.0)) == ("█▆▄", 4.0)
    assert sparkline(told())[1] == 0.0


def test_a_pause_between_runs_is_marked_and_many_are_left_out():
    bins = [TimeBin(start, 5) for start in (0.0, 1.0, 500.0, 501.0)]
    assert sparkline(over_time_to_json(1.0, bins))[0] == "██┆██"
    many = [TimeBin(day * 1000.0, 5) for day in range(120)]
    assert sparkline(over_time_to_json(1.0, many))[0] == "█" * 120


def test_a_long_line_is_made_shorter():
    line, highest = sparkline(told(*[5, 7] * 60))
    assert len(line) <= 60
    assert highest == pytest.approx(6.0, abs=0.4)


def test_the_latest_limit_of_each_model_is_told():
    limits = [FoundLimit("small", 60.0), FoundLimit("large", 480.0), FoundLimit("", None, None, 20.0)]
    assert limits_in_words(told(1, 1, limits=limits)) == [
        "480 requests/min (large)",
        "60 requests/min (small)",
        "20 in flight",
    ]
    bins = [
        TimeBin(1.0, 1, limits=(FoundLimit("m", 480.0),)),
        TimeBin(2.0, 1, limits=(FoundLimit("m", None, 30_000.0),)),
        TimeBin(3.0, 1),
    ]
    assert limits_in_words(over_time_to_json(1.0, bins)) == ["30,000 tokens/min (m)"]


def test_of_many_limits_the_largest_are_told_and_the_rest_counted():
    limits = [FoundLimit(f"m{number}", 60.0 * number) for number in range(1, 6)]
    words = limits_in_words(told(1, limits=limits))
    assert words == ["300 requests/min (m5)", "240 requests/min (m4)", "180 requests/min (m3)", "2 more"]


@pytest.mark.parametrize(
    ("refused", "attempts", "words"),
    [(0, 10, []), (31, 4200, ["31 of 4,200 attempts (0.7 %)"]), (1, 9000, ["1 of 9,000 attempts (under 0.1 %)"])],
)  # fmt: skip
def test_refusals_are_told_as_a_share_of_the_attempts(refused, attempts, words):
    over_time = over_time_to_json(1.0, [TimeBin(1.0, 5, refused=refused)])
    assert refusals_in_words(over_time, attempts) == words


def test_the_text_tells_rate_limit_and_refusals():
    limits = [FoundLimit("gpt-4o-mini", 480.0)]
    shown = text(told(8, 8, 8, 8, limits=limits, refused=1), attempts=400)
    assert "  over time   ████ up to 8.00 requests/s\n" in shown
    assert "  limit found 480 requests/min (gpt-4o-mini), refused 4 of 400 attempts (1.0 %)\n" in shown
    assert "  refused     4 of 400 attempts (1.0 %)\n" in text(told(8, 8, 8, 8, refused=1), attempts=400)
    assert "up to 30.0 requests/min" in text(told(1, 1, 1, width=2.0))


def test_a_short_job_without_a_limit_has_no_line_more():
    shown = text(told(8))
    for label in ("over time", "limit found", "refused"):
        assert label not in shown


def test_a_models_name_cannot_reach_the_terminal_as_it_is():
    shown = text(told(1, limits=[FoundLimit("\x1b[2J" + "m" * 300, 60.0)]))
    assert "\x1b" not in shown
    assert "…)" in shown
