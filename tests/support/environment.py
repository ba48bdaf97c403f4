"""Variables of the environment while a block runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(further: Mapping[str, str]) -> Iterator[None]:
    """Let this process, and those that it starts, have further variables."""
    before = dict(os.environ)
    os.environ.update(further)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
