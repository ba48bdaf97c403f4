"""The example of a model in `RunInference` prints what its page says."""

from __future__ import annotations

import subprocess
import sys

from tests.support.markdown import DOCS, blocks


def test_the_example_prints_what_the_page_says() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tidemill.examples.run_inference"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shown, *_ = [one.text for one in blocks(DOCS / "models.md") if one.language == "text"]
    assert done.stdout.splitlines() == shown.splitlines()
