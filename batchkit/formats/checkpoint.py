"""The checkpoint: a cache of what the output files say, so that going on need not read them all.

It may vanish or be broken at any time: the output files alone are the truth, and a checkpoint that cannot be believed is
read as none. It holds how many bytes of the two files it accounts for; what stands behind them is read anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import orjson

from batchkit.formats.results import run_from_json, run_to_json
from batchkit.records import RunHeader

__all__ = ["Checkpoint", "Standing", "decode_checkpoint", "decode_standing", "encode_checkpoint"]

_VERSION = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One moment of a job.

    `results_bytes`, `errors_bytes`: how much of the two files is accounted for. `superseded`: how many
    `….errors.N.jsonl` are in the totals. `done`: the indexes that have a line, as half-open intervals. `tally`: the state
    of `rules.tally.Tally`. `input_index` and `input_offset`: a line of the input, before which all are done.
    `input_size` and `input_mtime_ns` tell whether the input was touched since. `total`: requests in the
    input, None while uncounted; `limit`: how many of them the run was asked for, None for all. `status` and `stop_reason` are the summary's.
    """

    job_id: str
    results_bytes: int
    errors_bytes: int
    superseded: int
    done: tuple[tuple[int, int], ...]
    tally: Mapping[str, Any]
    run: RunHeader | None
    input_index: int
    input_offset: int
    input_size: int | None
    input_mtime_ns: int | None
    total: int | None
    limit: int | None
    status: str
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stood, and for how much of the two files: what checkpoints of all versions say in the same words."""

    results_bytes: int
    errors_bytes: int
    total: int | None
    limit: int | None
    status: str
    stop_reason: str | None


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The checkpoint file's bytes: one JSON object whose last value covers all before it."""
    covered = orjson.dumps(
        {
            "version": _VERSION,
            "job_id": checkpoint.job_id,
            "status": checkpoint.status,
            "stop_reason": checkpoint.stop_reason,
            "total": checkpoint.total,
            "limit": checkpoint.limit,
            "results_bytes": checkpoint.results_bytes,
            "errors_bytes": checkpoint.errors_bytes,
            "superseded": checkpoint.superseded,
            "input": {
                "index": checkpoint.input_index,
                "offset": checkpoint.input_offset,
                "size": checkpoint.input_size,
                "mtime_ns": checkpoint.input_mtime_ns,
            },
            "run": None if checkpoint.run is None else run_to_json(checkpoint.run),
            "done": checkpoint.done,
            "tally": checkpoint.tally,
        }
    )[:-1]
    return b'%b,"crc32":"%08x"}\n' % (covered, crc32(covered))


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Read a checkpoint file. Raises ValueError for one that is broken or of another version."""
    record = _record(data)
    if record["version"] != _VERSION:
        raise ValueError(f"it is of version {record['version']}, this program writes version {_VERSION}")
    source = record["input"]
    return Checkpoint(
        job_id=record["job_id"],
        results_bytes=record["results_bytes"],
        errors_bytes=record["errors_bytes"],
        superseded=record["superseded"],
        done=tuple((start, end) for start, end in record["done"]),
        tally=record["tally"],
        run=None if record["run"] is None else run_from_json(record["run"]),
        input_index=source["index"],
        input_offset=source["offset"],
        input_size=source["size"],
        input_mtime_ns=source["mtime_ns"],
        total=record["total"],
        limit=record["limit"],
        status=record["status"],
        stop_reason=record["stop_reason"],
    )


def decode_standing(data: bytes) -> Standing:
    """Read what a checkpoint file of whatever version says of the job as a whole. Raises ValueError for one that is broken."""
    record = _record(data)
    try:
        return Standing(
            results_bytes=record["results_bytes"],
            errors_bytes=record["errors_bytes"],
            total=record["total"],
            limit=record["limit"],
            status=record["status"],
            stop_reason=record["stop_reason"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it does not say how the job stood ({error})") from None


def _record(data: bytes) -> dict[str, Any]:
    covered, seal, checksum = data.rpartition(b',"crc32":"')
    if not seal or checksum.strip() != b'%08x"}' % crc32(covered):
        raise ValueError("its checksum does not match")
    record: dict[str, Any] = orjson.loads(data)
    return record
