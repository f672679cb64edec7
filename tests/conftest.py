"""For all tests."""

import os

from hypothesis import settings

# How long an example takes is the machine's matter; a slow one says nothing of the code.
settings.register_profile("batchkit", deadline=None)
settings.load_profile("batchkit")

# The tests start the command by the hundred. Where the environment keeps Python from writing down what it compiled, each of
# those would compile the whole package anew, which is nearly half of what it costs to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
