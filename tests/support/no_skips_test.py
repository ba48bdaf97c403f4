"""A skipped test fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SKIPPED = {
    "by_a_mark": "@pytest.mark.skip(reason='no server')\ndef test(): pass",
    "by_a_condition": "@pytest.mark.skipif(True, reason='no server')\ndef test(): pass",
    "within": "def test(): pytest.skip('no server')",
    "in_a_fixture": "@pytest.fixture\ndef f(): pytest.skip('no server')\ndef test(f): pass",
    "as_a_module": "pytest.skip('no server', allow_module_level=True)",
    "for_an_import": "pytest.importorskip('no_server', reason='no server')",
}
RUN = {
    "passes": "def test(): pass",
    "fails_as_expected": "@pytest.mark.xfail\ndef test(): assert False",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of all of them."""
    folder = tmp_path_factory.mktemp("skipping")
    for name, code in {**SKIPPED, **RUN}.items():
        (folder / f"{name}_test.py").write_text(f"import pytest\n{code}\n")
    (folder / "pytest.ini").write_text("[pytest]\npython_files = *_test.py\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.no_skips", "-rA"]
    command += ["--continue-on-collection-errors", "-c", "pytest.ini"]
    # In CI pytest repeats each message whole in its summary.
    here = {name: text for name, text in os.environ.items() if name != "CI"}
    here["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        command, cwd=folder, env=here, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    return ended.stdout


@pytest.mark.parametrize("how", SKIPPED)
def test_skipped_test_fails_and_says_why(how: str, printed: str) -> None:
    assert re.search(rf"^(FAILED|ERROR) {how}_test\.py", printed, re.MULTILINE)
    assert printed.count("no server\nNo test is skipped here") == len(SKIPPED)


def test_others_end_as_they_would(printed: str) -> None:
    assert "PASSED passes_test.py::test\n" in printed
    assert "XFAIL fails_as_expected_test.py::test" in printed
    assert " skipped" not in printed.splitlines()[-1]
