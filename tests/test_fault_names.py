"""Each fault that batchkit survives has a test that makes it and that bears its number in its name."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FAULTS = {
    1: "kill -9 at any moment",
    2: "kill inside a write",
    3: "power loss",
    4: "a flipped bit in mid-file",
    5: "output cut short by hand",
    6: "checkpoint missing, broken, of another version",
    7: "checkpoint ahead of the output",
    8: "disk full, quota, EFBIG",
    9: "disk full, then SIGTERM",
    10: "a short write",
    11: "EIO or a failing fsync",
    12: "output folder removed",
    13: "output is a fifo, /dev/full, read-only or the input itself",
    14: "a second process on the job, two jobs on one output",
    15: "input edited",
    16: "input longer than before",
    17: "resumed with another model, endpoint or body defaults",
    18: "CRLF, BOM, blank lines, no last newline",
    19: "a line that is no request",
    20: "a line of gigabytes",
    21: "equal custom_ids",
    22: "stdin",
    23: "empty input",
    24: "strange trace ids and metadata",
    25: "a url elsewhere",
    26: "api_base, api_key, headers inside a body",
    27: "reset, cut body, cut chunk",
    28: "a malformed 200",
    29: "an odd Retry-After",
    30: "quota gone in mid-run",
    31: "401, or no such model, at the first request",
    32: "network gone for ten minutes",
    33: "a server that never answers, or sends now and then a byte",
    34: "gzip bomb",
    35: "redirects",
    36: "64 KB header",
    37: "idle connection closed by the server",
    38: "expired, self-signed, wrong-host TLS",
    39: "usage null, negative, fractional, huge, missing",
    40: "64 file descriptors",
    41: "slow disk",
    42: "signals, stdout closed",
    43: "clock set back, machine asleep for an hour",
    44: "the writer dies",
    45: "report or progress bar crashes",
    46: "a key in the environment",
    47: "model output with script, ESC sequences, bidi marks",
    48: "--max-cost",
}


@cache
def numbers():
    """How many tests bear each number; `08_to_11` is four of them."""
    found = dict.fromkeys(FAULTS, 0)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = getattr(node, "name", "")
            match = re.match(r"test_fault_(\d\d)(?:_to_(\d\d))?_[a-z0-9]", name)
            assert (match is None) == (not name.startswith("test_fault_")), f"{path.name}: {name}"
            if match is not None:
                for number in range(int(match[1]), int(match[2] or match[1]) + 1):
                    assert number in found, f"{path.name}: {name} has a number that is no fault's"
                    found[number] += 1
    return found


@pytest.mark.parametrize("number", FAULTS, ids=[f"{number}: {fault}" for number, fault in FAULTS.items()])
def test_each_fault_has_a_test_that_bears_its_number(number):
    assert numbers()[number] >= 1


def test_what_the_promises_name_is_there():
    """`-k` with a number that no test bears would show nothing, and pass."""
    promises = (TESTS.parent / "docs" / "promises.md").read_text(encoding="utf-8")
    named = {int(number) for number in re.findall(r"fault_(\d\d)", promises)}
    assert named
    assert named <= {number for number, count in numbers().items() if count}
