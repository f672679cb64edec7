"""What cannot be meant is refused before anything listens."""

import pytest

from batchkit.errors import UsageError
from batchkit.simulator.settings import FaultKind, SimulatorSettings


@pytest.mark.parametrize(
    "options",
    [
        {"output_tokens": 0},
        {"output_sigma": -1},
        {"first_token_s": float("nan")},
        {"tokens_per_s": 0},
        {"speed": 0},
        {"speed": float("inf")},
        {"rpm": 0},
        {"tpm": -5},
        {"max_in_flight": 0},
        {"quota": -1},
        {"refusal_cost": -1},
        {"retry_after_s": -1},
        {"retry_after_s": float("inf")},
        {"fault_times": 0},
        {"port": 70_000},
        {"faults": {"flood": 0.1}},
        {"faults": {"500": 1.5}},
        {"faults": {"500": float("nan")}},
        {"faults": {"500": 0.6, "cut": 0.6}},
    ],
)
def test_a_value_that_cannot_be_meant_is_a_usage_error_that_names_it(options):
    with pytest.raises(UsageError) as caught:
        SimulatorSettings(**options)
    name = next(iter(options))
    assert (name if name != "faults" else "fault") in str(caught.value)


def test_every_fault_may_have_its_share():
    share = 1 / len(FaultKind)
    assert SimulatorSettings(faults=dict.fromkeys(FaultKind, share)).faults["hang"] == share


def test_latency_is_divided_by_speed_and_nothing_when_instant():
    assert SimulatorSettings(speed=4).lived(2.0) == 0.5
    assert SimulatorSettings(instant=True).lived(2.0) == 0
