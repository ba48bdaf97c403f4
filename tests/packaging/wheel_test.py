"""The wheel, installed beside a user's own ``features/`` package, runs the whole loop.

The environment holds the wheel and what it requires, and nothing of this checkout: the editable
installation that the tests run in is hidden, since a ``.pth`` file adds a folder to the path
without reading the ``.pth`` files in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.markdown import ROOT
from tidemill.features.kernel.compilation import compile_kernel

ROOMS = ("examples", "features", "pipelines", "serving")


@dataclass(frozen=True)
class Installed:
    """The environment's programs, and the folder of a user's repository."""

    bin: Path
    repository: Path

    def run(self, *command: str) -> str:
        """Run a command and return its output; the test fails with that if the command does."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.repository,
            env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of a source tree."""
    code = f"import setuptools.build_meta as b; print('built', b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
    )
    return target / done.stdout.split("built ")[-1].strip()


def tracked_files(target: Path) -> Path:
    """The files of this checkout as a fresh clone would hold them, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        elif source.exists():
            copy.write_bytes(source.read_bytes())
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked_files(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def names(archive: Path) -> set[str]:
    """The files of a wheel, without its metadata."""
    with zipfile.ZipFile(archive) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_file_of_the_rooms_and_no_other_top_level_name(wheel: Path) -> None:
    held = names(wheel)
    assert {name.split("/")[0] for name in held} == {"tidemill"}
    modules = {
        f"tidemill/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert modules - held == set()
    assert {
        "tidemill/py.typed",
        "tidemill/examples/flights/tidemill.yaml",
        "tidemill/pipelines/servers/flink_jars.lock",
        "tidemill/pipelines/servers/kafka_jars.lock",
        "tidemill/pipelines/telemetry/grafana/dashboard.json",
        "tidemill/pipelines/telemetry/prometheus/alerts.yaml",
    } <= held
    templates = {
        f"tidemill/{path.relative_to(ROOT)}"
        for path in (ROOT / "pipelines" / "templates").rglob("*")
        if path.is_file()
    }
    assert templates
    assert templates - held == set()


def test_wheel_from_the_source_archive_is_the_same(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    archive = build("sdist", source, tmp_path)
    with tarfile.open(archive) as opened:
        # Python 3.11.0 to 3.11.3 know no filters.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        opened.extractall(tmp_path / "unpacked", **safely)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names(build("wheel", unpacked, tmp_path)) == names(wheel)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment of the wheel, and a repository that has packages of our folders' names."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    packages = Path(
        sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": "unused"})
    )
    (packages / "requirements.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    programs = environment / "bin"
    install = [str(programs / "python"), "-m", "pip", "install", "--no-deps", "--no-index"]
    subprocess.run(
        [*install, "--force-reinstall", str(wheel)], check=True, capture_output=True, text=True
    )
    repository = tmp_path_factory.mktemp("repository") / "shop"
    here = Installed(programs, repository)
    subprocess.run(
        [str(programs / "tidemill"), "init", "shop", "--path", str(repository.parent)],
        check=True,
        capture_output=True,
        cwd=environment,
    )
    for room in (*ROOMS, "tests", "benchmarks"):
        (repository / room).mkdir(exist_ok=True)
        (repository / room / "__init__.py").write_text(f'MINE = "the user\'s own {room}"\n')
    project = repository / "project.py"
    project.write_text(
        project.read_text()
        + "\nimport examples, features, pipelines, serving\n"
        + "assert all('own' in room.MINE for room in (examples, features, pipelines, serving))\n"
    )
    return here


def test_installed_package_is_the_wheels(installed: Installed) -> None:
    where = installed.run("python", "-c", "import tidemill.features as f; print(f.__file__)")
    assert Path(where.strip()).is_relative_to(installed.bin.parent)
    for room in ROOMS:
        said = installed.run("python", "-c", f"import {room}; print({room}.MINE)")
        assert said == f"the user's own {room}\n"


def test_installed_package_has_the_program_that_starts_a_worker(installed: Installed) -> None:
    assert "a TaskManager of Flink runs it" in " ".join(
        installed.run("tidemill-worker", "--help").split()
    )


def test_kernel_is_compiled_by_processes_and_once_for_equal_sources(installed: Installed) -> None:
    compile_kernel()  # that of the checkout
    code = "from tidemill.features.kernel.compilation import is_compiled; print(is_compiled())"
    assert installed.run("python", "-c", code) == "True\n"
    code = (
        "from tidemill.features.kernel import compilation as c; print(c._compiled_by_processes())"
    )
    assert installed.run("python", "-c", code) == "True\n"


@pytest.mark.timeout(900)
def test_whole_loop_runs_beside_the_users_own_packages(installed: Installed) -> None:
    for command in ("validate", "backfill", "train", "stream"):
        installed.run("tidemill", command, "--quiet")
    last = installed.run("tidemill", "verify", "--quiet").splitlines()[-1]
    assert last.startswith("0 mismatches in ")
    assert not last.endswith(" 0 values")
