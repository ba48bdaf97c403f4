"""What `tidemill.testing` offers is explained on its page."""

from __future__ import annotations

import doctest

import pytest
from setuptools import find_packages

from tests.support.markdown import DOCS, ROOT
from tidemill import testing
from tidemill.testing import feature_values


@pytest.mark.parametrize("name", testing.__all__)
def test_each_is_documented(name: str) -> None:
    offered = getattr(testing, name)
    assert offered.__doc__
    if not isinstance(offered, type) or name == "ShardPlayer":
        assert f"`{name}" in (DOCS / "testing.md").read_text()


def test_the_examples_in_the_docstrings_are_right() -> None:
    found = doctest.testmod(feature_values)
    assert (found.failed, found.attempted > 3) == (0, True)


def test_it_is_installed() -> None:
    assert "tidemill.testing" in find_packages(str(ROOT), include=["tidemill", "tidemill.*"])
