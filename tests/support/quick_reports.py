"""What the report of a quick run of a benchmark has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import table


def check_quick_report(results: Path, name: str) -> dict[str, Any]:
    """Check the report of a quick run: answers were compared, and all figures are shown.

    Args:
        results: The folder of the report.
        name: The benchmark.

    Returns:
        The report.
    """
    report: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    assert report["quick"]
    assert report["command"].startswith(f"python -m benchmarks {name}")
    assert report["machine"]["libraries"]["numba"]
    compared = [f for f in report["figures"] if f["unit"] == "values"]
    assert compared
    assert all(figure["value"] > 0 for figure in compared)
    assert all(figure["name"] and figure["unit"] for figure in report["figures"])
    printed = table([report])
    assert all(figure["name"] in printed for figure in report["figures"])
    return report
