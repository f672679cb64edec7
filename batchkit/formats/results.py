r"""Outcomes to output lines, and back.

A line is OpenAI Batch output with one object more:

    {"id":"batch_req_…","custom_id":"a","response":{"status_code":200,"request_id":"…","body":{…}},"error":null,
     "batchkit":{"index":0,"input_crc32":"…","job_id":"…","trace_id":"…","attempts":1,"latency_s":0.81,
                 "finished_at":1763820000.1,"crc32":"1f2e3d4c"}}

- `crc32` is the last value of the line and covers every byte before the comma in front of it, so a line is checked by
  comparing its bytes, without reading any JSON.
- `"batchkit":{"index":` is found from the end of the line: quotes within strings are escaped, and behind the provider's
  body stand only our own keys, so its last appearance is the true one. (`defaults`, which holds names of the user's, is
  therefore kept as a string of JSON, and `metadata`, which does too, has texts alone for values.)
- The provider's body is kept as the bytes that came, but for line breaks between its tokens.
- The lines are the only record of a job: `input_crc32` finds an edited input, `run` (in the first line that a run
  writes) says what the run was started with, and everything in a summary is a sum over lines.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from hashlib import blake2b
from itertools import repeat
from math import inf
from operator import itemgetter
from typing import Any, Final
from zlib import crc32

import orjson
from msgspec import Struct
from msgspec.structs import asdict

from batchkit.formats.completions import read_answer
from batchkit.formats.over_time import LIMITS, whole
from batchkit.records import (
    Answer,
    Billed,
    Failure,
    FailureKind,
    FoundLimit,
    Outcome,
    Reply,
    RunHeader,
    Usage,
)

__all__ = [
    "BEGINNING_BYTES",
    "LINE_BEGINS",
    "LINE_ENDS",
    "BrokenLineError",
    "OutputLine",
    "begins_line",
    "check_lines",
    "decode",
    "encode",
    "headed_lines",
    "is_whole",
    "run_from_json",
    "run_to_json",
    "scan_lines",
]

LINE_BEGINS: Final = b'{"id":"batch_req_'
BEGINNING_BYTES: Final = len(LINE_BEGINS) + 22
"""So many of a line's bytes tell it from a line of OpenAI's, whose ids are as long as ours and hold no index."""
_BEGUN: Final = re.compile(re.escape(LINE_BEGINS) + rb"(?:[0-9a-f]{0,15}|[0-9a-f]{16}0{0,6})")
_BEGIN: Final = LINE_BEGINS + b'%b%016x","custom_id":%b,"response":'
_END: Final = b',"error":%b,"batchkit":%b'
_ANSWERED: Final = _BEGIN + b'{"status_code":%d,"request_id":%b,"body":%b}' + _END
_UNANSWERED: Final = _BEGIN + b"null" + _END
_SEAL: Final = b',"crc32":"'
_SEAL_SIZE: Final = len(_SEAL) + 8 + len(b'"}}')
_BODY: Final = b',"body":'
_RUN: Final = b',"run":{'
LINE_ENDS: Final = b',"batchkit":{"index":'
"""What stands in every line before what is batchkit's own."""
_INPUT_CRC32: Final = b',"input_crc32":"'
_INDEX: Final = re.compile(rb'\d+,"input_crc32":"[0-9a-f]{8}"')
"""What stands behind `LINE_ENDS`."""
_BRACE: Final = ord("}")
_NOTHING: Final = Decimal(0)
_YEAR_10000: Final = 253_402_300_800
"""In Unix time: what is later has no date."""
_SEAL_OF: Final = itemgetter(slice(-_SEAL_SIZE - 1, None))
_COVERED_OF: Final = itemgetter(slice(-_SEAL_SIZE - 1))
"""Of a line with its newline: what its checksum stands in, and what it covers."""


class BrokenLineError(ValueError):
    """The line is not one that `encode` wrote; `at` is its place among several."""

    def __init__(self, message: str, at: int = 0) -> None:
        super().__init__(message)
        self.at = at


