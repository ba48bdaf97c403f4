"""Who writes: this process, named so that another one can be told about it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Final

from tidemill.pipelines.run import paths
from tidemill.serving.files.locks import lock
from tidemill.serving.files.records import RecordFormat, read_record, write_record
from tidemill.serving.online.fills import Holder

_ROOT_ID: Final = RecordFormat(
    name="tidemill-root",
    version=1,
    fields=frozenset({"id"}),
    remedy="remove it, and run `tidemill stream --take-over`: the root gets another id",
)


def root_id(root: Path) -> str:
    """Return the id of a root, 16 hexadecimal digits; it is made once, and kept in a file.

    A root that is moved keeps its id. So does a copy: if it writes to the same online store, it
    takes the token of the first one, whose writes are refused from then on.

    Raises:
        DamagedState: The file is damaged.
    """
    path = root / paths.ROOT_ID
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        with lock(path.with_suffix(".lock"), "give the root an id", wait=True):
            if not path.exists():
                write_record(path, _ROOT_ID, {"id": secrets.token_hex(8)})
    return str(read_record(path, _ROOT_ID)["id"])


def this_holder(root: Path) -> Holder:
    """Return this process as the holder of a writer's token."""
    return Holder(
        root=root_id(root),
        host=socket.gethostname(),
        pid=os.getpid(),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
        since_us=time.time_ns() // 1_000,
    )
