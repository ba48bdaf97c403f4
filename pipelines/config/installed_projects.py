"""Projects in installed packages: the entry-point group ``tidemill.projects``.

A package that contains a project declares it in that group, and has a ``tidemill.yaml`` beside its
``__init__.py``:

```python
entry_points={"tidemill.projects": ["shop = my_package.shop"]}
```
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError, nearest

PROJECTS: Final = "tidemill.projects"
FILE_NAME: Final = "tidemill.yaml"


def installed_project(name: str | None = None) -> Path:
    """Return the YAML file of an installed project.

    Args:
        name: Its name in the entry-point group; may be None if there is exactly one.

    Raises:
        ConfigurationError: There is no such project or, without a name, not exactly one; or its
            package cannot be imported or has no YAML file.
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=PROJECTS)}
    if not found:
        raise ConfigurationError(
            f"no installed package brings a project (entry-point group {PROJECTS!r}); write one of "
            "your own with `tidemill init NAME`"
        )
    if name is None and len(found) > 1:
        raise ConfigurationError(
            f"there are {len(found)} installed projects, {', '.join(sorted(found))}; name one"
        )
    if name is None:
        (name,) = found
    if name not in found:
        raise ConfigurationError(f"no installed project is called {name!r}; {nearest(name, found)}")
    entry = found[name]
    try:
        module = entry.load()
    except ImportError as error:
        raise ConfigurationError(
            f"project {entry.name!r}: package {entry.value!r} cannot be imported: {error}"
        ) from error
    path = Path(module.__file__).parent / FILE_NAME
    if not path.is_file():
        raise ConfigurationError(
            f"project {entry.name!r}: there is no {FILE_NAME} beside {module.__file__}"
        )
    return path
