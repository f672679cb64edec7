from decimal import Decimal

from batchkit.formats.breakdown import GroupFigures, build_breakdown, render_breakdown
from batchkit.formats.summary import Figures
from batchkit.records import Usage

BLUE = GroupFigures(
    7, 2, 11, Figures(9, Usage(1200, 30, 1230, 4, 5), 0, Decimal("0.0123"), Decimal("0.0123"))
)
RED = GroupFigures(1, 0, 1, Figures(1, Usage(5000, 1, 5001), 0, None, Decimal("0.5")))
NONE = GroupFigures(2, 0, 2, Figures(2, Usage(10), 1, Decimal("0.001"), Decimal("0.001")))


def rendered(groups):
    return render_breakdown(build_breakdown("metadata.team", groups), none="(none)")


def test_a_group_has_the_shape_that_was_promised():
    assert build_breakdown("metadata.team", {"blue": BLUE, "red": RED}) == {
        "metadata.team": {
            "blue": {
                "requests": 9,
                "succeeded": 7,
                "failed": 2,
                "attempts": 11,
                "usage": {
                    "prompt_tokens": 1200, "completion_tokens": 30, "total_tokens": 1230, "cached_tokens": 4,
                    "reasoning_tokens": 5, "unknown": 0,
                },
                "cost": 0.0123,
            },
            "red": {
                "requests": 1,
                "succeeded": 1,
                "failed": 0,
                "attempts": 1,
                "usage": {
                    "prompt_tokens": 5000, "completion_tokens": 1, "total_tokens": 5001, "cached_tokens": 0,
                    "reasoning_tokens": 0, "unknown": 0,
                },
                "cost": None,
                "known_cost": 0.5,
            },
        }
    }  # fmt: skip


def test_the_table_has_the_groups_with_most_tokens_first():
    assert rendered({"blue": BLUE, "red": RED, "(none)": NONE}) == (
        "metadata.team  requests  failed  prompt  completion             cost\n"
        "red                   1       0   5,000           1      $0.5000 + ?\n"
        "blue                  9       2   1,200          30          $0.0123\n"
        "(none)                2       0      10           0  at least $0.001\n"
    )


def test_a_group_with_tokens_in_the_totals_alone_costs_at_least_what_is_told():
    grok = GroupFigures(
        1, 0, 1, Figures(1, Usage(32, 9, 135, 0, 94), 0, Decimal("0.0002"), Decimal("0.0002"))
    )
    assert rendered({"grok": grok}).endswith("  at least $0.0002\n")


def test_a_key_that_no_request_has_is_said_so():
    assert rendered({"(none)": NONE}) == rendered({}) == "No request of the job has metadata.team.\n"


def test_a_long_table_is_cut_and_says_so():
    lines = rendered({f"team-{number:03}": BLUE for number in range(60)}).splitlines()
    assert len(lines) == 1 + 50 + 1
    assert lines[-1] == "… and 10 more; --json tells all"


def test_nothing_that_came_from_outside_reaches_the_terminal_as_it_is():
    told = rendered({"a\x1b[2J\u202e\n" + "b" * 99: BLUE, "(none)": NONE})
    assert all(char.isprintable() or char == "\n" for char in told)
    assert max(map(len, told.splitlines())) < 100
