"""What is written for users is true: the commands run, and each flag, code and promised name is told."""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import batchkit
from batchkit.cli.args import add_run_flags, settings_from
from batchkit.cli.main import _parser
from batchkit.formats.prices import decode_prices
from batchkit.records import FailureKind
from batchkit.simulator.settings import FaultKind

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path):
    """A folder with the samples in it, as a newcomer has it."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    return tmp_path


def test_the_readmes_commands_run_in_their_order(checkout):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    commands = [
        line.removeprefix("$ ").replace("8000", port)
        for block in blocks("console")
        for line in block.splitlines()
    ]
    assert len(commands) >= 9
    names = ("PORTKEY_", "OPENAI_", "BATCHKIT_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    simulators = []
    try:
        for command in commands:
            if command.startswith("batchkit simulate"):
                started = subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=checkout,
                    env=environ,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                simulators.append(started)
                assert port.encode() in started.stdout.readline()
            elif command.startswith("python samples/") or (
                command.startswith("jq") and not shutil.which("jq")
            ):
                continue  # the samples have a test of their own; jq is not everywhere
            else:
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=checkout,
                    env=environ,
                    capture_output=True,
                    check=False,
                    timeout=60,
                )
                assert done.returncode == 0, (command, done.stderr.decode())
    finally:
        for simulator in simulators:
            with simulator:
                simulator.terminate()
    answers, run = blocks("python")
    assert run_python(answers, checkout, environ).count("\n") >= 300
    assert "'succeeded': 20" in run_python(run, checkout, environ)


def run_python(code, folder, environ):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, check=True, capture_output=True, text=True
    ).stdout


def subcommands():
    (choices,) = (
        action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return choices


def test_each_command_and_each_flag_is_told():
    for name, parser in subcommands().items():
        assert f"`batchkit {name}" in REFERENCE
        for action in parser._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert re.search(rf"`{option}\b", REFERENCE), (name, option)


def test_no_flag_is_told_that_is_not_there():
    known = {
        option
        for parser in subcommands().values()
        for each in parser._actions
        for option in each.option_strings
    }
    known |= {"--version"}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", REFERENCE))
    assert told <= known


def test_the_defaults_that_are_told_are_those_of_the_program():
    text = subcommands()["run"].format_help()
    for flag, default in (("--concurrency", "256"), ("--timeout", "600"), ("--max-attempts", "6")):
        assert re.search(rf"{flag} \S+\s[^(]*\(default {default}\)", text)
        assert re.search(rf"^\| `{flag} \S+ \| {default} \|", REFERENCE, re.MULTILINE)


def test_each_reason_and_fault_is_told():
    for word in {*FailureKind, *FaultKind}:
        assert f"`{word}`" in REFERENCE, word


def test_each_flag_is_a_keyword_but_those_of_which_it_is_told():
    (told,) = re.findall(r"Every flag but ((?:`[a-z-]+`(?:, | and )?)+) is a keyword", README)
    flags = {
        option.removeprefix("--").replace("-", "_")
        for action in subcommands()["run"]._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    keywords = {"output", *batchkit.RunSettings.__annotations__}
    assert flags - keywords == set(re.findall(r"`--([a-z-]+)`", told))
    assert keywords <= flags


def tables_of_the_reference():
    return re.findall(r"^```toml\n(.*?)^```$", REFERENCE, re.MULTILINE | re.DOTALL)


def test_the_example_of_a_price_file_is_one_and_has_every_key():
    _, example = tables_of_the_reference()
    (price,) = decode_prices(example.encode()).values()
    with pytest.raises(ValueError, match=re.escape(", ".join(price))):
        decode_prices(b"[m]\nx = 1")


def test_each_field_of_an_estimate_is_told(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("")
    part = REFERENCE.partition("## `batchkit estimate`")[2].partition("\n## ")[0]
    for name in batchkit.estimate(path, progress="off"):
        assert f"`{name}`" in part, name


def test_the_example_of_a_settings_file_is_one(tmp_path):
    example, _ = tables_of_the_reference()
    path = tmp_path / "settings.toml"
    path.write_text(example)
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    settings = settings_from(parser.parse_args(["--settings", str(path)]), {})
    assert settings.portkey_metadata == {"team": "emea"}
    assert settings.rpm == tomllib.loads(example)["rpm"]


def test_each_field_of_the_summary_is_told(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    summary = batchkit.run(path, tmp_path / "out.jsonl", base_url="http://127.0.0.1:9/v1", progress="off")
    part = REFERENCE.partition("## Summary")[2].partition("## Error codes")[0]
    for name in summary:
        assert f"`{name}`" in part, name
    assert json.dumps(summary)


def test_the_readme_links_to_files_that_are_there():
    for target in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_version_stands_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {batchkit.__version__.partition('.dev')[0]}" in changelog
