"""The commands that stand in the pages as proofs have something to run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {each for page in PAGES for each in re.findall(r"`pytest ([^`]+)`", page.read_text(encoding="utf-8"))}
)


def test_each_path_and_each_word_of_a_command_selects_a_test():
    """One collection serves for all; what `-k` selects of it is found here, by the names of tests alone."""
    assert len(COMMANDS) > 20
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    tests = [tuple(line.split("::", maxsplit=1)) for line in collected.splitlines() if "::" in line]
    nothing = []
    for command in COMMANDS:
        paths, _, words = command.partition(" -k ")
        # Other words of pytest's would need another way to look.
        assert re.fullmatch(r"[\w/. ]+", paths), command
        assert re.fullmatch(r'\w+|"\w+( or \w+)*"|', words), command
        names = {path: [name.lower() for file, name in tests if is_in(file, path)] for path in paths.split()}
        wanted = words.strip('"').split(" or ")
        nothing += [
            f"{path} in `pytest {command}`"
            for path in names
            if not any(word in name for word in wanted for name in names[path])
        ]
        nothing += [
            f"{word} in `pytest {command}`"
            for word in wanted
            if not any(word in name for each in names.values() for name in each)
        ]
    assert nothing == []


def is_in(file, path):
    return file == path or file.startswith(f"{path}/")
