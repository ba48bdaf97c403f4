"""The example of the page on deletion: it is run, and prints what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.markdown import ROOT
from tidemill.pipelines.commands.cli import main


def run(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(given)
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed
    return printed.out


def test_the_page_prints_what_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "deletion.md").read_text()
    commands, printed = re.findall(r"^```(?:bash)?\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[:2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    out = ""
    for line in commands.replace(" && cd shop", "").splitlines():
        out = run(capsys, *line.split()[1:])
        if line.startswith("tidemill init"):
            monkeypatch.chdir(tmp_path / "shop")
    out = "".join(one for one in out.splitlines(keepends=True) if not one.startswith("seconds"))
    assert out.replace(f"{tmp_path}/shop/", "") == printed
    assert run(capsys, "verify", "--quiet").splitlines()[-1].startswith("0 mismatches in ")
