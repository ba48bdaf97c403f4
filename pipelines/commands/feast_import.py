"""Importing Feast without the checks that typeguard compiles into its methods.

Feast decorates some twenty of its classes with ``typeguard.typechecked``. Each of their 240 methods
is then compiled anew whenever Feast is imported, with the whole module that it is in: three
quarters of the time that the import takes, seconds at the beginning of most commands. Tidemill
calls Feast in few places, and mypy checks these.

A program that uses Tidemill as a library gets Feast as it is: only a process of Tidemill's own, the
command line, leaves the checks out. Classes of other packages keep theirs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, cast

_FEAST: Final = "feast"


class _BeforeFeast(MetaPathFinder):
    """Finds nothing; is asked for Feast before it is imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname == _FEAST and self in sys.meta_path:
            sys.meta_path.remove(self)
            import typeguard

            if not getattr(typeguard.typechecked, "leaves_out_feast", False):
                typeguard.typechecked = _leaving_out_feast(typeguard.typechecked)
        return None


def leave_out_checks() -> None:
    """Let Feast be imported without the checks, if it has not been imported yet."""
    if _FEAST not in sys.modules and not any(
        isinstance(one, _BeforeFeast) for one in sys.meta_path
    ):
        sys.meta_path.insert(0, _BeforeFeast())


def _leaving_out_feast(typechecked: Callable[..., Any]) -> Any:
    """Return the decorator that leaves what Feast gives it as it is."""

    @functools.wraps(typechecked)
    def checked(target: Any = None, **options: Any) -> Any:
        if target is None:
            return functools.partial(checked, **options)
        if str(getattr(target, "__module__", "")).partition(".")[0] == _FEAST:
            return target
        return typechecked(target, **options)

    cast(Any, checked).leaves_out_feast = True
    return checked
