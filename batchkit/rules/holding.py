"""What holds a run back, in one word and one sentence."""

from __future__ import annotations

__all__ = ["what_holds"]


def what_holds(
    *,
    in_flight: int,
    concurrency: int,
    at_gate: int,
    paused_s: float,
    per_s: float | None,
    found: bool,
    retrying: int,
    starved: bool,
    unpaid: int = 0,
) -> tuple[str, str]:
    """The word for `events.Gauges.holding` and the sentence to it; both empty when nothing does.

    `at_gate` attempts wait for the pacer, whose rate is `per_s` requests a second, `found` by refusals or given;
    `paused_s` seconds remain of a pause that the server asked for; `retrying` requests wait to be tried again; `starved`
    says that workers wait for the input; `unpaid` requests wait for those in flight to leave room under `--max-cost`.
    """
    if paused_s >= 1:
        return "server", f"the server asked to wait, {paused_s:.0f} s left"
    if at_gate:
        if per_s is None:
            return "limit", "tokens a minute"
        return "limit", f"{'found' if found else 'given'}: {per_s * 60:,.0f} requests/min"
    if unpaid:
        return "cost", f"{unpaid:,} requests wait for room under --max-cost"
    if retrying > in_flight:
        return "server", f"{retrying:,} requests wait to be tried again"
    if in_flight >= concurrency:
        return "concurrency", f"all {concurrency:,} in flight"
    if starved:
        return "input", "waiting for lines"
    return "", ""
