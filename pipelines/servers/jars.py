"""The jars of Kafka and of Flink: locked with their hashes, fetched once, checked at every use.

Promises:

* **Only the locked code runs.** A lock (`kafka_jars.lock`, `flink_jars.lock`) names every jar with
  its SHA-256. All jars are checked each time before a server starts. A jar with another hash is an
  error (`WrongJar`) and is never replaced silently.
* **The jars are there whole or not at all.** They are fetched into a folder of their own, which is
  renamed when it is complete. Processes that fetch at the same time do not disturb each other.
* **The user's own repositories are asked** (`pipelines.servers.fetching`).

The folder is `.tidemill/SERVER-DIGEST` in a checkout, and the same below the user's cache directory
where Tidemill is installed. ``DIGEST`` is that of the lock, so other jars have another folder.

``python -m tidemill.pipelines.servers.jars kafka flink`` (``make kafka flink``) fetches them
beforehand.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tidemill.features.errors import WrongJar, nearest
from tidemill.pipelines.servers.fetching import fetch
from tidemill.pipelines.servers.locked_jars import LOCKS, Jar, JarLock
from tidemill.serving.files.atomic_directory import publish, scratch_directory
from tidemill.serving.files.file_errors import named_for

_REPOSITORY: Final = Path(__file__).resolve().parents[2]


def jars_folder(lock: JarLock) -> Path:
    """Return the folder of the locked jars, whether or not they are fetched."""
    digest = hashlib.sha256(lock.path.read_bytes()).hexdigest()[:16]
    return _cache() / f"{lock.server.lower()}-{digest}"


def _cache() -> Path:
    if (_REPOSITORY / "pyproject.toml").is_file():
        return _REPOSITORY / ".tidemill"
    from tidemill.features.kernel.code_cache import user_cache

    return user_cache() / "tidemill"


def fetched_jars(lock: JarLock) -> tuple[Path, ...]:
    """Return the jars of a lock; fetch them first if they are not on this machine.

    Returns:
        The files, for a class path, in the order of the lock; their hashes are checked.

    Raises:
        JarsMissing: They could not be fetched.
        WrongJar: The hash of a jar is not the locked one.
        FileError: The folder cannot be read or written.
    """
    folder = jars_folder(lock)
    if not folder.is_dir():
        with named_for(folder):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with scratch_directory(folder.parent) as scratch:
                jars = lock.jars()
                fetch(jars, scratch)
                check(jars, scratch)
                publish(scratch, folder, Path.is_dir)
    return check(lock.jars(), folder)


def check(jars: Iterable[Jar], folder: Path) -> tuple[Path, ...]:
    """Check the hash of each jar in a folder.

    Returns:
        The files, in the given order.

    Raises:
        WrongJar: A jar is missing or its hash is not the locked one; the error names it.
    """
    found = []
    for jar in jars:
        path = folder / jar.name
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            raise WrongJar(
                f"{folder} lacks {jar.name} ({jar}): remove that folder, and the jars are "
                "fetched again"
            ) from None
        if digest != jar.sha256:
            raise WrongJar(
                f"{path} is not the locked {jar}: its SHA-256 is {digest}, expected "
                f"{jar.sha256}; see where it came from (a mirror, or a damaged Maven repository "
                f"of this user), remove it there, remove {folder}, and fetch again"
            )
        found.append(path)
    return tuple(found)


def main(names: Sequence[str]) -> None:
    """Fetch jars, and print where they are.

    Args:
        names: The servers whose jars are fetched, in lower case; none for Kafka.
    """
    known = {lock.server.lower(): lock for lock in LOCKS}
    for name in names or ("kafka",):
        if name not in known:
            raise SystemExit(f"there are no jars of {name!r}; {nearest(name, known)}")
        lock = known[name]
        began = time.perf_counter()
        fetched = not jars_folder(lock).is_dir()
        count = len(fetched_jars(lock))
        if fetched:
            seconds = time.perf_counter() - began
            where = jars_folder(lock)
            sys.stdout.write(
                f"{count} jars of {lock.server} fetched to {where} in {seconds:.0f} s\n"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
