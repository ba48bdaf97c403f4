"""A pytest plugin: a test that is skipped fails, since it shows nothing and looks like a pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Fail a test that was skipped; a test that is expected to fail stays as it is."""
    report = yield
    return report if hasattr(report, "wasxfail") else _failed(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Fail a module that was skipped as a whole."""
    report = yield
    return _failed(report)


def _failed(report: pytest.TestReport | pytest.CollectReport) -> object:
    if report.outcome == "skipped":
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nNo test is skipped here: install what it needs, or delete it."
    return report
