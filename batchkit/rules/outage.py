"""A network that goes away: the run pauses, and one attempt at a time finds out whether it is back.

Without it, each of hundreds of requests would try on its own, and each would wait for its own next try when the network
has long come back.

Time and chance are arguments, so that ten minutes without a network are tested in a millisecond.
"""

from __future__ import annotations

from math import inf

__all__ = ["Outage"]

_IN_A_ROW = 3
"""So many attempts in vain, and none that got through in between, are no hiccup of one connection."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_PROBE_S = 5.0
"""So long a probe holds back the next: one over a connection that was kept may hear nothing from a peer that is gone."""


class Outage:
    """Whether the endpoint is out of reach, and whose turn it is to try.

    An attempt that gets through ends an outage only if it began in it: answers to earlier ones may still come from a server
    that takes no new connections.
    """

    __slots__ = ("_in_vain", "_probe_at", "_probes", "_probing", "since")

    def __init__(self) -> None:
        self._in_vain = 0
        self._probes = 0
        self._probe_at = 0.0
        self._probing = False
        self.since: float | None = None
        """When the endpoint was first not reached, in seconds on the caller's clock; None while it can be."""

    def ask(self, now: float) -> float:
        """0.0 when an attempt may start; else the seconds until asking again, infinite while a probe is on its way.

        Who is let start in an outage is its probe, and says so when it is `missed` or has `reached` the endpoint.
        """
        if self.since is None:
            return 0.0
        if self._probing and now < self._probe_at + _PROBE_S:
            return inf
        wait = self.next_probe_in(now)
        self._probing = wait == 0.0
        if self._probing:
            self._probe_at = now
        return wait

    def next_probe_in(self, now: float) -> float:
        """Seconds until a probe may follow the last one."""
        return max(0.0, self._probe_at - now)

    def missed(self, now: float, jitter: float, *, probe: bool) -> bool:
        """An attempt did not reach the endpoint; `jitter` is random in [0, 1). True for the first probe of an outage."""
        if self.since is None:
            self._in_vain += 1
            if self._in_vain < _IN_A_ROW:
                return False
            self.since = now
        elif not probe:
            return False
        else:
            self._probing = False
            self._probes += 1
        # At least the half, or some waits would be none.
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**self._probes)
        self._probe_at = now + longest * (1.0 + jitter) / 2.0
        return self._probes == 1

    def withdrawn(self) -> None:
        """A probe was not sent after all, so that another may start at once."""
        self._probing = False

    def reached(self, *, probe: bool) -> bool:
        """An attempt got through, whatever was answered. True when that ends an outage."""
        if self.since is None:
            self._in_vain = 0
            return False
        if not probe:
            return False
        self._in_vain = self._probes = 0
        self._probing = False
        self.since = None
        return True
