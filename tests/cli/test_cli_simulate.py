"""`batchkit simulate`: its options are the simulator's settings, its stdout is one line, signals end it cleanly."""

import argparse
import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from batchkit.cli import simulate
from batchkit.errors import UsageError
from batchkit.simulator.settings import DEFAULT_PORT, SimulatorSettings


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_parser(parser.add_subparsers())
    return parser.parse_args(["simulate", *argv])


@pytest.fixture
def served(monkeypatch):
    """What the command would have served with."""
    given: list[SimulatorSettings] = []
    monkeypatch.setattr(simulate, "serve", lambda settings, **_: given.append(settings))
    return given


def test_without_options_the_settings_are_the_defaults_on_the_commands_own_port(served):
    args = parse()
    assert args.command is simulate.run_simulate
    assert args.command(args) == 0
    assert served == [SimulatorSettings(port=DEFAULT_PORT)]


def test_every_setting_has_its_option(served):
    options = {
        "host": "::1",
        "port": 0,
        "seed": 9,
        "output_tokens": 20.0,
        "output_sigma": 0.1,
        "first_token_s": 0.2,
        "first_token_sigma": 0.3,
        "tokens_per_s": 40.0,
        "tokens_per_s_sigma": 0.5,
        "speed": 6.0,
        "rpm": 7,
        "tpm": 8,
        "max_in_flight": 9,
        "refusal_cost": 3,
        "retry_after_s": 30.0,
        "quota": 10,
        "fault_times": 2,
        "ledger": "ledger.jsonl",
    }
    argv = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    args = parse(
        *argv, "--instant", "--hide-limits", "--refuse-key", "--fault", "500=0.1", "--fault", "cut=0.2"
    )
    args.command(args)
    expected = SimulatorSettings(
        **options, instant=True, hide_limits=True, refuse_key=True, faults={"500": 0.1, "cut": 0.2}
    )
    assert served == [expected]
    assert {*options, "instant", "hide_limits", "refuse_key", "faults"} == set(
        SimulatorSettings.__dataclass_fields__
    )


@pytest.mark.parametrize("words", ["500", "500=", "=x", "500=often"])
def test_a_fault_without_its_share_is_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--fault", words)
    assert caught.value.code == 2
    assert "KIND=SHARE" in capsys.readouterr().err


def test_what_cannot_be_meant_is_a_usage_error():
    args = parse("--fault", "flood=0.1")
    with pytest.raises(UsageError, match="flood"):
        args.command(args)


def test_help_names_each_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert f"(default: {SimulatorSettings().output_tokens})" in text
    assert f"(default: {DEFAULT_PORT})" in text
    assert "requests a minute (default: no limit)" in text


COMMAND = """
import argparse, sys
from batchkit.cli.simulate import add_parser
parser = argparse.ArgumentParser()
add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.command(args))
"""


@pytest.mark.parametrize(("number", "as_json"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_it_says_where_it_listens_answers_and_ends_cleanly_on_a_signal(number, as_json):
    argv = ["simulate", "--port", "0", "--instant", *(["--json"] if as_json else [])]
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with command:
        line = command.stdout.readline()
        if as_json:
            assert json.loads(line) == {"base_url": json.loads(line)["base_url"], "pid": command.pid}
        base_url = json.loads(line)["base_url"] if as_json else line.strip()
        asked = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello!"}]}).encode()
        with urllib.request.urlopen(f"{base_url}/chat/completions", data=asked, timeout=10) as response:
            assert json.load(response)["choices"]
        command.send_signal(number)
        out, err = command.communicate(timeout=10)
    assert command.returncode == 0
    assert out == ""
    assert "Traceback" not in err
    assert base_url in err
