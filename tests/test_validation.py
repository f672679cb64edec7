import gzip
import json
import os
import threading

import pytest

from batchkit.errors import UsageError
from batchkit.validation import validate


def body(custom_id):
    return json.dumps({"custom_id": custom_id, "messages": [{"role": "user", "content": "Hi"}]}).encode()


INPUT = b"\xef\xbb\xbf" + b"\r\n".join(
    [
        body("a"),
        b"",
        body("b"),
        b"{broken",
        body("a"),
        b'{"custom_id":"b","body":{}}',
        body("c"),
        body("c"),
        body("a"),
    ]
)


def expected():
    return {
        "lines": 8,
        "requests": 6,
        "duplicate_custom_ids": [
            {"custom_id": "a", "indexes": [0, 4, 8]},
            {"custom_id": "c", "indexes": [6, 7]},
        ],
    }


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_bad_line_and_every_custom_id_that_comes_twice(tmp_path, pack):
    path = tmp_path / "in.jsonl"
    path.write_bytes(pack(INPUT))
    found = validate(path)
    invalid = found.pop("invalid")
    assert found == expected()
    assert [(each["index"], each["code"]) for each in invalid] == [
        (3, "invalid_request_line"),
        (5, "invalid_request_line"),
    ]
    assert "not valid JSON" in invalid[0]["message"]
    assert "messages" in invalid[1]["message"]


def test_a_pipe_is_read_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(INPUT,))
    writer.start()
    found = validate(path)
    writer.join()
    del found["invalid"]
    assert found == expected()


def test_custom_ids_whose_hashes_collide_are_not_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr("batchkit.validation.hash", lambda _: 7, raising=False)
    path = tmp_path / "in.jsonl"
    path.write_bytes(INPUT)
    assert validate(path)["duplicate_custom_ids"] == expected()["duplicate_custom_ids"]


def test_lines_without_a_custom_id_are_no_duplicates(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"messages":[1]}\n' * 5)
    assert validate(path) == {"lines": 5, "requests": 5, "invalid": [], "duplicate_custom_ids": []}


def test_an_empty_input_is_valid(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n\n")
    assert validate(path) == {"lines": 0, "requests": 0, "invalid": [], "duplicate_custom_ids": []}


def test_no_input_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError):
        validate(tmp_path / "none")
