"""The example aggregations of docs/aggregations.md work, and the laws would notice if not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.markdown import DOCS, ROOT, blocks

ROW = "| `bit_or` | int64 | int64 | 0 | 0 | never |"


@pytest.mark.timeout(900)
def test_the_example_aggregations_obey_the_laws_and_equal_the_oracle() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.new_aggregations"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "new aggregations: bit_or spread\n" in done.stdout
    # The rows that the document says the table test prints, and what it says of overflow.
    assert ROW in done.stdout
    assert "| `spread` | int64 | int64 | null | null | null, counted |" in done.stdout
    assert "| `spread` | float64 | float64 | null | null | null, counted |" in done.stdout
    assert re.search(r"[1-9]\d* passed", done.stdout)


def test_the_document_shows_the_row_of_its_example() -> None:
    assert [b.text for b in blocks(DOCS / "aggregations.md") if b.text == ROW + "\n"]
