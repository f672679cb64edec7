"""Whether a run goes on with the job whose files it found, or would mix it with another. Nothing is sent before that is known."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from batchkit.engine.stop import Stop
from batchkit.errors import JobMismatch
from batchkit.records import RunHeader
from batchkit.settings import Settings
from batchkit.source import Source
from batchkit.state import JobState

__all__ = ["cut_short", "refuse_other_input", "refuse_other_settings"]


def refuse_other_settings(settings: Settings, job_id: str, before: RunHeader | None, now: RunHeader) -> None:
    """See that the job `job_id`, whose last run began with `before`, may go on as `settings` and `now` say. Raises JobMismatch."""
    if settings.job_id not in (None, job_id):
        raise JobMismatch(
            f"the output belongs to the job {job_id!r}, not {settings.job_id!r}. Nothing was sent. Leave --job-id out "
            "to go on with it, or name another output."
        )
    if before is None or settings.force:
        return
    for what, then, is_now in (
        ("endpoint", before.base_url, now.base_url),
        ("model and body defaults", before.defaults, now.defaults),
    ):
        if then != is_now:
            raise JobMismatch(
                f"the job began with another {what}: {_shown(then)}, now {_shown(is_now)}. Nothing was sent. Go on as it "
                "began, or mix the two on purpose with --force, or begin anew with --overwrite."
            )
    longer = (now.input_bytes or 0) - (before.input_bytes or 0)
    if None not in (now.input_bytes, before.input_bytes) and longer > 0 and not settings.allow_growth:
        or_mended = ", or failed ones mended" if settings.retry_failed else ""
        raise JobMismatch(
            f"the input is {longer:,} bytes longer than when the job was last worked on. Nothing was sent. If lines were "
            f"only added at its end{or_mended}, go on with --allow-growth; else give the input as it was."
        )


async def refuse_other_input(source: Source, state: JobState, stop: Stop) -> None:
    """Compare each line that is done with what was answered. Only after the input's file was touched, or by a scan.

    Raises JobMismatch, and what the run is stopped for.
    """
    end = state.done.end
    first_open = next((last for start, last in state.done.intervals() if start == 0), 0)
    following = 0
    async with aclosing(source.checksums()) as pieces:
        async for index, offset, checksums in pieces:
            if stop.cause is not None:
                raise stop.cause
            state.refuse_changed(index, checksums)
            if index <= first_open:
                state.index, state.offset = index, offset
            following = index + len(checksums)
            if following >= end:
                break
    if following < end:
        raise cut_short(following, state)
    # Compared once is enough.
    state.checksums = None


def cut_short(lines: int, state: JobState, *, sent: str = "Nothing was sent.") -> JobMismatch:
    """The input has no more than so many lines, and the output has an answer to a later one."""
    return JobMismatch(
        f"the input ends at line {lines}, but the output has an answer to line {state.done.end}: the input was cut, or it is "
        f"another. {sent} Give the input as it was, or another output."
    )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "…"
