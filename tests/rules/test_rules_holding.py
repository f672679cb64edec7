import pytest

from batchkit.rules.holding import what_holds

AT_REST = {
    "in_flight": 0,
    "concurrency": 256,
    "at_gate": 0,
    "paused_s": 0.0,
    "per_s": None,
    "found": False,
    "used": 0.91,
    "retrying": 0,
    "starved": False,
}


@pytest.mark.parametrize(
    ("reading", "word", "sentence"),
    [
        ({}, "", ""),
        ({"in_flight": 255}, "", ""),
        ({"paused_s": 12.4, "at_gate": 3}, "server", "the server asked to wait, 12 s left"),
        (
            {"paused_s": 0.2, "at_gate": 3, "per_s": 50.0, "found": True},
            "limit",
            "found: 3,000 requests/min, 91 % used",
        ),
        ({"at_gate": 3, "per_s": 8.0}, "limit", "given: 480 requests/min, 91 % used"),
        (
            {"at_gate": 3, "per_s": 7.8, "found": True, "limit": (480.0, "requests")},
            "limit",
            "found: 480 requests/min, 91 % used",
        ),
        (
            {"at_gate": 3, "per_s": 7.8, "found": True, "limit": (90_000.0, "tokens")},
            "limit",
            "found: 90,000 tokens/min, 91 % used",
        ),
        ({"at_gate": 3, "tpm_given": True}, "limit", "tokens a minute"),
        ({"at_gate": 3}, "limit", "none known yet: ever more start"),
        ({"at_gate": 3, "most_in_flight": 20, "in_flight": 19}, "limit", "found: 20 at once"),
        ({"at_gate": 3, "most_in_flight": 20, "in_flight": 20, "per_s": 8.0}, "limit", "found: 20 at once"),
        (
            {"at_gate": 3, "most_in_flight": 20, "in_flight": 5, "per_s": 8.0},
            "limit",
            "given: 480 requests/min, 91 % used",
        ),
        ({"at_gate": 3, "most_in_flight": 20, "in_flight": 5, "tpm_given": True}, "limit", "tokens a minute"),
        ({"retrying": 1200, "in_flight": 3}, "server", "1,200 requests wait to be tried again"),
        ({"retrying": 3, "in_flight": 3}, "", ""),
        ({"unpaid": 3, "retrying": 20}, "cost", "3 requests wait for room under --max-cost"),
        ({"in_flight": 256, "starved": True}, "concurrency", "all 256 in flight"),
        ({"in_flight": 256, "takes_s": 12.3}, "concurrency", "256 in flight, the server takes 12 s each"),
        (
            {"in_flight": 256, "takes_s": 0.0421},
            "concurrency",
            "256 in flight, the server takes 0.042 s each",
        ),
        ({"in_flight": 2, "starved": True}, "input", "waiting for lines"),
    ],
)
def test_what_holds_the_run_back(reading, word, sentence):
    assert what_holds(**{**AT_REST, **reading}) == (word, sentence)