class OutputLine(Struct, frozen=True, gc=False):
    """What one line of the output says. `run` is None but in the first line that a run wrote."""

    outcome: Outcome
    job_id: str
    run: RunHeader | None = None


def encode(line: OutputLine) -> bytes:
    """The line's bytes, with the newline. Its id, unique among jobs, is made of the job's id and the index."""
    outcome = line.outcome
    answer = outcome.answer
    meta: dict[str, Any] = {
        "index": outcome.index,
        "input_crc32": outcome.input_crc32.to_bytes(4).hex(),
        "job_id": line.job_id,
        "trace_id": outcome.trace_id,
    }
    # Objects stand before what is in every line: one at the end is taken for a run header until it is read.
    if outcome.metadata:
        meta["metadata"] = outcome.metadata
    if outcome.billed:
        meta["billed"] = [{"model": each.model, "usage": asdict(each.usage)} for each in outcome.billed]
    if outcome.limits:
        meta["limits"] = [_limit_to_json(each) for each in outcome.limits]
    meta["attempts"] = outcome.attempts
    meta["latency_s"] = outcome.latency_s
    meta["finished_at"] = outcome.finished_at
    if outcome.retries:
        meta["retries"] = outcome.retries
    if outcome.maybe_billed:
        meta["maybe_billed"] = outcome.maybe_billed
    if outcome.gateway_retries:
        meta["gateway_retries"] = outcome.gateway_retries
    if outcome.maybe_cost:
        meta["maybe_cost"] = str(outcome.maybe_cost)
    error = b"null"
    if isinstance(answer, Failure):
        meta["reason"] = answer.kind.value
        error = orjson.dumps({"code": answer.code, "message": answer.message})
    elif answer.finish_reason != "stop" or answer.status != 200 or answer.from_cache:
        flags = [
            name
            for name, raised in (
                ("truncated", answer.truncated),
                ("guardrail", answer.status == 246),
                ("from_cache", answer.from_cache),
            )
            if raised
        ]
        if flags:
            meta["flags"] = flags
    if line.run is not None:
        # The last, where `headed_lines` looks for it.
        meta["run"] = run_to_json(line.run)
    digest, custom_id, written = (
        _job_digest(line.job_id),
        orjson.dumps(outcome.custom_id),
        orjson.dumps(meta)[:-1],
    )
    if answer.status is None:
        covered = _UNANSWERED % (digest, outcome.index, custom_id, error, written)
    else:
        covered = _ANSWERED % (
            digest,
            outcome.index,
            custom_id,
            answer.status,
            orjson.dumps(answer.request_id) if answer.request_id else b'""',
            b"null" if answer.body is None else answer.body,
            error,
            written,
        )
    return covered + b',"crc32":"%08x"}}\n' % crc32(covered)


@lru_cache(maxsize=8)
def _job_digest(job_id: str) -> bytes:
    return blake2b(job_id.encode(), digest_size=8).hexdigest().encode()


def is_whole(line: bytes) -> bool:
    """Whether a line, given without its newline, has the checksum it was written with."""
    return line[-_SEAL_SIZE:] == b',"crc32":"%08x"}}' % crc32(line[:-_SEAL_SIZE])


def begins_line(begun: bytes) -> bool:
    """Whether `begun`, no more than `BEGINNING_BYTES`, may be what is left of the beginning of a line."""
    return LINE_BEGINS.startswith(begun) or _BEGUN.fullmatch(begun) is not None


def check_lines(lines: Sequence[bytes]) -> None:
    """Whether lines, given with their newlines, are whole. Raises BrokenLineError at the first that is not."""
    if b"".join(map(_SEAL_OF, lines)) == _seals(map(crc32, map(_COVERED_OF, lines))):
        return
    for at, line in enumerate(lines):
        if _SEAL_OF(line) != _seals([crc32(_COVERED_OF(line))]):
            raise BrokenLineError("its checksum does not match", at)


