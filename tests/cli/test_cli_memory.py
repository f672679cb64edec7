"""How the process of a run goes about its memory."""

import gc
import platform
import subprocess
import sys

import pytest

from batchkit.cli.memory import rare_collections

ROUNDS = """
import resource
from batchkit.cli.memory import keep_freed_memory

if {kept}:
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        answers = [bytes(100_000) for _ in range(64)]
        del answers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, kept: bool) -> int:
    """How often memory is asked for anew in a hundred rounds of answers, after a hundred others."""
    ran = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(kept=kept)], capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_memory_of_large_answers_is_not_asked_for_anew_with_the_next():
    usual = faults(kept=False)
    if usual < 1000:
        pytest.skip("nothing is given back here anyway, as something lies behind it in the heap")
    assert faults(kept=True) < usual / 10


def test_garbage_is_collected_rarely_during_a_run_and_as_before_after_it():
    before = gc.get_threshold()

    def run() -> None:
        with rare_collections():
            assert gc.get_threshold()[0] > 10 * before[0]
            assert gc.get_freeze_count() > 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
