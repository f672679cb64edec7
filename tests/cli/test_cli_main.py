"""What the command does around a run."""

from __future__ import annotations

import gc

import pytest

from batchkit.cli import main


def test_garbage_is_collected_rarely_during_a_run_and_as_before_after_it():
    before = gc.get_threshold()

    def run() -> None:
        with main._rare_collections():
            assert gc.get_threshold()[0] > 10 * before[0]
            assert gc.get_freeze_count() > 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