def scan_lines(lines: Sequence[bytes]) -> tuple[list[int], array[int]]:
    """The indexes and the checksums of their input lines that whole lines, given with their newlines, hold.

    They are read from their place instead of as JSON. Raises BrokenLineError at the first line that is not whole.
    """
    # Ten million lines pass through: each is only cut here, and what was cut is checked and turned to numbers together.
    numbers: list[bytes] = []
    quoted: list[bytes] = []
    for _, meta, rest in map(bytes.rpartition, lines, repeat(LINE_ENDS)):
        if not meta:
            break
        number, _, behind = rest.partition(_INPUT_CRC32)
        numbers.append(number)
        quoted.append(behind[:9])
    input_crc32s = _read_hex(b"".join(quoted), b'"')
    if len(input_crc32s) != len(lines) or not all(map(bytes.isdigit, numbers)):
        foreign = next(at for at, line in enumerate(lines) if not _is_indexed(line))
        check_lines(lines[: foreign + 1])
        raise BrokenLineError("it is not a line of batchkit's", foreign)
    check_lines(lines)
    return list(map(int, numbers)), input_crc32s


def _is_indexed(line: bytes) -> bool:
    _, meta, rest = line.rpartition(LINE_ENDS)
    return bool(meta) and _INDEX.match(rest) is not None


def _seals(checksums: Iterable[int]) -> bytes:
    """The ends of lines with these checksums, one after the other."""
    digits = _hex(array("I", checksums), b'"}}\n' + _SEAL)
    return _SEAL + digits[: -len(_SEAL)] if digits else b""


def _hex(checksums: array[int], end: bytes) -> bytes:
    """Each as eight hex digits with `end` behind them."""
    data = array("I", checksums)
    if sys.byteorder == "little":
        data.byteswap()
    digits = data.tobytes().hex("\n", data.itemsize).encode()
    return digits.replace(b"\n", end) + end if digits else b""


def _read_hex(written: bytes, end: bytes) -> array[int]:
    """What `_hex` wrote; none if it did not write this."""
    checksums = array("I")
    with suppress(ValueError):
        checksums.frombytes(bytes.fromhex(written.replace(end, b"").decode()))
    if sys.byteorder == "little":
        checksums.byteswap()
    return checksums if _hex(checksums, end) == written else array("I")


def headed_lines(lines: Iterable[bytes]) -> list[OutputLine]:
    """Those of whole lines, given with their newlines, that have a run header."""
    # Looking through a line takes longer than all else that a scan does with it: the header is an object, and the last.
    maybe = (line for line in lines if line[-_SEAL_SIZE - 2] == _BRACE and _RUN in line)
    return [line for line in (decode(line[:-1]) for line in maybe) if line.run is not None]


def decode(line: bytes) -> OutputLine:
    """Read a line, given without its newline. Raises BrokenLineError unless it is one that `encode` wrote."""
    if not is_whole(line):
        raise BrokenLineError("its checksum does not match")
    try:
        body_at, body_end = _body_span(line)
        # Read without the body, which may be as deep as a JSON reader goes: the line around it makes it deeper.
        record = orjson.loads(line[:body_at] + b"null" + line[body_end:] if body_at else line)
        meta = record["batchkit"]
        # By their places: with names reading a line would take a tenth more.
        outcome = Outcome(
            meta["index"],
            record["custom_id"],
            _answer(line[body_at:body_end], record),
            meta["trace_id"],
            meta["attempts"],
            meta["latency_s"],
            meta["finished_at"],
            meta.get("retries", {}),
            int(meta["input_crc32"], 16),
            meta.get("maybe_billed", 0),
            meta.get("gateway_retries", 0),
            tuple(map(_billed_from_json, meta["billed"])) if "billed" in meta else (),
            _dollars(meta["maybe_cost"]) if "maybe_cost" in meta else _NOTHING,
            meta.get("metadata", {}),
            tuple(map(_limit_from_json, meta["limits"])) if "limits" in meta else (),
        )
        if not 0 <= outcome.finished_at < _YEAR_10000:
            raise ValueError(f"{outcome.finished_at!r} is no time")
        run = meta.get("run")
        return OutputLine(outcome, meta["job_id"], None if run is None else run_from_json(run))
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenLineError(f"it is not a line of batchkit's: {error!r}") from error


