import io
import os
import pty
import termios
import threading
from dataclasses import replace

import pytest
from tqdm import tqdm

from batchkit.events import AttemptFailed, Gauges, Notice, RequestFinished, RunStarted, RunStopping
from batchkit.observers.progress import ProgressBar, ProgressLog, choose, layout
from batchkit.records import Failure, FailureKind, Outcome

GAUGES = Gauges(
    total=200_000,
    succeeded=12_342,
    failed=3,
    in_flight=256,
    waiting=0,
    requests_per_s=82.1,
    tokens_per_s=41_000.0,
    cost=1.23,
    cost_is_partial=False,
    holding="concurrency",
    detail="all 256 in flight",
    seconds_left=2340.0,
)
BEFORE_IT_IS_KNOWN = replace(GAUGES, total=None, cost=None, holding="", detail="", seconds_left=None)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def refused(kind=FailureKind.RATE_LIMITED, message="too many requests"):
    return AttemptFailed(1, 1, Failure(kind, "rate_limit_exceeded", message, status=429), 1.2)


@pytest.mark.parametrize(
    ("mode", "stream", "kind"),
    [
        ("auto", Terminal(), ProgressBar),
        ("auto", io.StringIO(), ProgressLog),
        ("bar", io.StringIO(), ProgressBar),
        ("log", Terminal(), ProgressLog),
        ("off", Terminal(), type(None)),
    ],
)
def test_a_terminal_gets_a_bar_and_all_else_gets_lines(mode, stream, kind):
    assert type(choose(mode, stream)) is kind


def test_a_log_line_says_it_all():
    stream = io.StringIO()
    ProgressLog(stream).tick(GAUGES)
    assert stream.getvalue() == (
        "12,345 of 200,000 done (6.2 %), 3 failed, 256 in flight, 82.1 requests/s, 41,000 tokens/s, $1.23,"
        " held back by concurrency: all 256 in flight, 39 min left\n"
    )


AT_ITS_END = replace(
    GAUGES, awaited=(("review-17", 42.0), ("b\x1b[2J", 3.2), (50 * "c", 0.1)), unfinished=4, holding="server"
)


def test_near_its_end_a_log_line_names_what_is_waited_for():
    stream = io.StringIO()
    ProgressLog(stream).tick(AT_ITS_END)
    ProgressLog(stream).tick(replace(AT_ITS_END, awaited=AT_ITS_END.awaited[:1], unfinished=1))
    first, second = stream.getvalue().splitlines()
    assert first.endswith(
        f", waiting for 4 requests: review-17 (since 42 s), b\\x1b[2J (since 3.2 s), {39 * 'c'}… (since 0.1 s), …"
    )
    assert second.endswith(", waiting for 1 request: review-17 (since 42 s)")
    assert "held back" not in first + second


def test_near_its_end_a_bar_names_the_one_that_is_waited_for_longest():
    assert "waiting for review-17 (since 42 s)" in layout(AT_ITS_END, 79)


def test_what_is_not_known_is_left_out():
    stream = io.StringIO()
    ProgressLog(stream).tick(BEFORE_IT_IS_KNOWN)
    assert stream.getvalue() == "12,345 done, 3 failed, 256 in flight, 82.1 requests/s, 41,000 tokens/s\n"


def test_a_cost_that_leaves_models_out_is_a_lower_bound():
    stream = io.StringIO()
    ProgressLog(stream).tick(replace(GAUGES, cost_is_partial=True))
    assert ", at least $1.23, " in stream.getvalue()


def test_a_cost_that_may_not_pass_an_amount_is_shown_with_it():
    capped = replace(GAUGES, max_cost=25.0)
    stream = io.StringIO()
    ProgressLog(stream).tick(capped)
    assert ", $1.23 of $25.00, " in stream.getvalue()
    assert "$1.23 of $25.00" in layout(capped, 79)


@pytest.mark.parametrize("make", [ProgressBar, ProgressLog])
def test_the_first_fault_of_each_kind_is_told_and_no_other(make):
    stream = io.StringIO()
    observer = make(stream)
    for _ in range(3):
        observer.handle(refused())
    observer.handle(refused(FailureKind.TIMEOUT, "600 s went by"))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "first rate_limited: too many requests; asked again in 1.2 s, and others like it without a word",
        "first timeout: 600 s went by; asked again in 1.2 s, and others like it without a word",
    ]


def test_notices_and_the_stop_are_told():
    stream = io.StringIO()
    log = ProgressLog(stream)
    log.handle(RunStarted("job", 0, 0, "http://x", 256))
    log.handle(RunStarted("job", 1500, 2, "http://x", 256))
    log.handle(Notice("a torn line was mended"))
    log.handle(RequestFinished(Outcome(0, "a", refused().failure, "t", 1, 1.0, 1.0)))
    log.handle(RunStopping("SIGINT"))
    log.close()
    assert stream.getvalue() == (
        "going on: 1,500 results and 2 failures stand from earlier\n"
        "a torn line was mended\n"
        "stopping: SIGINT; answers in flight are waited for, Ctrl-C leaves at once\n"
    )


