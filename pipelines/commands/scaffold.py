"""A new project from ``templates/project``, for `tidemill init`.

Promises: the project works without changes (it brings the events of a made-up shop along); nothing
that exists is overwritten; and the folder appears complete or not at all.
"""

from __future__ import annotations

import importlib.resources
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError
from tidemill.serving.files.file_errors import named_for

_TEMPLATE: Final = ".template"
_PROJECT_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NAME: Final = "PROJECT_NAME"
_ROWS: Final = "ROW_COUNT"


def write_project(name: str, parent: Path) -> Path:
    """Write a project.

    Args:
        name: The project's name: lower-case letters, digits and single underscores.
        parent: The directory to write it into; made if it is missing.

    Returns:
        The project's directory, ``parent/name``.

    Raises:
        ConfigurationError: The name is not allowed, or the directory exists.
        FileError: The directory cannot be written.
    """
    if not _PROJECT_NAME.fullmatch(name):
        raise ConfigurationError(
            f"a project cannot be called {name!r}: its name is lower-case letters, digits and "
            f"single underscores and starts with a letter, such as my_shop"
        )
    folder = parent / name
    if folder.exists() or folder.is_symlink():
        raise ConfigurationError(
            f"{folder} exists already; nothing was written. Take another name, another --path, or "
            "remove it"
        )
    templates = importlib.resources.files("tidemill.pipelines").joinpath("templates", "project")
    events = {item.name: item.read_bytes() for item in templates.joinpath("data").iterdir()}
    rows = sum(content.count(b"\n") - 1 for content in events.values())
    with named_for(folder):
        _write(folder, templates, name, events, rows)
    return folder


def _write(
    folder: Path, templates: Traversable, name: str, events: Mapping[str, bytes], rows: int
) -> None:
    """Write the files to a hidden folder beside the target, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        for template in templates.iterdir():
            if template.name.endswith(_TEMPLATE):
                text = template.read_text(encoding="utf-8")
                text = text.replace(_NAME, name).replace(_ROWS, f"{rows:,}")
                file_name = template.name.removesuffix(_TEMPLATE).replace("gitignore", ".gitignore")
                (scratch / file_name).write_text(text, encoding="utf-8")
        (scratch / "events").mkdir()
        for file_name, content in events.items():
            (scratch / "events" / file_name).write_bytes(content)
        scratch.chmod(0o755)  # only the owner can read a temporary directory
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise
