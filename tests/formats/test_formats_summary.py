import json
from decimal import Decimal

import pytest

from batchkit.formats.summary import Figures, ModelFigures, OutcomeFigures, Totals, build, dumps
from batchkit.formats.summary_text import render, what_next
from batchkit.formats.words import amount, dollars, duration, moment, printable
from batchkit.records import Usage

NOTHING = {
    "usage": {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "unknown": 0,
    },
    "cost": 0.0,
}
NO_OUTCOMES = {
    "results": {"requests": 0, **NOTHING},
    "failures": {"requests": 0, **NOTHING},
    "retries": {"attempts": 0, **NOTHING},
}


def totals(**change):
    figures = {
        "succeeded": 7,
        "failed": 2,
        "attempts": 12,
        "by_reason": {"timeout": 1, "rate_limited": 2},
        "in_flight_at_kills": 0,
        "truncated": 1,
        "models": {
            "gpt-4o-mini-2024-07-18": ModelFigures(
                5, Usage(629_360, 400, 629_760, 1000, 30), Decimal("0.0123")
            ),
            "gpt-4o": ModelFigures(2, Usage(10, 20, 30), Decimal("0.0005")),
        },
        "known_cost": Decimal("0.0128"),
        "price_list": "genai-prices 0.2.3",
        "price_list_date": "2026-11-10",
        "latency_s": (0.5, 1.0, 2.0, 12.0),
        "errors": {"context_length_exceeded": (2, "request-17")},
        "started_at": 1763820000.0,
        "finished_at": 1763820090.0,
        "active_s": 45.0,
    }
    return Totals(**{**figures, **change})


def summary(*, status="completed", stop_reason=None, requests=9, **change):
    return build(totals(**change), job_id="job-1", status=status, stop_reason=stop_reason, requests=requests)


def test_the_summary_has_the_shape_that_was_promised():
    assert summary() == {
        "job_id": "job-1",
        "status": "completed",
        "stop_reason": None,
        "simulated": False,
        "requests": {"total": 9, "succeeded": 7, "failed": 2, "pending": 0, "truncated": 1, "from_cache": 0},
        "attempts": {
            "total": 12,
            "retried": 3,
            "by_reason": {"timeout": 1, "rate_limited": 2},
            "in_flight_at_kills": 0,
            "maybe_billed": 0,
            "gateway_retries": 0,
        },
        "usage": {
            "prompt_tokens": 629_370,
            "completion_tokens": 420,
            "total_tokens": 629_790,
            "cached_tokens": 1000,
            "reasoning_tokens": 30,
            "unknown": 0,
        },
        "cost": {
            "currency": "USD",
            "total": 0.0128,
            "unpriced_models": [],
            "price_list": {"name": "genai-prices 0.2.3", "date": "2026-11-10"},
        },
        "outcomes": NO_OUTCOMES,
        "models": {
            "gpt-4o-mini-2024-07-18": {
                "requests": 5,
                "usage": {
                    "prompt_tokens": 629_360,
                    "completion_tokens": 400,
                    "total_tokens": 629_760,
                    "cached_tokens": 1000,
                    "reasoning_tokens": 30,
                    "unknown": 0,
                },
                "cost": 0.0123,
                "outcomes": NO_OUTCOMES,
            },
            "gpt-4o": {
                "requests": 2,
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 20,
                    "total_tokens": 30,
                    "cached_tokens": 0,
                    "reasoning_tokens": 0,
                    "unknown": 0,
                },
                "cost": 0.0005,
                "outcomes": NO_OUTCOMES,
            },
        },
        "latency_s": {"p50": 0.5, "p90": 1.0, "p99": 2.0, "max": 12.0},
        "throughput": {"requests_per_s": 0.2, "tokens_per_s": 13995.3333},
        "errors": {"context_length_exceeded": {"count": 2, "example": "request-17"}},
        "time": {"started_at": 1763820000.0, "finished_at": 1763820090.0, "active_s": 45.0},
    }


def test_an_unpriced_model_leaves_no_total_but_what_is_known():
    models = {"mine": ModelFigures(1, Usage(1, 1, 2), None)}
    told = summary(unpriced_models=("mine",), models=models)
    assert told["cost"]["total"] is None
    assert told["cost"]["known_total"] == 0.0128
    assert told["cost"]["unpriced_models"] == ["mine"]
    assert told["models"]["mine"]["cost"] is None


def test_what_is_not_known_is_null():
    told = build(Totals(0, 0, 0), job_id="j", status="running", stop_reason=None, requests=None)
    assert told["requests"]["total"] is told["requests"]["pending"] is None
    assert told["latency_s"] == {"p50": None, "p90": None, "p99": None, "max": None}
    assert told["throughput"] == {"requests_per_s": None, "tokens_per_s": None}
    assert told["time"]["started_at"] is None
    assert "price_list" not in told["cost"]
    assert render(told).startswith("job j: running\n")


def test_the_file_is_indented_json_with_a_newline():
    written = dumps(summary())
    assert json.loads(written) == summary()
    assert written.endswith(b"}\n")
    assert b'\n  "job_id"' in written


def test_the_text_says_what_happened():
    assert render(summary(simulated=True), width=100) == (
        "simulated job job-1: completed\n"
        "  requests    7 of 9 done, 2 failed, 0 pending, 1 cut at their length limit\n"
        "  attempts    12 in all, 3 repeated: 2 rate_limited, 1 timeout\n"
        "  tokens      629,370 prompt (1,000 cached), 420 completion (30 reasoning)\n"
        "  cost        $0.0128 (list prices; simulated run: nothing was billed)\n"
        "  models      gpt-4o-mini-2024-07-18: 5 requests, 629,760 tokens, $0.0123\n"
        "              gpt-4o: 2 requests, 30 tokens, $0.0005\n"
        "  latency     p50 0.50 s, p90 1.00 s, p99 2.00 s, max 12.0 s\n"
        "  throughput  0.20 requests/s, 13,995 tokens/s\n"
        "  time        45 s at work, from 2025-11-22 14:00:00 UTC, to 2025-11-22 14:01:30 UTC\n"
        "  errors      2 context_length_exceeded, such as request-17\n"
        "\n"
        "The failures stand in the errors file; the same command with --retry-failed asks them once more.\n"
    )


@pytest.mark.parametrize("width", [60, 80])
def test_the_text_fits_the_terminal(width):
    assert max(len(line) for line in render(summary(), width=width).splitlines()) <= width


def test_the_text_names_models_without_a_price_and_never_calls_them_free():
    nothing = render(summary(unpriced_models=("mine", "yours"), known_cost=Decimal(0)))
    assert "cost        no known price for mine, yours\n" in nothing
    assert "$0.00 " not in nothing
    some = render(summary(unpriced_models=("mine",)))
    assert "cost        $0.0128 for what has a price (list prices), no known price for mine\n" in some


def test_a_model_whose_answers_do_not_say_what_they_took_is_not_said_to_have_no_price():
    silent = ModelFigures(3, Usage(), None, unknown=3)
    told = summary(models={"silent": silent}, unpriced_models=("silent", "mine"), known_cost=Decimal(0))
    assert "cost        no known price for mine, tokens not told by silent\n" in render(told)


def test_a_cap_that_the_answers_themselves_have_passed_is_said_to_be_passed():
    told = summary(status="stopped", stop_reason="max_cost", max_cost=Decimal("0.01"))
    assert "$0.0128 (list prices), past $0.01" in render(told)
    assert "Stopped: more is spent than --max-cost." in render(told, width=200)
    kept = summary(status="stopped", stop_reason="max_cost", max_cost=Decimal("0.02"))
    assert "never more than $0.02" in render(kept)
    assert "Stopped before --max-cost could be passed" in render(kept, width=200)


def test_what_failures_and_retries_cost_is_told_apart():
    outcomes = OutcomeFigures(
        Figures(7, Usage(600_000, 400, 600_400), 0, Decimal("0.0113"), Decimal("0.0113")),
        Figures(2, Usage(29_370, 10, 29_380), 1, None, Decimal("0.001")),
        Figures(1, Usage(0, 10, 10), 0, Decimal("0.0005"), Decimal("0.0005")),
    )
    told = summary(outcomes=outcomes)
    assert told["outcomes"]["failures"] == {
        "requests": 2,
        "usage": {
            "prompt_tokens": 29_370, "completion_tokens": 10, "total_tokens": 29_380, "cached_tokens": 0,
            "reasoning_tokens": 0, "unknown": 1,
        },
        "cost": None,
        "known_cost": 0.001,
    }  # fmt: skip
    assert told["outcomes"]["retries"]["attempts"] == 1
    assert "known_cost" not in told["outcomes"]["results"]
    assert "  of which    results $0.0113 (7), failures $0.001 + ? (2), retries $0.0005 (1)\n" in render(told)
    free = OutcomeFigures(Figures(7, Usage(5), 0, Decimal("0.01"), Decimal("0.01")))
    assert "of which" not in render(summary(outcomes=free))


