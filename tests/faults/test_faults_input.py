"""Input: each fault is made, and each test's name is what then holds. The numbers are those of the list of faults."""

import fcntl
import gzip
import json
import os
import signal
import sys
import termios
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20


@pytest.fixture
def endpoint(record):
    return record()


@pytest.fixture
def run(command, endpoint, files, tmp_path):
    """Runs the command on an input of these bytes; gives what it printed as JSON."""

    def go(content, *words, code=0):
        path = tmp_path / "requests.jsonl"
        path.write_bytes(content)
        words = ["run", path, "-o", files.results_path, "--base-url", endpoint.base_url, "--json", *words]
        ran = command(*words, code=code)
        assert "Traceback" not in ran.err
        return ran.json

    return go


def sent(endpoint):
    return [json.loads(body) for _, body in endpoint.received]


def counts(summary):
    return summary["requests"]["succeeded"], summary["requests"]["failed"]


def test_fault_18_crlf_a_bom_blank_lines_and_no_last_newline_leave_the_indexes_where_they_are(
    run, files, line
):
    def body(number):
        return line(number).rstrip(b"\n")

    messy = b"\xef\xbb\xbf" + body(0) + b"\r\n\r\n  \t\n" + body(3) + b"\n\n" + body(5) + b"\r\n" + body(6)
    assert counts(run(messy)) == (4, 0)
    assert {each["batchkit"]["index"]: each["custom_id"] for each in files.results} == {
        number: f"request-{number}" for number in (0, 3, 5, 6)
    }
    # Going on finds each where it was.
    assert counts(run(messy)) == (4, 0)


NO_REQUESTS = {
    "broken JSON": b'{"messages": [',
    "not an object": b'["messages"]',
    "a number": b"17",
    "bad UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a lone surrogate": rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "NaN": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "1e400": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e400}',
    "100,000 nested brackets": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


def test_fault_19_a_line_that_is_no_request_fails_with_its_number_and_the_others_run(
    run, endpoint, files, line
):
    content = b"".join(line(number) + bad + b"\n" for number, bad in enumerate(NO_REQUESTS.values()))
    summary = run(content, code=1)
    assert counts(summary) == (len(NO_REQUESTS), len(NO_REQUESTS))
    failed = {each["batchkit"]["index"]: each for each in files.errors}
    assert sorted(failed) == [2 * number + 1 for number in range(len(NO_REQUESTS))]
    for index, each in failed.items():
        assert each["custom_id"] == f"line-{index}"
        assert each["error"]["code"] == "invalid_request_line"
        assert each["response"] is None
    assert len(endpoint.received) == len(NO_REQUESTS)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has its own unit elsewhere")
def test_fault_20_a_line_of_a_gigabyte_meets_the_cap_of_64_mib_in_flat_memory(
    command, endpoint, files, tmp_path, line, in_memory
):
    """Of whatever length: beyond the cap its bytes are only counted."""
    peaks = {}
    for size in (65 * MIB, 1024 * MIB):
        path, results = in_memory / f"{size}.jsonl", tmp_path / f"results-{size}.jsonl"
        with path.open("wb") as stream:
            stream.write(line(0))
            stream.seek(size, os.SEEK_CUR)  # zeros that take no room, and there no time either
            stream.write(b"\n" + line(2))
        process = command.start("run", path, "-o", results, "--base-url", endpoint.base_url)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 1
        made = type(files)(results)
        assert made.indexes == [0, 1, 2]
        (failed,) = made.errors
        assert failed["batchkit"]["index"] == 1
        assert "64 MiB" in failed["error"]["message"]
        peaks[size] = usage.ru_maxrss
        path.unlink()
    assert peaks[1024 * MIB] < peaks[65 * MIB] + 16 * 1024, peaks


def test_fault_20_a_line_of_a_gigabyte_may_also_come_compressed(run, files, line):
    long = gzip.compress(line(0) + bytes(65 * MIB) + b"\n" + line(2))
    assert counts(run(long, code=1)) == (2, 1)
    assert files.errors[0]["batchkit"]["index"] == 1


def test_fault_21_lines_with_equal_custom_ids_are_requests_of_their_own(run, endpoint, files, line):
    assert counts(run(line(7) * 3)) == (3, 0)
    assert len(endpoint.received) == 3
    assert files.indexes == [0, 1, 2]
    assert {each["custom_id"] for each in files.results} == {"request-7"}
    assert len({each["batchkit"]["trace_id"] for each in files.results}) == 3


def test_fault_22_stdin_runs_and_going_on_needs_the_same_bytes_again_and_checks_them(
    command, endpoint, files, line
):
    lines = [line(number) for number in range(12)]
    words = ["run", "-", "-o", files.results_path, "--base-url", endpoint.base_url, "--json"]
    command(*words, "--limit", 5, stdin=b"".join(lines))
    kept = files.results_path.read_bytes()
    edited = b"".join([*lines[:3], line(99), *lines[4:]])
    assert "line 4 " in command(*words, stdin=edited, code=4).err
    assert files.results_path.read_bytes() == kept
    assert len(endpoint.received) == 5
    files.assert_summary_is_a_fold(command(*words, stdin=b"".join(lines)).json, 12)
    assert len(endpoint.received) == 12
    cut = command(*words, stdin=b"".join(lines[:11]), code=4)
    assert "ends at line 11" in cut.err
    assert "an answer to line 12" in cut.err
    assert "ends at line 0" in command(*words, stdin=b"", code=4).err
    assert "ends at line 5" in command(*words, "--limit", 8, stdin=b"".join(lines[:5]), code=4).err
    command(*words, "--limit", 8, stdin=b"".join(lines[:9]))
    assert len(endpoint.received) == 12


