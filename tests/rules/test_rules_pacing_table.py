"""Rows of the table that `benchmarks/pacing.py` draws: the real gate and delivery beside one that knows the limit."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from controllers import Batchkit, Ideal
from limits import ROWS
from pacing import run


@pytest.mark.parametrize(
    ("row", "seconds", "workers", "of_ideal", "refused"),
    [
        ("50/s", 120.0, 500, 0.97, 0.01),
        ("5/s", 900.0, 100, 0.97, 0.01),
        ("Retry-After 30", 120.0, 500, 0.97, 0.01),
        ("a refusal counts", 240.0, 500, 0.97, 0.01),
        ("20 in flight", 900.0, 100, 0.95, 0.01),
        ("no limit, 10 ms", 0.9, 256, 0.98, 0.0),
        ("1 % strays", 90.0, 1000, 0.97, 0.02),
        ("50/s, 1 % strays", 240.0, 500, 0.97, 0.03),
    ],
)
def test_nearly_all_that_a_hidden_limit_allows_is_answered_and_next_to_nothing_refused(
    row, seconds, workers, of_ideal, refused
):
    short = replace(ROWS[row], seconds=seconds, workers=workers)
    ideal, ran = (run(make, short, seed=1) for make in (Ideal, Batchkit))
    assert len(ran.answered) >= of_ideal * len(ideal.answered)
    assert ran.refused <= refused * len(ran.answered)


@pytest.mark.parametrize("seed", [9, 14])
def test_a_stray_in_the_wrong_moment_is_not_taken_for_the_limit(seed):
    """Right after a rate was guessed, or halved: each cost a tenth of these jobs once."""
    short = replace(ROWS["50/s, 1 % strays"], seconds=240.0, workers=500)
    ideal, ran = (run(make, short, seed) for make in (Ideal, Batchkit))
    assert len(ran.answered) >= 0.97 * len(ideal.answered)