@pytest.mark.parametrize("make", [ProgressBar, ProgressLog])
def test_messages_of_strangers_cannot_steer_the_terminal(make):
    stream = io.StringIO()
    observer = make(stream)
    observer.tick(replace(GAUGES, detail="\x1b[2J{bar}{0}\r\n\u202e"))
    observer.handle(refused(message="\x1b]0;title\x07\r\n" + "x" * 10_000))
    observer.handle(Notice("\x1b[31m\u202e"))
    observer.close()
    told = stream.getvalue()
    assert not set(told) & set("\x1b\x07\u202e")
    assert max(len(line) for line in told.replace("\r", "\n").splitlines()) <= 300


@pytest.mark.parametrize("gauges", [GAUGES, BEFORE_IT_IS_KNOWN, replace(GAUGES, failed=0, total=0)])
def test_the_line_fits_any_width(gauges):
    done = gauges.succeeded + gauges.failed
    for width in range(1, 200):
        line = tqdm.format_meter(done, gauges.total, 1.0, ncols=width, bar_format=layout(gauges, width))
        assert len(line) <= width


def test_a_narrow_line_keeps_what_is_missed_most():
    assert layout(GAUGES, 30) == "6%|{bar}| 12,345/200,000"
    assert layout(GAUGES, 59) == "6%|{bar}| 12,345/200,000, 3 failed, 82.1/s, 39 min left"
    assert layout(GAUGES, 79).endswith("3 failed, 256 in flight, 82.1/s, $1.23, 39 min left")
    assert layout(GAUGES, 119).endswith(
        "3 failed, 256 in flight, 82.1/s, 41k tok/s, $1.23, held by concurrency, 39 min left"
    )
    assert "held back by concurrency: all 256 in flight" in layout(GAUGES, 159)


def test_failures_are_worth_more_than_their_absence():
    assert "3 failed" in layout(GAUGES, 45)
    assert "failed" not in layout(replace(GAUGES, failed=0), 79)
    assert "0 failed" in layout(replace(GAUGES, failed=0), 159)


@pytest.mark.parametrize(
    ("rate", "told"), [(820.0, "820 tok"), (41_000.0, "41k tok"), (1_290_000.0, "1.3M tok")]
)
def test_rates_are_short_on_the_bar(rate, told):
    assert told in layout(replace(GAUGES, tokens_per_s=rate), 119)


def test_a_job_is_not_at_a_hundred_percent_before_its_end():
    assert layout(replace(GAUGES, succeeded=199_990), 79).startswith("99%|")
    assert layout(replace(GAUGES, succeeded=199_997), 79).startswith("100%|")


def test_the_bar_appears_when_the_total_becomes_known():
    stream = io.StringIO()
    bar = ProgressBar(stream)
    bar.tick(BEFORE_IT_IS_KNOWN)
    assert "%" not in stream.getvalue()
    assert "12,345, 3 failed" in stream.getvalue()
    bar.tick(GAUGES)
    assert "6%|" in stream.getvalue()
    bar.close()


def test_the_bar_starts_no_thread_and_leaves_tqdm_as_it_was():
    threads, interval, lock = threading.active_count(), tqdm.monitor_interval, tqdm.get_lock()
    bar = ProgressBar(Terminal())
    bar.tick(GAUGES)
    assert threading.active_count() == threads
    bar.close()
    assert (tqdm.monitor_interval, tqdm.get_lock()) == (interval, lock)


def test_the_bar_leaves_the_cursor_on_a_line_of_its_own():
    stream = io.StringIO()
    bar = ProgressBar(stream)
    bar.close()
    assert stream.getvalue() == ""
    bar.tick(GAUGES)
    bar.close()
    bar.close()
    assert stream.getvalue().endswith("39 min left\n")
    assert stream.getvalue().count("\n") == 1


def test_the_bar_follows_the_width_of_the_terminal():
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as stream:

        def drawn(columns):
            termios.tcsetwinsize(stream.fileno(), (24, columns))
            bar.tick(GAUGES)
            return screen.read(4096).decode().split("\r")[-1].strip()

        bar = ProgressBar(stream)
        wide, narrow = drawn(120), drawn(60)
        bar.close()
    assert 100 < len(wide) < 120
    assert 40 < len(narrow) < 60


def test_how_often_they_want_to_be_told():
    assert ProgressBar.interval_s == 0.5
    assert ProgressLog.interval_s == 10.0
