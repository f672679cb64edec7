"""batchkit with one thing changed, to see what that thing takes. DIFFERENCE in the environment names it:

window      a fixed window: whoever has a worker may start, and nothing is learned of any limit
session     over aiohttp's session, as behind a proxy

DIFFERENCE=window python batchkit_but.py REQUESTS RESULTS BASE_URL IN_FLIGHT
"""

import os
import sys

from batchkit import job, parts
from batchkit.cli.main import main
from batchkit.endpoint.session import SessionEndpoint
from batchkit.rules.budget import Reservation
from batchkit.rules.pacing import Pacer


class Window(Pacer):
    """Lets everyone start."""

    is_open = True

    def reserve(self, *_: float) -> float:
        self.in_flight += 1
        return 0.0

    def reserved(self, now: float, *_: float) -> Reservation:
        return Reservation(now)

    def accepted(self, *_: Reservation | float | None) -> None:
        self.in_flight -= 1


if __name__ == "__main__":
    difference = os.environ.pop("DIFFERENCE")
    if difference == "window":
        parts.Pacer = Window
    elif difference == "session":
        job.open_endpoint = SessionEndpoint
    else:
        raise SystemExit(f"no such difference: {difference}")
    requests, results, base_url, in_flight = sys.argv[1:]
    words = [requests, "-o", results, "--base-url", base_url, "--concurrency", in_flight]
    sys.exit(main(["run", *words, "--progress", "off"]))
