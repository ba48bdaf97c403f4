"""Who writes: this process, named so that another one can be told about it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from pathlib import Path

from tidemill.pipelines.run import paths
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.online.fills import Holder


def root_id(root: Path) -> str:
    """Return the id of a root, 16 hexadecimal digits; it is made once, and kept in a file.

    A root that is moved keeps its id. So does a copy: if it writes to the same online store, it
    takes the token of the first one, whose writes are refused from then on.
    """
    path = root / paths.ROOT_ID
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()


def this_holder(root: Path) -> Holder:
    """Return this process as the holder of a writer's token."""
    return Holder(
        root=root_id(root),
        host=socket.gethostname(),
        pid=os.getpid(),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
        since_us=time.time_ns() // 1_000,
    )
