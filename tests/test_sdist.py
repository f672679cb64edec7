"""Whoever has the source archive alone can do what a checkout can."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (unpacked,) = folder.glob("*/")
    return unpacked


def test_the_archives_tests_find_what_they_import(unpacked):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_make_finds_in_the_archive_what_it_installs_from(unpacked):
    done = subprocess.run(
        ["make", "-n", "check", "bench"],
        cwd=unpacked,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "requirements.lock" in done.stdout


@pytest.mark.parametrize("name", ["run", "gateway/package.json", "litellm/requirements.txt"])
def test_ci_can_be_run_from_the_archive(unpacked, name):
    assert (unpacked / ".ci" / name).is_file()