def _answer(in_place: bytes, record: dict[str, Any]) -> Answer:
    """The answer; `in_place` is the body as it stands in the line, empty where there is no response."""
    response, error, meta = record["response"], record["error"], record["batchkit"]
    status, request_id, body = None, "", None
    if response is not None:
        status, request_id = response["status_code"], response["request_id"]
        body = None if in_place == b"null" else in_place
    read = None if status is None or body is None else read_answer(status, {}, body, 0.0)
    if error is None:
        if status is None or body is None:
            raise ValueError("a result without an answer")
        if isinstance(read, Reply):
            from_cache = "from_cache" in meta.get("flags", ())
            return Reply(
                status,
                request_id,
                body,
                read.model,
                read.usage,
                read.finish_reason,
                0,
                from_cache,
            )
        return Reply(status, request_id, body)
    return Failure(
        FailureKind(meta["reason"]),
        error["code"],
        error["message"],
        status,
        request_id,
        body,
        model="" if read is None else read.model,
        usage=None if read is None else read.usage,
    )


def _body_span(line: bytes) -> tuple[int, int]:
    """Where the provider's body begins and ends in the line; (0, 0) where there is no response.

    Its beginning is the first `"body":` of the line, its end the last `},"error":` before our own object: quotes in the
    strings around it are escaped.
    """
    meta_at = line.rindex(LINE_ENDS)
    start = line.find(_BODY, 0, meta_at)
    if start < 0:
        return 0, 0
    start += len(_BODY)
    return start, line.rindex(b'},"error":', start, meta_at)


def _billed_from_json(written: dict[str, Any]) -> Billed:
    return Billed(written["model"], Usage(**written["usage"]))


def _limit_to_json(limit: FoundLimit) -> dict[str, Any]:
    rates = ((name, getattr(limit, name)) for name in LIMITS)
    return {"model": limit.model, **{name: whole(rate) for name, rate in rates if rate is not None}}


def _limit_from_json(written: dict[str, Any]) -> FoundLimit:
    rates = {name: float(written[name]) for name in LIMITS if name in written}
    if not all(0 < rate < inf for rate in rates.values()):
        raise ValueError(f"{written!r} is no limit")
    return FoundLimit(str(written["model"]), **rates)


def _dollars(written: str) -> Decimal:
    try:
        amount = Decimal(written)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{written!r} is no amount")
    return amount


def run_to_json(run: RunHeader) -> dict[str, Any]:
    """A run header as JSON values, for a line or a checkpoint."""
    written: dict[str, Any] = {
        "started_at": run.started_at,
        "version": run.version,
        "base_url": run.base_url,
        "simulated": run.simulated,
        "concurrency": run.concurrency,
        "in_flight_before": run.in_flight_before,
        "defaults": orjson.dumps(run.defaults, option=orjson.OPT_SORT_KEYS).decode(),
        "input": {"path": run.input_path, "bytes": run.input_bytes},
    }
    if run.max_cost is not None:
        written["max_cost"] = str(run.max_cost)
    if run.unseen_cost:
        written["unseen_cost"] = str(run.unseen_cost)
    if run.prices:
        written["prices"] = orjson.dumps(run.prices, option=orjson.OPT_SORT_KEYS).decode()
    return written


def run_from_json(run: dict[str, Any]) -> RunHeader:
    """The inverse of `run_to_json`; raises KeyError, TypeError or ValueError on anything else."""
    return RunHeader(
        started_at=run["started_at"],
        base_url=run["base_url"],
        defaults=orjson.loads(run["defaults"]),
        input_path=run["input"]["path"],
        input_bytes=run["input"]["bytes"],
        simulated=run["simulated"],
        version=run["version"],
        concurrency=run["concurrency"],
        in_flight_before=run["in_flight_before"],
        max_cost=None if "max_cost" not in run else _dollars(run["max_cost"]),
        unseen_cost=_dollars(run.get("unseen_cost", "0")),
        prices=orjson.loads(run.get("prices", "{}")),
    )
