import re
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from batchkit.formats.report import render_html
from batchkit.formats.summary import Figures, ModelFigures, OutcomeFigures, Totals, build
from batchkit.records import FoundLimit, TimeBin, Usage

EVIL = "<script>alert(1)</script>\"'&\u202e\x1b"


class Page(HTMLParser):
    """Checks that tags close in order, and keeps tags and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(*, status="completed", stop_reason=None, requests=100, **change):
    figures = {
        "succeeded": 90,
        "failed": 3,
        "attempts": 99,
        "by_reason": {"timeout": 6},
        "models": {
            "big": ModelFigures(80, Usage(1000, 100, 1100, 10, 5), Decimal("1.5")),
            "small": ModelFigures(10, Usage(500, 50, 550), None),
        },
        "unpriced_models": ("small",),
        "known_cost": Decimal("1.5"),
        "latency_s": (1.0, 2.0, 3.0, 4.0),
        "errors": {"context_length_exceeded": (3, "request-17")},
        "started_at": 1763820000.0,
        "finished_at": 1763820090.0,
        "active_s": 45.0,
    }
    totals = Totals(**{**figures, **change})
    html = render_html(
        build(totals, job_id="job-1", status=status, stop_reason=stop_reason, requests=requests)
    )
    return html, Page(html)


def test_the_report_tells_the_figures():
    _, read = page()
    for word in ("job-1", "90", "of 100", "$1.50 + ?", "1,000", "No known price: small", "context_length_exceeded",
                 "request-17", "99 attempts, 6 of them repeated", "2025-11-22 14:01:30 UTC", "4.00 s"):  # fmt: skip
        assert word in read.text


def test_the_report_needs_no_network_and_runs_nothing():
    html, read = page()
    assert not re.search(r"https?:|//|@import|url\(", html.removeprefix("<!doctype html>"))
    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object"}
    assert not any(
        name.startswith("on") or name in {"href", "src"} for _, attrs in read.tags for name in attrs
    )


def test_nothing_that_came_from_outside_is_markup():
    html = render_html(
        build(
            Totals(
                1,
                1,
                2,
                by_reason={EVIL: 1},
                models={EVIL: ModelFigures(1, Usage(1, 1, 2), None)},
                unpriced_models=(EVIL,),
                errors={EVIL: (1, EVIL)},
                bin_s=1.0,
                bins=[TimeBin(float(at), 1, limits=(FoundLimit(EVIL, 60.0),)) for at in range(3)],
            ),
            job_id=EVIL,
            status=EVIL,
            stop_reason=EVIL,
            requests=2,
        )
    )
    read = Page(html)
    assert "script" not in {tag for tag, _ in read.tags}
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert read.text.count("alert(1)") >= 7


def test_bars_are_as_long_as_their_shares():
    _, read = page()
    widths = [float(attrs["width"]) for tag, attrs in read.tags if tag == "rect"]
    prompt, completion, other, _, *latencies = widths
    assert prompt == 590
    assert abs(completion / prompt - 0.1) < 0.001
    assert abs(other / prompt - 0.5) < 0.001
    assert [round(width / latencies[-1], 2) for width in latencies] == [0.25, 0.5, 0.75, 1.0]


def test_a_job_in_which_nothing_ended_has_a_report():
    _, read = page(
        status="running",
        requests=None,
        succeeded=0,
        failed=0,
        attempts=0,
        by_reason={},
        models={},
        unpriced_models=(),
        known_cost=Decimal(0),
        latency_s=None,
        errors={},
        started_at=None,
        finished_at=None,
        active_s=0.0,
    )
    assert "$0.00" in read.text
    assert not [tag for tag, _ in read.tags if tag in {"svg", "table"}]


def test_a_simulated_job_says_that_nothing_was_billed():
    assert "nothing was billed" in page(simulated=True)[1].text
    assert "nothing was billed" not in page()[1].text


def test_what_the_figures_leave_out_is_said():
    told = page(truncated=2, unknown_usage=4)[1].text
    assert "2 results were cut at their length limit." in told
    assert "4 answers came without usage; tokens and cost leave them out." in told


def test_tokens_in_the_totals_alone_are_said_to_be_in_no_cost():
    models = {
        "grok-4": ModelFigures(1, Usage(32, 9, 135, 0, 94), Decimal("0.25")),
        "less": ModelFigures(1, Usage(500, 50, 5), Decimal("0.5")),
    }
    told = page(models=models, unpriced_models=(), known_cost=Decimal("0.75"))[1].text
    assert (
        "94 tokens are in the totals of answers alone; they are billed, and the cost leaves them out." in told
    )
    assert "at least $0.7500" in told
    assert "at least $0.2500" in told
    assert "at least $0.5000" not in told


def test_what_failures_and_retries_cost_has_a_table_of_its_own():
    outcomes = OutcomeFigures(
        Figures(90, Usage(1000, 100, 1100), 0, Decimal("1.25"), Decimal("1.25")),
        Figures(3, Usage(77, 0, 77), 2, None, Decimal("0.25")),
        Figures(4, Usage(88, 0, 88), 0, Decimal(0), Decimal(0)),
    )
    told = page(outcomes=outcomes, maybe_cost=Decimal("0.75"))[1].text
    for word in ("Usage by outcome", "$1.25", "$0.2500 + ?", "77", "88", "attempts that were repeated"):
        assert word in told
    assert "Up to $0.7500 more may have been billed." in told
    assert "Usage by outcome" not in page()[1].text


def test_many_models_all_stand_in_the_table_but_not_all_in_the_chart():
    models = {f"model-{n}": ModelFigures(1, Usage(n, n, 2 * n), Decimal(0)) for n in range(40)}
    _, read = page(models=models, unpriced_models=(), latency_s=None)
    assert sum(tag == "rect" for tag, _ in read.tags) == 24
    assert all(name in read.text for name in models)


def test_names_and_numbers_stay_within_the_chart():
    wide, most = "W" * 200, 9_876_543_210_123
    html, read = page(models={wide: ModelFigures(1, Usage(most, 0, most), Decimal(0))}, latency_s=None)
    chart = html[html.index("<svg") : html.index("</svg>")]
    assert f">{'W' * 55}…<" in chart
    assert wide in read.text
    number = re.search(rf'x="([0-9.]+)" y="[0-9]+">{most:,}<', chart)
    assert number is not None
    assert float(number[1]) + 8 * len(f"{most:,}") <= 700


# --- over time -----------------------------------------------------------------------------------------------------

NOON = 1763812800.0


def course(seconds, *, width=1.0, start=NOON, limits=(), **counts):
    counts = counts or {"results": 8}
    return [TimeBin(start + at * width, limits=tuple(limits), **counts) for at in range(seconds)]


def drawn(bins, width=1.0):
    """The drawing's shapes by their class, and what is written in and above it."""
    html, _ = page(bin_s=width, bins=bins)
    start = html.find("<h2>Over time</h2>")
    if start < 0:
        return {}, ""
    part = Page(html[start : html.index("</section>", start)])
    shapes = {}
    for tag, attrs in part.tags:
        if tag in {"path", "line", "rect"}:
            shapes.setdefault(attrs["class"], []).append(attrs)
    return shapes, part.text


