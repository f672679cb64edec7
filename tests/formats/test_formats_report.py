import re
from decimal import Decimal
from html.parser import HTMLParser

from batchkit.formats.report import render_html
from batchkit.formats.summary import Figures, ModelFigures, OutcomeFigures, Totals, build
from batchkit.records import Usage

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
    assert read.text.count("alert(1)") >= 6


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
