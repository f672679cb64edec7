"""An error says the same wherever it is raised again."""

import copy
import pickle

import pytest

from batchkit import errors
from batchkit.errors import Interrupted, RunStopped

TREE = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        *(
            lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
    ids=["copied", *(f"pickled by {protocol}" for protocol in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_an_error_comes_whole_out_of_another_process(kind, again):
    parts = {"signal": 2} if issubclass(kind, Interrupted) else {}
    if issubclass(kind, RunStopped):
        parts["code"] = "insufficient_quota"
    for error in (kind(**parts), kind(message="because", **parts)):
        error.summary = {"status": "stopped"}
        error.add_note("and that is safe")
        other = again(error)
        assert type(other) is kind
        assert str(other) == str(error)
        assert other.args == error.args
        assert vars(other) == vars(error)
        assert other.exit_code == error.exit_code
