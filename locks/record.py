"""Writes down what each locked distribution requires: the last step of ``make lock``.

What is installed here says it itself. What is locked for other Pythons and platforms only is
installed for once into a folder of its own, from files with the lock's hashes, and read there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from locks.closure import DEVELOP, ENVIRONMENTS, REQUIRES, Locked, Metadata, read_lock

_UV_PLATFORMS: Final = {
    "linux x86_64": "x86_64-unknown-linux-gnu",
    "linux aarch64": "aarch64-unknown-linux-gnu",
    "macos arm64": "aarch64-apple-darwin",
    "macos x86_64": "x86_64-apple-darwin",
    "windows x86_64": "x86_64-pc-windows-msvc",
}


def metadata_of(distribution: Distribution) -> Metadata:
    """Return what an installed distribution says of itself."""
    python = str(distribution.metadata.json.get("requires_python", ""))
    return Metadata(python, tuple(sorted(distribution.requires or [])))


def installed_in(folders: Iterable[Path | str]) -> dict[str, Metadata]:
    """Return what is installed in some folders, by ``NAME==VERSION``."""
    return {
        f"{canonicalize_name(found.name)}=={found.version}": metadata_of(found)
        for found in distributions(path=[str(folder) for folder in folders])
    }


def _for_others(uv: str, lock: list[Locked], python: str, platform: str) -> dict[str, Metadata]:
    """Install distributions as another environment would, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.lock"
        asked.write_text(
            "".join(
                " ".join([entry.key, *(f"--hash={h}" for h in sorted(entry.hashes)), "\n"])
                for entry in lock
            )
        )
        subprocess.run(
            [
                *(uv, "pip", "install", "--no-config", "--quiet", "--python", sys.executable),
                *("--no-deps", "--require-hashes", "--no-build-isolation"),
                *("--python-version", python.rpartition(".")[0]),
                *("--python-platform", _UV_PLATFORMS[platform]),
                *("--target", f"{folder}/target", "-r", str(asked)),
            ],
            check=True,
        )
        return installed_in([f"{folder}/target"])


def main() -> None:
    """Write `REQUIRES` anew."""
    uv = os.environ["UV"]
    lock = read_lock(DEVELOP)
    here = installed_in(sys.path)
    found = {entry.key: here[entry.key] for entry in lock if entry.key in here}
    for name, environment in ENVIRONMENTS.items():
        python, _, platform = name.partition(" ")
        others = [e for e in lock if e.key not in found and e.is_for(environment)]
        if others:
            found |= _for_others(uv, others, python, platform)
    if unread := sorted({entry.key for entry in lock} - found.keys()):
        sys.exit(f"no environment in {__name__} installs {', '.join(unread)}")
    wanted = {entry.key for entry in lock}
    lines = {
        key: {"python": metadata.python, "requires": metadata.requires}
        for key, metadata in sorted(found.items()) if key in wanted
    }  # fmt: skip
    REQUIRES.write_text(f"{json.dumps(lines, indent=1)}\n")


if __name__ == "__main__":
    main()