def test_what_may_have_been_billed_besides_and_what_a_batch_would_have_cost_are_said():
    told = summary(maybe_cost=Decimal("0.25"), batch_cost=Decimal("0.0064"))
    assert told["cost"]["maybe_cost"] == 0.25
    assert told["cost"]["batch_total"] == 0.0064
    said = "$0.0128 (list prices), up to $0.2500 more may have been billed, $0.0064 at the provider's batch price"
    assert said in render(told, width=200)
    assert not {"maybe_cost", "batch_total"} & set(summary()["cost"])
    nothing_known = summary(maybe_cost=Decimal("0.25"), unpriced_models=("mine",), known_cost=Decimal(0))
    assert "no known price for mine, up to $0.2500 more may have been billed" in render(nothing_known)


def test_a_cost_without_all_usage_is_a_lower_bound():
    assert "at least $0.0128" in render(summary(unknown_usage=3))
    assert "not known of 3 answers" in render(summary(unknown_usage=3))


GROK = ModelFigures(1, Usage(32, 9, 135, 0, 94), Decimal("0.0002"))
SMALLER = ModelFigures(1, Usage(500, 50, 5), Decimal("0.0001"))
"""A total that is less than its parts."""


def test_tokens_in_the_totals_alone_are_told_and_make_the_cost_a_lower_bound():
    told = render(summary(models={"grok-4": GROK, "small": SMALLER}, known_cost=Decimal("0.0003")))
    assert "59 completion (94 reasoning), 94 more in the totals alone (in no cost)\n" in told
    assert "cost        at least $0.0003 (list prices)" in told
    assert "grok-4: 1 requests, 135 tokens, at least $0.0002\n" in told
    assert "small: 1 requests, 5 tokens, $0.0001\n" in told
    partial = render(summary(models={"grok-4": GROK}, unpriced_models=("mine",)))
    assert "cost        at least $0.0128 for what has a price" in partial
    less = render(summary(models={"small": SMALLER}))
    assert "totals alone" not in less
    assert "at least" not in less


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"failed": 0}, "Every request has its result."),
        ({}, "--retry-failed"),
        (
            {"status": "stopped", "stop_reason": "insufficient_quota"},
            "Stopped: insufficient_quota. Nothing is lost",
        ),
        ({"status": "interrupted"}, "the same command goes on"),
        ({"status": "running"}, "The job is running"),
    ],
)
def test_the_text_ends_with_what_to_do_next(change, word):
    assert word in what_next(summary(**change))
    assert render(summary(**change), width=1000).endswith(what_next(summary(**change)) + "\n")


def test_nothing_that_came_from_outside_reaches_the_terminal_as_it_is():
    evil = "a\x1b[2J\u202e\r\nb"
    told = build(
        totals(
            models={evil: ModelFigures(1, Usage(), None), "b": ModelFigures(1, Usage(), None)},
            unpriced_models=(evil,),
            errors={evil: (1, evil)},
            by_reason={evil: 1},
        ),
        job_id=evil,
        status="stopped",
        stop_reason=evil,
        requests=9,
    )
    assert all(char.isprintable() or char == "\n" for char in render(told))
    assert r"a\x1b[2J\u202e\x0d\x0ab" in render(told)


def test_text_that_does_no_harm_is_left_alone():
    assert printable("한국어 é 🎉") == "한국어 é 🎉"
    assert printable("\x00\u200b\U000e0041") == r"\x00\u200b\U000e0041"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 s"), (2.34, "2.3 s"), (9.7, "10 s"), (59.6, "1 min"), (83, "1 min 23 s"), (3600, "1 h"),
     (7500, "2 h 5 min"), (190_800, "2 d 5 h")],
)  # fmt: skip
def test_durations_have_two_units(seconds, told):
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "$0.00"), (0.0000123, "$0.0000123"), (0.0946, "$0.0946"), (0.094644, "$0.0946"), (0.5, "$0.5000"),
     (1.234, "$1.23"), (12345.6, "$12,345.60")],
)  # fmt: skip
def test_small_amounts_of_money_are_not_rounded_away(value, told):
    assert dollars(value) == told


def test_amounts_and_moments():
    assert [amount(value) for value in (0.812, 12.34, 41_000.4)] == ["0.81", "12.3", "41,000"]
    assert moment(1763820000.9) == "2025-11-22 14:00:00 UTC"


def test_what_a_gateway_added_or_saved_is_said():
    said = render(summary(gateway_retries=4, maybe_billed=3, from_cache=2))
    assert "4 more by the gateway itself" in said
    assert "3 without an answer that may have been billed" in said
    assert "2 from the gateway's cache, not billed" in said
    assert "gateway" not in render(summary())
