"""What is promised can be imported, and nothing stands in `__all__` that is not there."""

import subprocess
import sys

import pytest

import batchkit


@pytest.mark.parametrize("name", batchkit.__all__)
def test_each_public_name_is_there(name):
    value = getattr(batchkit, name)
    if name != "__version__":
        assert value.__doc__


def test_the_public_names_are_sorted_and_shown():
    assert batchkit.__all__ == sorted(batchkit.__all__)
    assert dir(batchkit) == batchkit.__all__


def test_all_errors_have_one_root():
    errors = [getattr(batchkit, name) for name in batchkit.__all__]
    errors = [each for each in errors if isinstance(each, type) and issubclass(each, Exception)]
    assert len(errors) > 5
    assert all(issubclass(each, batchkit.BatchkitError) for each in errors)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Manager'"):
        _ = batchkit.Manager


@pytest.mark.parametrize("heavy", ["aiohttp", "anyio", "genai_prices", "httptools"])
def test_importing_the_package_imports_nothing_heavy(heavy):
    code = f"import sys, batchkit; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
