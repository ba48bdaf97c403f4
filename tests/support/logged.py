"""What one module, or one package, has logged.

A process runs many tests, and threads and clients of those before may still log something, which
`caplog.records` has too.
"""

from __future__ import annotations

import logging

import pytest


def logged_by(name: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what a logger of that name, and those below it, have logged in this part of a test."""
    return [
        record
        for record in caplog.records
        if record.name == name or record.name.startswith(f"{name}.")
    ]
