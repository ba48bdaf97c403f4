"""Checks of what a user passes to a definition, whatever it defines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tidemill.features.errors import DefinitionError, DuplicateName

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def check_name(name: object, what: str) -> None:
    """Check that a name has the form that every store, table and file takes."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DefinitionError(
            f"{what} name {name!r} must be lower-case letters, digits and single underscores, "
            "starting with a letter"
        )


def check_unique(names: Iterable[str], what: str) -> None:
    """Check that no name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateName(f"{what} {name!r} is defined twice; rename one")
        seen.add(name)