def corners(path):
    """Where the steps of a path are: lists of x and y."""
    return ([float(each) for each in re.findall(rf"{axis}(-?[0-9.]+)", path["d"])] for axis in "HV")


def test_a_job_is_drawn_with_its_rate_its_limits_and_its_refusals():
    bins = course(20, results=7, failures=1, refused=2, limits=[FoundLimit("gpt-4o-mini", 480.0)])
    shapes, text = drawn(bins)
    assert set(shapes) == {"results", "failures", "refused", "limit l0", "grid", "base", "bin"}
    assert len(shapes["bin"]) == 20
    for words in ("limit found: 480 requests/min (gpt-4o-mini)", "answers a minute", "refused a minute", "UTC", "12:00:00", "12:00:10", "Nov 22",
                  "2025-11-22 12:00:05 UTC, 1.00 s: 7 results, 1 failures, 2 refused"):  # fmt: skip
        assert words in text


def test_areas_and_limits_are_drawn_to_one_scale():
    bins = course(10, results=8, limits=[FoundLimit("m", 480.0)])
    bins[4:] = course(6, start=NOON + 4, results=4, limits=[FoundLimit("m", 240.0)])
    shapes, _ = drawn(bins)
    _, area = corners(shapes["results"][0])
    _, limit = corners(shapes["limit l0"][0])
    base = area[-1]
    # 8 a second are 480 a minute, so both are on one height, and the limit falls by half with the rate.
    assert area[0] == float(shapes["limit l0"][0]["d"].partition(" ")[2].partition("H")[0])
    assert area[4] == limit[-1]
    assert abs((base - area[4]) / (base - area[0]) - 0.5) < 0.01


def test_time_goes_from_left_to_right_and_fills_the_drawing():
    right, _ = corners(drawn(course(30))[0]["results"][0])
    assert right == sorted(right)
    assert right[-1] == 696.0


def test_a_pause_between_runs_is_a_cut_that_says_how_long():
    shapes, text = drawn(course(10) + course(10, start=NOON + 86400))
    assert len(shapes["pause"]) == 1
    assert "nothing was at work for 23 h 59 min" in text
    assert "Nov 22" in text
    assert "Nov 23" in text
    assert shapes["results"][0]["d"].count("M") == 2


