"""Importing the object that ``module:attribute`` in the YAML file names.

Promises: a module beside the YAML file is found from any working directory (its folder stays first
on ``sys.path``); an installed module of the same name is never taken instead; the working directory
does not change.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tidemill.features.errors import nearest
from tidemill.pipelines.config.strict_yaml import Value

_REFERENCE: Final = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")

_folders: set[Path] = set()
"""Folders of the projects that this process has imported. Only their modules may be replaced by
those of another project: each project has a ``project.py``."""


def import_attribute(value: Value, folder: Path) -> Any:
    """Import the object that a value of the YAML file names.

    Args:
        value: ``module:attribute``.
        folder: The YAML file's folder.

    Returns:
        The attribute.

    Raises:
        ConfigurationError: The reference is malformed; the module cannot be imported (the message
            has the reason and, for the project's own code, file and line); another module has its
            name; or the module lacks the attribute.
    """
    reference = value.text()
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise value.wrong(f"found {reference!r}, expected module:attribute such as project:project")
    name, attribute = match.groups()
    folder = folder.absolute()
    _make_first(folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise value.wrong(
            f"module {name!r} cannot be imported{_place(error, folder)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    top = name.partition(".")[0]
    home = _home(sys.modules[top])
    if _holds(folder, top) and not (home and home.samefile(folder)):
        raise value.wrong(
            f"module {top!r} beside the YAML file is hidden by another of that name from "
            f"{home or 'Python itself'}; rename the one beside the YAML file"
        )
    if not hasattr(module, attribute):
        raise value.wrong(
            f"module {name!r} has no {attribute!r}; "
            f"{nearest(attribute, [n for n in vars(module) if not n.startswith('_')])}"
        )
    return getattr(module, attribute)


def _make_first(folder: Path) -> None:
    """Put a folder first on the path; forget modules of other projects that have the same names."""
    text = str(folder)
    if text in sys.path:
        sys.path.remove(text)
    sys.path.insert(0, text)
    importlib.invalidate_caches()  # a file may be newer than the cached listing
    others = _folders - {folder}
    stale = {
        name
        for name, module in list(sys.modules.items())  # another thread may be importing
        if "." not in name and _home(module) in others and _holds(folder, name)
    }
    for name in [name for name in list(sys.modules) if name.partition(".")[0] in stale]:
        del sys.modules[name]
    _folders.add(folder)


def _holds(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _home(module: ModuleType) -> Path | None:
    """Return the folder that holds a top-level module; None if the module has no file."""
    file = getattr(module, "__file__", None)
    if not file:
        return None
    # Do not resolve links: in a mounted folder, files may be links to versioned copies.
    path = Path(file).absolute()
    return path.parent.parent if hasattr(module, "__path__") else path.parent


def _place(error: Exception, folder: Path) -> str:
    """Return the file and line of the project's own code that raised an error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        # Generated code, such as a dataclass's __init__, has a name like "<string>".
        if file.absolute().is_relative_to(folder) and file.is_file():
            return f" ({file.name}, line {frame.lineno})"
    return ""