def test_fault_22_lines_of_a_pipe_before_an_edited_one_are_answered_and_that_is_said(
    command, endpoint, files, line
):
    lines = [line(number) for number in range(12)]
    words = ["run", "-", "-o", files.results_path, "--base-url", endpoint.base_url, "--json"]
    command(*words, stdin=b"".join(lines[:2] + [b"\n"] * 8 + lines[10:]))
    edited = command(*words, stdin=b"".join([*lines[:10], line(99), lines[11]]), code=4)
    assert "line 11 " in edited.err
    assert "Only lines before it were sent" in edited.err
    assert files.indexes == list(range(12))
    assert len(endpoint.received) == 12


def test_fault_22_a_pipe_with_a_name_is_read_but_once_and_checked_too(
    command, endpoint, files, line, tmp_path
):
    lines = [line(number) for number in range(12)]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = ["run", pipe, "-o", files.results_path, "--base-url", endpoint.base_url, "--json"]

    def run(lines, *more, code=0):
        with ThreadPoolExecutor(1) as writer:
            writer.submit(pipe.write_bytes, b"".join(lines))
            return command(*words, *more, code=code)

    run(lines, "--limit", 5)
    assert "line 4 " in run([*lines[:3], line(99), *lines[4:]], code=4).err
    files.checkpoint_path.unlink(missing_ok=True)
    files.assert_summary_is_a_fold(run(lines).json, 12)
    assert len(endpoint.received) == 12


