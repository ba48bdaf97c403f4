"""Compiled functions that only compiled functions can call, made callable for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def through_an_entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an entry that calls an inner function of the kernel with its own arguments."""

    @njit  # type: ignore[untyped-decorator, unused-ignore]
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call  # type: ignore[no-any-return, unused-ignore]
