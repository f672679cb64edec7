"""For all tests."""

from hypothesis import settings

# How long an example takes is the machine's matter; a slow one says nothing of the code.
settings.register_profile("batchkit", deadline=None)
settings.load_profile("batchkit")
