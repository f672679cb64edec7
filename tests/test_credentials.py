"""The keys a run may use."""

from __future__ import annotations

import os

import pytest

from batchkit.credentials import KEY_VARIABLES, Credentials, keys_within
from batchkit.errors import UsageError
from batchkit.settings import Settings

PORTKEY = {"PORTKEY_API_KEY": "pk-secret"}
OPENAI = {"OPENAI_API_KEY": "sk-secret"}


def test_the_keys_within_a_config_are_found_however_deep():
    config = """{"api_key": "a", "targets": [{"apiKey": "b", "max_tokens": 5, "provider": "x"},
                 {"aws_secret_access_key": "c", "override_params": {"headers": {"Authorization": "d", "e": 1}}}],
                 "virtual_key": "a name", "cache": {"mode": "simple"}, "api_key_note": null}"""
    assert keys_within(Settings(portkey_config=config).portkey_config) == ("a", "b", "c", "d")
    assert keys_within("pc-api_key") == keys_within(None) == ()


def test_both_spellings_of_the_virtual_key():
    assert Credentials.read({"PORTKEY_PROVIDER_VIRTUAL_KEY": "b"}).portkey_virtual_key == "b"
    both = {"PORTKEY_VIRTUAL_KEY": "a", "PORTKEY_PROVIDER_VIRTUAL_KEY": "b"}
    assert Credentials.read(both).portkey_virtual_key == "a"


@pytest.fixture
def key_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "key"
        path.write_bytes(content)
        path.chmod(mode)
        return path

    return write


@pytest.mark.parametrize("content", [b"sk-secret", b"sk-secret\n", b"  sk-secret \r\n\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_key_may_stand_in_a_file_of_its_owners_alone(variable, content, mode, key_file):
    environ = {f"{variable}_FILE": str(key_file(content, mode))}
    assert Credentials.read(environ).keys == ("sk-secret",)


def test_a_link_to_a_key_file_is_as_good_as_the_file(key_file, tmp_path):
    (tmp_path / "link").symlink_to(key_file(b"sk-secret"))
    assert Credentials.read({"OPENAI_API_KEY_FILE": str(tmp_path / "link")}).openai_api_key == "sk-secret"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_a_key_file_that_is_open_to_others_is_refused_with_the_cure(mode, key_file):
    path = key_file(b"sk-secret", mode)
    with pytest.raises(UsageError) as error:
        Credentials.read({"OPENAI_API_KEY_FILE": str(path)})
    assert f"chmod 600 {path}" in str(error.value)
    assert "OPENAI_API_KEY_FILE" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_key_file_of_another_user_is_refused(key_file, monkeypatch):
    path = key_file(b"sk-secret")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        Credentials.read({"OPENAI_API_KEY_FILE": str(path)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"sk-secret\nsk-other", "more than one line"),
        (b"sk-secret other", "more than one line or word"),
        (b"sk-secret\0", "no header can carry"),
        (b"sk-secr\xc3\xa9t", "no header can carry"),
        (b"\xef\xbb\xbfsk-secret", "no header can carry"),
        (b"OPENAI_API_KEY=sk-secret\nOTHER=1\n", "more than one line"),
    ],
)
def test_a_key_file_without_one_key_is_refused_by_its_path(content, reason, key_file):
    path = key_file(content)
    with pytest.raises(UsageError, match=reason) as error:
        Credentials.read({"PORTKEY_API_KEY_FILE": str(path)})
    assert str(path) in str(error.value)
    assert "secr" not in str(error.value)


def test_what_is_no_file_to_read_a_key_from_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, reason in (
        ("fifo", "not a regular file"),
        ("", "not a regular file"),
        ("none", "No such file"),
    ):
        path = tmp_path / name
        with pytest.raises(UsageError, match=reason) as error:
            Credentials.read({"PORTKEY_API_KEY_FILE": str(path)})
        assert str(path) in str(error.value)


@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_key_and_a_key_file_exclude_each_other(variable, key_file):
    environ = {variable: "sk-secret", f"{variable}_FILE": str(key_file(b"sk-secret"))}
    with pytest.raises(UsageError) as error:
        Credentials.read(environ)
    assert f"{variable} and {variable}_FILE" in str(error.value)
    assert "secret" not in str(error.value)
    assert Credentials.read({**environ, variable: " "}).keys == ("sk-secret",)


@pytest.mark.parametrize("variable", KEY_VARIABLES)
@pytest.mark.parametrize(
    "key", ["sk-a\nsecret", "sk-a secret", "sk-sécret", "sk-\udcffsecret", "sk-\x7fsecret"]
)
def test_a_key_that_no_header_can_carry_is_named_and_not_shown(variable, key):
    with pytest.raises(UsageError, match=variable) as error:
        Credentials.read({variable: key})
    assert "cret" not in str(error.value)


def test_no_repr_shows_a_key():
    shown = repr(Credentials.read({**PORTKEY, **OPENAI, "PORTKEY_VIRTUAL_KEY": "vk-secret"}))
    assert "secret" not in shown