def test_the_pauses_of_many_runs_leave_room_for_what_they_keep_apart():
    bins = [each for day in range(120) for each in course(1, start=NOON + day * 86400)]
    shapes, _ = drawn(bins)
    assert "pause" not in shapes
    widths = [float(attrs["width"]) for attrs in shapes["bin"]]
    assert min(widths) > 1
    assert max(widths) == 4.0


def test_each_kind_of_limit_has_its_own_picture():
    limits = [FoundLimit("a", None, 30_000.0), FoundLimit("b", None, None, 20.0)]
    shapes, text = drawn(course(10, results=8, tokens=450, limits=limits))
    assert len(shapes["results"]) == 2
    assert len(shapes["limit l0"]) == 2
    assert "answers a second" in text
    assert "tokens a minute" in text
    assert "limit found: 20 in flight (b)" in text


def test_of_many_limits_the_largest_are_drawn():
    limits = [FoundLimit(f"m{number}", 100.0 * number) for number in range(1, 7)]
    shapes, text = drawn(course(10, results=8, limits=limits))
    assert {"limit l0", "limit l1", "limit l2"} == {name for name in shapes if name.startswith("limit")}
    assert "m6" in text
    assert "m3" not in text
    assert "3 more limits" in text


def test_a_burst_does_not_flatten_what_follows():
    bins = course(1, results=400) + course(40, start=NOON + 1, results=8)
    shapes, text = drawn(bins)
    _, area = corners(shapes["results"][0])
    assert (area[-1] - area[1]) > 0.5 * (area[-1] - area[0])
    assert "↑ 400" in text


def test_a_limit_far_above_all_rates_is_told_and_not_drawn():
    shapes, text = drawn(course(10, results=1, limits=[FoundLimit("m", 60_000.0)]))
    assert shapes["limit l0"][0]["d"] == ""
    assert "limit found: 60,000 requests/min (m)" in text


def test_too_little_is_not_drawn():
    assert drawn([]) == ({}, "")
    assert drawn(course(2)) == ({}, "")


@pytest.mark.parametrize(
    ("width", "bins", "words"),
    [
        (0.25, 12, ["12:00:00", "12:00:01", "12:00:02"]),
        (4.0, 120, ["12:00", "12:01", "12:07"]),
        (4096.0, 64, ["12:00", "Nov 22", "Nov 23", "Nov 24", "Nov 25"]),
        (2.0**20, 100, ["Dec 18", "May 7", "Sep 24"]),
    ],
)
def test_times_of_day_fit_the_length_of_the_job(width, bins, words):
    start = NOON // width * width
    shapes, text = drawn(course(bins, width=width, start=start), width)
    assert shapes["results"]
    for each in words:
        assert each in text
    stands = [float(attrs["x1"]) for attrs in shapes["base"] if attrs["x1"] == attrs["x2"]]
    assert 1 < len(stands) < 12
    assert all(later - earlier >= 60 for earlier, later in pairwise(stands[1:]))


def test_days_of_several_years_have_the_year_below_where_it_is_another():
    _, text = drawn(course(100, width=2.0**20, start=NOON // 2.0**20 * 2.0**20), 2.0**20)
    assert "UTCDec 182025May 72026Sep 24Feb 112027Jul 1Nov 18Apr 62028Aug 24Jan 112029" in text


def test_runs_in_several_years_have_dates_with_the_year_that_stand_apart():
    shapes, text = drawn([each for run in range(12) for each in course(8, start=NOON + run * 40 * 86400)])
    assert "12:00:002025-11-2212:00:002026-02-10" in text
    stands = [float(attrs["x1"]) for attrs in shapes["base"] if attrs["x1"] == attrs["x2"]]
    assert all(later - earlier >= 100 for earlier, later in pairwise(stands))


@pytest.mark.parametrize(
    ("width", "answers", "told"),
    [
        (2048.0, 8, "answers an hour51015UTC"),
        (2.0**20, 1, "answers a day0.050.1UTC"),
        (2.0**33, 1, "answers a day0.0000050.000010.000015UTC"),
    ],
)
def test_a_slow_rate_is_told_in_a_unit_that_makes_its_figures_readable(width, answers, told):
    start = NOON // width * width
    assert told in drawn(course(3, width=width, start=start, results=answers), width)[1]


def test_a_burst_does_not_choose_the_unit_of_what_follows():
    bins = course(1, width=1024.0, results=2000) + course(
        99, width=1024.0, start=NOON + 1024, results=1, refused=1
    )
    text = drawn(bins, 1024.0)[1]
    assert "answers an hour" in text
    assert "refused an hour" in text
    assert "↑ 7,031" in text
