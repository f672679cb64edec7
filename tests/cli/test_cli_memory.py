"""What large answers leave is used again."""

import platform
import subprocess
import sys

import pytest

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
    assert faults(kept=True) < faults(kept=False) / 10
