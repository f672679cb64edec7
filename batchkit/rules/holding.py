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
    most_in_flight: int | None = None,
    tpm_given: bool = False,
    limit: tuple[float, str] | None = None,
    used: float = 0.0,
    takes_s: float | None = None,
) -> tuple[str, str]:
    """The word for `events.Gauges.holding` and the sentence to it; both empty when nothing does.

    `at_gate` attempts wait for the pacer, whose rate is `per_s` requests a second, `found` by refusals or given, and which
    found that the server takes `most_in_flight` at once; None is no such limit. `limit` is the one that was found, a minute and
    of what, once it was measured; `used` is the share of the rate that was started of late. `tpm_given` says that there is a
    limit on tokens.
    `paused_s` seconds remain of a pause that the server asked for; `retrying` requests wait to be tried again; `starved`
    says that workers wait for the input; `unpaid` requests wait for those in flight to leave room under `--max-cost`.
    `takes_s` is what the latest answers took; None while there are none.
    """
    if paused_s >= 1:
        return "server", f"the server asked to wait, {paused_s:.0f} s left"
    if at_gate:
        other = tpm_given or per_s is not None
        if most_in_flight is not None and (in_flight >= most_in_flight or not other):
            return "limit", f"found: {most_in_flight:,} at once"
        if per_s is not None:
            a_minute, unit = limit or (60 * per_s, "requests")
            return (
                "limit",
                f"{'found' if found else 'given'}: {a_minute:,.0f} {unit}/min, {100 * used:.0f} % used",
            )
        return "limit", "tokens a minute" if tpm_given else "none known yet: ever more start"
    if unpaid:
        return "cost", f"{unpaid:,} requests wait for room under --max-cost"
    if retrying > in_flight:
        return "server", f"{retrying:,} requests wait to be tried again"
    if in_flight >= concurrency:
        if takes_s is None:
            return "concurrency", f"all {concurrency:,} in flight"
        return "concurrency", f"{in_flight:,} in flight, the server takes {_seconds(takes_s)} s each"
    if starved:
        return "input", "waiting for lines"
    return "", ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
