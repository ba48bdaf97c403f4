"""The environments of the peers, each from a lock of its own.

``python -m benchmarks.peers.environments`` resolves `requirements.in` of every peer anew, and
hashes the jars of `jars.in`. An environment has exactly what its lock says: nothing is resolved
when it is made. Packages without wheels are built with the setuptools of the lock.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tidemill.pipelines.servers import fetching
from tidemill.pipelines.servers.locked_jars import Jar

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
ENVIRONMENTS: Final = ROOT / ".tidemill" / "peers"
PYTHON: Final = "3.11"
_BUILDS: Final = re.compile(r"^(setuptools|wheel|packaging)==")
_LIMIT_S: Final = 1_200.0
_TAIL: Final = 600


class NotMade(Exception):
    """An environment could not be made: what uv said."""


def environment(folder: Path) -> Path:
    """Return the Python of a peer's environment, which is made if its lock is another."""
    place, lock = ENVIRONMENTS / folder.name, folder / "requirements.lock"
    python, made = place / "bin" / "python", place / "made.lock"
    if made.exists() and made.read_bytes() == lock.read_bytes():
        return python
    place.parent.mkdir(parents=True, exist_ok=True)
    _uv("venv", "--clear", "--python", PYTHON, str(place))
    to = ["--require-hashes", "--python", str(python)]
    text = lock.read_text()
    entries = re.split(r"\n(?=[a-z])", text)
    builds = [entry for entry in entries if _BUILDS.match(entry)]
    if any(entry.startswith("setuptools==") for entry in builds):
        first = place / "build.lock"
        first.write_text("\n".join(builds) + "\n")
        _uv("pip", "install", *to, "--no-deps", "--only-binary", ":all:", "-r", str(first))
        _uv("pip", "sync", *to, "--no-build-isolation", str(lock))
    else:
        _uv("pip", "sync", *to, "--only-binary", ":all:", str(lock))
    shutil.copyfile(lock, made)
    return python


def _uv(*arguments: str) -> None:
    uv = next(iter(sorted((ROOT / ".tidemill").glob("uv-*/bin/uv"))), None)
    if uv is None:
        raise NotMade("there is no uv in .tidemill: run `make venv`")
    common = ["--no-config", "--no-python-downloads", "--no-progress", "--quiet"]
    done = subprocess.run(
        [str(uv), *common, *arguments],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise NotMade(done.stderr[-_TAIL:])


def lock_packages(folder: Path) -> None:
    """Resolve the packages of a peer."""
    command = ["--custom-compile-command", "python -m benchmarks.peers.environments"]
    files = ["--output-file", str(folder / "requirements.lock"), str(folder / "requirements.in")]
    _uv("pip", "compile", "--python-version", PYTHON, "--generate-hashes", *command, *files)


def lock_jars(folder: Path) -> None:
    """Hash the jars of a peer."""
    names = (folder / "jars.in").read_text().split()
    with tempfile.TemporaryDirectory() as place:
        jars = [Jar(*name.split(":"), "") for name in names]
        fetching.fetch(jars, Path(place))
        lines = [
            f"{jar}  sha256:{hashlib.sha256((Path(place) / jar.name).read_bytes()).hexdigest()}\n"
            for jar in jars
        ]
    head = "# Written by `python -m benchmarks.peers.environments` from jars.in.\n"
    (folder / "jars.lock").write_text(head + "".join(lines), encoding="utf-8")


def main() -> None:
    """Resolve and hash all."""
    for wanted in sorted(HERE.glob("*/requirements.in")):
        lock_packages(wanted.parent)
        if (wanted.parent / "jars.in").exists():
            lock_jars(wanted.parent)


if __name__ == "__main__":
    main()