def test_whoever_writes_into_a_pipe_may_wait_for_an_answer_before_the_next_line(
    command, endpoint, files, line, tmp_path, until
):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def ask():
        with pipe.open("wb", buffering=0) as writing:
            for number in range(5):
                writing.write(line(number))
                until(lambda asked=number + 1: len(endpoint.received) == asked)

    with ThreadPoolExecutor(1) as writer:
        asking = writer.submit(ask)
        ran = command("run", pipe, "-o", files.results_path, "--base-url", endpoint.base_url, "--json")
    asking.result()
    assert counts(ran.json) == (5, 0)


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_a_compressed_input_may_come_through_a_pipe_in_pieces_and_parts(
    packed, command, endpoint, files, line, tmp_path, until
):
    """What is there ends within a part, and behind the last line of one: neither is the end of the input."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def parts():
        for begin in (0, 5, 10):
            lines = b"".join(line(number) for number in range(begin, begin + 5))
            if packed == "gzip":
                packer = zlib.compressobj(wbits=31)
                yield begin + 5, packer.compress(lines) + packer.flush(zlib.Z_SYNC_FLUSH), packer.flush()
            else:
                packer = zstd.ZstdCompressor()
                yield begin + 5, packer.compress(lines, packer.FLUSH_BLOCK), packer.flush(packer.FLUSH_FRAME)

    def is_read(writing):
        return fcntl.ioctl(writing, termios.FIONREAD, bytes(4)) == bytes(4)

    def write():
        with pipe.open("wb", buffering=0) as writing:
            for lines, all_but_its_end, end in parts():
                writing.write(all_but_its_end)
                until(lambda lines=lines: len(endpoint.received) == lines)
                writing.write(end)
                until(lambda: is_read(writing))

    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write)
        ran = command("run", pipe, "-o", files.results_path, "--base-url", endpoint.base_url, "--json")
    writing.result()
    assert counts(ran.json) == (15, 0)
    assert files.indexes == list(range(15))


@pytest.mark.parametrize("lines", [None, 0, 3], ids=["nobody_writes", "nothing_comes", "no_more_comes"])
def test_a_run_that_waits_for_a_pipe_is_ended_by_a_signal(
    lines, command, endpoint, files, line, tmp_path, until
):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = command.start("run", pipe, "-o", files.results_path, "--base-url", endpoint.base_url)
    with ExitStack() as writer:
        if lines is not None:
            writing = writer.enter_context(pipe.open("wb", buffering=0))
            writing.write(b"".join(line(number) for number in range(lines)))
        until(lambda: len(endpoint.received) == (lines or 0) and files.results_path.exists())
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert files.summary["requests"]["succeeded"] == (lines or 0)


def test_of_a_compressed_input_that_was_cut_what_can_be_read_is_answered(
    command, endpoint, files, line, tmp_path
):
    path = tmp_path / "requests.jsonl.gz"
    first, second = (b"".join(line(number) for number in numbers) for numbers in (range(10), range(10, 20)))
    path.write_bytes(gzip.compress(first) + gzip.compress(second)[:-20])
    words = ["run", path, "-o", files.results_path, "--base-url", endpoint.base_url, "--concurrency", 2]
    ran = command(*words, code=3)
    assert "cannot read the input" in ran.err
    assert "Traceback" not in ran.err
    answered = sorted(each["batchkit"]["index"] for each in files.results)
    assert answered == list(range(len(answered)))
    assert 10 <= len(answered) == files.summary["requests"]["succeeded"] < 20
    assert files.summary["status"] == "stopped"
    for nothing_sent in ("validate", "estimate"):
        ran = command(nothing_sent, path, code=2)
        assert "cannot read the input" in ran.err
        assert "Nothing was sent" in ran.err


@pytest.mark.parametrize("content", [b"", b"\n\n \r\n", b"\xef\xbb\xbf"])
def test_fault_23_an_empty_input_ends_with_0_an_empty_output_and_a_summary(content, run, endpoint, files):
    summary = run(content)
    assert (summary["status"], summary["requests"]["total"]) == ("completed", 0)
    assert files.summary == summary
    assert files.results_path.read_bytes() == b""
    assert files.report_path.exists()
    assert endpoint.received == []


STRANGE = [
    "a\r\nx-injected: 1",
    "a\nb",
    "a\0b",
    "x" * 200_000,
    "ж",
    "漢字",
    "e\u0301",
    "\u202egnp",
    "\x1b[2J",
    " a ",
]


@pytest.mark.parametrize("key", ["PORTKEY_API_KEY", None])
def test_fault_24_strange_ids_and_metadata_are_encoded_or_fail_their_line(
    key, command, endpoint, files, tmp_path
):
    """Whatever is sent, no header is one that nobody meant, and its bytes are ASCII without control characters."""
    fields = [
        *({"trace_id": text} for text in STRANGE),
        *({"span_name": text} for text in STRANGE),
        *({"metadata": {"note": text}} for text in STRANGE),
        *({"metadata": {text: "note"}} for text in STRANGE),
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({"body": body, "portkey": each}) + "\n" for each in fields))
    if key is not None:
        command.environ[key] = "a-key"
    words = ["run", path, "-o", files.results_path, "--base-url", endpoint.base_url, "--json"]
    ran = command(*words, code=None)
    assert ran.code in (0, 1)
    assert "Traceback" not in ran.err
    succeeded, failed = counts(ran.json)
    assert succeeded + failed == len(fields)
    assert succeeded == len(endpoint.received)
    assert {each["error"]["code"] for each in files.errors} <= {"invalid_request_line", "invalid_header"}
    for headers, _ in endpoint.received:
        assert "x-injected" not in headers
        assert all(value.isascii() and value.isprintable() for value in headers.values())
    # Text of other alphabets is worth sending: in metadata, which is JSON, it can be.
    if key is not None:
        notes = [
            json.loads(headers.get("x-portkey-metadata", "{}")).get("note")
            for headers, _ in endpoint.received
        ]
        assert {"ж", "漢字"} <= set(notes)


ELSEWHERE = [
    "/v1/embeddings",
    "http://127.0.0.1:1/v1/chat/completions",
    "//evil",
    "//evil/v1/chat/completions",
]
ELSEWHERE += [
    "../admin",
    "/v1/chat/completions/../../admin",
    "/v1/chat/completions?x=1",
    "",
    None,
    7,
    "/v1/../v1",
]


def test_fault_25_a_url_elsewhere_fails_its_line_and_nothing_is_sent(run, endpoint, files):
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    records = [{"custom_id": "x", "method": "POST", "url": url, "body": body} for url in ELSEWHERE]
    summary = run("".join(json.dumps(each) + "\n" for each in records).encode(), code=1)
    assert counts(summary) == (0, len(ELSEWHERE))
    assert {each["error"]["code"] for each in files.errors} == {"invalid_request_line"}
    assert endpoint.received == []


def test_fault_26_api_base_api_key_and_headers_in_a_body_never_change_where_or_how_it_is_sent(
    command, record, files, tmp_path
):
    endpoint, evil = record(), record()
    plain = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    tricks = {
        "api_base": evil.base_url,
        "base_url": evil.base_url,
        "api_key": "stolen",
        "headers": {"Authorization": "Bearer stolen", "X-Injected": "1"},
        "extra_headers": {"X-Injected": "1"},
        "url": evil.base_url,
        "timeout": 0.001,
    }
    shapes = [
        plain,
        plain | tricks,
        {"body": plain | tricks},
        {"body": plain, **tricks, "url": "/v1/chat/completions"},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in shapes))
    command.environ["OPENAI_API_KEY"] = "mine"
    words = ["run", path, "-o", files.results_path, "--base-url", endpoint.base_url, "--json"]
    command(*words, code=None)
    assert evil.received == []
    assert len(endpoint.received) == 4
    alike = [
        {name: value for name, value in headers.items() if name not in CHANGING}
        for headers, _ in endpoint.received
    ]
    assert alike[0]["authorization"] == "Bearer mine"
    assert all(headers == alike[0] for headers in alike)


CHANGING = {"content-length", "traceparent", "x-client-request-id"}
"""The headers that differ from attempt to attempt."""
