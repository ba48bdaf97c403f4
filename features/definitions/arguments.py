"""Checks of the arguments that a user passes to a definition.

Each check raises a DefinitionError that says which argument, what was found and what was expected,
before Python itself can fail on the value.
"""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from tidemill.features.errors import DefinitionError, DuplicateName, WrongType, found, shown

K = TypeVar("K")
V = TypeVar("V")

LONGEST_NAME: Final = 100
"""Characters of a name: a file or key space joins three and a hash, in at most 255 bytes."""

NO_OPERATORS: Final[Mapping[str, str]] = {
    "%": "mod rmod",
    "//": "floordiv rfloordiv",
    "divmod": "divmod rdivmod",
    "**": "pow rpow",
    "@": "matmul rmatmul",
    "^": "xor rxor",
    "<<": "lshift rlshift",
    ">>": "rshift rrshift",
    "abs": "abs",
    "round": "round",
    "int": "int",
    "float": "float",
    "[]": "getitem",
    "iteration": "iter",
    "length": "len",
}
"""Operators that neither expressions nor aggregations have, with their methods' names."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


class ReadOnly(Mapping[K, V]):
    """An immutable copy of a mapping, in the same order.

    A definition's hash is cached: a dict that the user changes later must not change it.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __or__(self, other: Mapping[K, V]) -> dict[K, V]:
        return {**self._items, **other}


def check_name(name: object, what: str) -> None:
    """Check that a name has the form that every store, table and file takes."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DefinitionError(
            f"{what} name {shown(name)} must be lower-case letters, digits and single "
            "underscores, starting with a letter"
        )
    if len(name) > LONGEST_NAME:
        raise DefinitionError(
            f"{what} name {shown(name)} has {len(name)} characters; take at most {LONGEST_NAME}"
        )


def check_unique(names: Iterable[str], what: str) -> None:
    """Check that no name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateName(f"{what} {name!r} is defined twice; rename one")
        seen.add(name)


def check_utf8(text: str, what: str) -> None:
    """Check that a text can be written as UTF-8, as Arrow, JSON and every file do."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DefinitionError(
            f"{what} {shown(text)} holds half of a surrogate pair, which is no character"
        ) from None


def check_column_name(name: object, what: str) -> None:
    """Check that something is one column's name: a text that is not empty."""
    if not isinstance(name, str):
        raise WrongType(f"{what} must be the name of one column, a text; {found(name)}")
    if not name:
        raise DefinitionError(f"{what} is empty; write the name of a column")
    check_utf8(name, what)


def check_kind(value: object, kind: type | types.UnionType, what: str, write: str) -> None:
    """Check the type of an argument.

    Args:
        value: The argument.
        kind: The type that it must have.
        what: Which argument of which thing; used in the error.
        write: What to write instead, with its article; used in the error.
    """
    if not isinstance(value, kind):
        raise WrongType(f"{what} must be {write}, {found(value)}")


@contextlib.contextmanager
def prefix_errors(what: str) -> Iterator[None]:
    """Put the name of what a DefinitionError is about in front of its message."""
    try:
        yield
    except DefinitionError as error:
        raise type(error)(f"{what}: {error}") from None


def read_only(value: Mapping[K, V], what: str, write: str) -> ReadOnly[K, V]:
    """Check that an argument is a mapping, and return an immutable copy."""
    check_kind(value, Mapping, what, write)
    return ReadOnly(value)


def refuse_operators(
    kind: type, operators: Mapping[str, str], refusal: Callable[[Any, str], str]
) -> None:
    """Make operators of a class raise a DefinitionError.

    Python itself would say "unsupported operand", or iterate over ``[]`` without end.

    Args:
        kind: The class.
        operators: Operator to the names of its methods, without underscores.
        refusal: From an instance and an operator to the message.
    """

    def refuse(operator: str) -> Callable[..., Any]:
        def method(self: Any, *_: object) -> Any:
            raise DefinitionError(refusal(self, operator))

        return method

    for operator, methods in operators.items():
        for method in methods.split():
            setattr(kind, f"__{method}__", refuse(operator))
