"""A new project from ``templates/project``, for `tidemill init`; with topics, ``templates/kafka``.

With a Flex Template of Dataflow it has the folder ``dataflow`` of ``templates/dataflow``, too.

Promises: the project works without changes (it brings the events of a made-up shop along); nothing
that exists is overwritten; and the folder appears complete or not at all.

A line of a template that ends with ``# KAFKA_ONLY`` is one of a project with topics, and one that
ends with ``# FILES_ONLY`` is not. Files of ``templates/kafka`` replace those of the same name.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.resources
import io
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError
from tidemill.serving.files.file_errors import named_for

LIVE_FROM: Final = "2026-02-28T00:00:00Z"
"""Of a project with topics: the events before are its history, and the others are sent to it."""

_TEMPLATE: Final = ".template"
_PROJECT_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NAME: Final = "PROJECT_NAME"
_ROWS: Final = "ROW_COUNT"
_BOOTSTRAP: Final = "BOOTSTRAP"
_BEAM: Final = "BEAM_VERSION"
_KAFKA_ONLY: Final = "  # KAFKA_ONLY"
_FILES_ONLY: Final = "  # FILES_ONLY"
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")
_TIMES: Final[Mapping[str, str]] = {
    "orders.csv": "placed_at",
    "settlements.csv": "settled_at",
    "checkouts.csv": "checked_out_at",
}


def write_project(
    name: str, parent: Path, bootstrap: str | None = None, *, dataflow: bool = False
) -> Path:
    """Write a project.

    Args:
        name: The project's name: lower-case letters, digits and single underscores.
        parent: The directory to write it into; made if it is missing.
        bootstrap: The broker whose topics its sources go on in, ``HOST:PORT``; None for a project
            of files alone.
        dataflow: Whether it has a Flex Template of Dataflow.

    Returns:
        The project's directory, ``parent/name``.

    Raises:
        ConfigurationError: The name or the address is not allowed, or the directory exists.
        FileError: The directory cannot be written.
    """
    if not _PROJECT_NAME.fullmatch(name):
        raise ConfigurationError(
            f"a project cannot be called {name!r}: its name is lower-case letters, digits and "
            f"single underscores and starts with a letter, such as my_shop"
        )
    if bootstrap is not None and not _ADDRESS.fullmatch(bootstrap):
        raise ConfigurationError(
            f"found the broker {bootstrap!r}, expected HOST:PORT such as 127.0.0.1:9092"
        )
    folder = parent / name
    if folder.exists() or folder.is_symlink():
        raise ConfigurationError(
            f"{folder} exists already; nothing was written. Take another name, another --path, or "
            "remove it"
        )
    with named_for(folder):
        _write(folder, _contents(name, bootstrap, dataflow=dataflow))
    return folder


@dataclass(frozen=True)
class _Content:
    """A file of a project: its path below the folder, and its bytes."""

    path: str
    content: bytes


def _contents(name: str, bootstrap: str | None, *, dataflow: bool) -> list[_Content]:
    """Return the files of a project."""
    templates = importlib.resources.files("tidemill.pipelines").joinpath("templates")
    project = templates.joinpath("project")
    events = {item.name: item.read_bytes() for item in project.joinpath("data").iterdir()}
    rows = sum(content.count(b"\n") - 1 for content in events.values())
    data: Iterable[_Content]
    if bootstrap is None:
        found = _templates(project)
        data = [_Content(f"events/{file}", content) for file, content in events.items()]
    else:
        found = _templates(project) | _templates(templates.joinpath("kafka"))
        data = (part for file, content in events.items() for part in _divided(file, content))
    if dataflow:
        of_template = _templates(templates.joinpath("dataflow"))
        found = found | {f"dataflow/{file}": text for file, text in of_template.items()}
    texts = [
        _Content(
            file,
            _with_lines(text, is_kafka=bootstrap is not None)
            .replace(_NAME, name)
            .replace(_ROWS, f"{rows:,}")
            .replace(_BOOTSTRAP, bootstrap or "")
            .replace(_BEAM, importlib.metadata.version("apache-beam"))
            .encode(),
        )
        for file, text in found.items()
    ]
    return [*texts, *data]


def _templates(folder: Traversable) -> dict[str, str]:
    return {
        item.name.removesuffix(_TEMPLATE).replace("gitignore", ".gitignore"): item.read_text(
            encoding="utf-8"
        )
        for item in folder.iterdir()
        if item.name.endswith(_TEMPLATE)
    }


def _with_lines(text: str, *, is_kafka: bool) -> str:
    """Return a template with the lines of one kind of project."""
    kept, left_out = (_KAFKA_ONLY, _FILES_ONLY) if is_kafka else (_FILES_ONLY, _KAFKA_ONLY)
    lines = [line for line in text.splitlines() if not line.endswith(left_out)]
    return "".join(line.removesuffix(kept) + "\n" for line in lines)


def _divided(file: str, content: bytes) -> Iterator[_Content]:
    """Yield history and live events of a file; of the history, each was sent when it happened."""
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
    time = header.index(_TIMES[file])
    rows.sort(key=lambda row: row[time])  # a log is in the order in which it was received
    history = [[*row, row[time]] for row in rows if row[time] < LIVE_FROM]
    yield _Content(f"events/{file}", _csv([*header, "sent_at"], history))
    yield _Content(f"live/{file}", _csv(header, [row for row in rows if row[time] >= LIVE_FROM]))


def _csv(header: list[str], rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode("utf-8")


def _write(folder: Path, contents: Iterable[_Content]) -> None:
    """Write the files to a hidden folder beside the target, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for one in contents:
            path = scratch / one.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(one.content)
        scratch.chmod(0o755)  # only the owner can read a temporary directory
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise
