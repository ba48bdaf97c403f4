"""Strict YAML: the reader asks for every value by name and type; errors name file, line and key.

Nothing is guessed. An unknown key, a duplicate key and a value of another type are each a
`ConfigurationError`. ``5`` is not a text, ``"5"`` is not a number, and neither environment
variables (``${HOME}``) nor ``~`` are substituted. The text is parsed into nodes and not into Python
objects, so YAML's own conversions (``NO`` to false, ``1:30`` to 90, ``1e-3`` to a text) apply only
to the options of another program (`Value.foreign`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from tidemill.features.contract import parse_duration
from tidemill.features.definitions import TIMESTAMP
from tidemill.features.errors import ConfigurationError, DefinitionError, nearest
from tidemill.features.rows import text_values

T = TypeVar("T")

MOST_DEEP: Final = 50
"""The greatest depth of nested mappings and lists."""

_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9_]{0,17})")
_NUMBER: Final = re.compile(r"-?([0-9][0-9_]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_VARIABLE: Final = re.compile(r"\$\{[^}]*\}")
_TAG: Final = "tag:yaml.org,2002:"
_KINDS: Final = {
    "bool": "a boolean",
    "float": "a number",
    "int": "a number",
    "str": "a text",
    "timestamp": "a date or time",
}


@dataclass(frozen=True)
class Value:
    """A value of the file.

    Attributes:
        file: The file's name, for errors.
        name: Its key after those above it, such as ``stream.poll_rows``; empty for the top level.
        node: The parsed node.
    """

    file: str
    name: str
    node: yaml.Node

    def wrong(self, message: str, at: yaml.Node | None = None) -> ConfigurationError:
        """Return an error that names the file, the line and the key.

        Args:
            message: What was found, what was expected and what to do.
            at: The node whose line to name; its own by default.
        """
        line = (at or self.node).start_mark.line + 1
        name = f"{self.name}: " if self.name else ""
        return ConfigurationError(f"{self.file}:{line}: {name}{message}")

    def _expected(self, expected: str) -> ConfigurationError:
        return self.wrong(f"found {_describe(self.node)}, expected {expected}")

    @property
    def is_null(self) -> bool:
        """Whether the value is null (``null``, ``~`` or empty)."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == f"{_TAG}null"

    def text(self) -> str:
        """Return a text.

        Raises:
            ConfigurationError: The value is not a text, or holds ``${...}``.
        """
        node = self.node
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAG}str":
            quote = "; put it into quotes" if isinstance(node, yaml.ScalarNode) else ""
            raise self._expected(f"a text{quote}")
        text: str = node.value
        if found := _VARIABLE.search(text):
            raise self.wrong(
                f"found {found[0]}: environment variables are not substituted; write the value "
                "itself"
            )
        return text

    def flag(self) -> bool | None:
        """Return true or false; None if the value is something else."""
        text = self._plain()
        return {"true": True, "false": False}.get(text or "")

    def whole(self, least: int = 0) -> int:
        """Return a whole number, at least ``least``."""
        text = self._plain()
        expected = f"a whole number, at least {least}"
        if text is None or not _WHOLE.fullmatch(text):
            raise self._expected(expected)
        if (number := int(text)) < least:
            raise self.wrong(f"found {number}, expected {expected}")
        return number

    def count(self) -> int:
        """Return a whole number, at least 1."""
        return self.whole(least=1)

    def positive(self) -> float:
        """Return a finite number above zero."""
        text = self._plain()
        if text is None or not _NUMBER.fullmatch(text):
            raise self._expected("a number above zero")
        if not 0 < (number := float(text)) < math.inf:
            raise self.wrong(f"found {text}, expected a number above zero")
        return number

    def share(self) -> float:
        """Return a share: a number from 0 to 1."""
        text = self._plain()
        expected = "a share from 0 to 1, such as 0.1 for 10 %"
        if text is None or not _NUMBER.fullmatch(text):
            raise self._expected(expected)
        if not 0 <= (number := float(text)) <= 1:
            raise self.wrong(f"found {text}, expected {expected}")
        return number

    def duration_us(self) -> int:
        """Return a duration such as ``5m``, above zero, in microseconds."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self._expected("a duration such as 5m")
        text = self.node.value
        try:
            duration = parse_duration(text, "duration")
        except DefinitionError as error:
            raise self.wrong(str(error)) from None
        if duration == 0:
            raise self.wrong(f"found {text}, expected a duration above zero such as 5m")
        return duration

    def instant_us(self) -> int:
        """Return an instant, UTC microseconds, from a text with an offset such as ``...Z``."""
        node = self.node
        expected = "a date and time with its offset such as 2013-10-01T00:00:00Z"
        if not isinstance(node, yaml.ScalarNode):
            raise self._expected(expected)
        found = text_values.parse_one(node.value, TIMESTAMP, None)
        if type(found) is not int:
            raise self.wrong(f"found {node.value!r}, expected {expected}")
        return found

    def texts(self) -> tuple[str, ...]:
        """Return a list of texts; it may be empty."""
        return tuple(item.text() for item in self._items("a list of texts such as [a, b]"))

    def one_of(self, known: Collection[str]) -> str:
        """Return a text that must be one of those given."""
        text = self.text()
        if text not in known:
            raise self.wrong(
                f"found {text!r}, expected one of {', '.join(known)}; {nearest(text, known)}"
            )
        return text

    def section(self, known: Collection[str] | None = None) -> Section:
        """Return a mapping.

        Args:
            known: The allowed keys; None for any.

        Raises:
            ConfigurationError: The value is not a mapping, or a key is unknown, not a text or a
                duplicate.
        """
        node = self.node
        if not isinstance(node, yaml.MappingNode):
            raise self._expected("a mapping (lines of the form key: value)")
        values: dict[str, Value] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.wrong(f"found {_describe(key)} as a key, expected a name", at=key)
            name = key.value
            if known is not None and name not in known:
                raise self.wrong(f"unknown key {name!r}; {nearest(name, known)}", at=key)
            if name in values:
                first = values[name].node.start_mark.line + 1
                raise self.wrong(
                    f"key {name!r} is a duplicate of the one in line {first}; remove one", at=key
                )
            values[name] = Value(self.file, f"{self.name}.{name}".lstrip("."), value)
        return Section(self, values)

    def foreign(self) -> Any:
        """Return the options of another program, with YAML's own conversions.

        Texts may hold ``${NAME}``; they are returned unchanged.

        Raises:
            ConfigurationError: A key of a mapping is not a text, or is a duplicate.
        """
        if isinstance(self.node, yaml.MappingNode):
            return {name: value.foreign() for name, value in self.section().values.items()}
        if isinstance(self.node, yaml.SequenceNode):
            return [value.foreign() for value in self._items("a list")]
        return yaml.constructor.SafeConstructor().construct_document(self.node)

    def _items(self, expected: str) -> list[Value]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self._expected(expected)
        return [
            Value(self.file, f"{self.name}[{place}]", node)
            for place, node in enumerate(self.node.value)
        ]

    def _plain(self) -> str | None:
        """Return the text of a value without quotes; None for any other value."""
        node = self.node
        return node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None


@dataclass(frozen=True)
class Section:
    """A mapping of the file.

    Attributes:
        value: The mapping as a value, for errors about it.
        values: Its values by key, in the file's order.
    """

    value: Value
    values: dict[str, Value]

    def required(self, key: str) -> Value:
        """Return the value of a required key.

        Raises:
            ConfigurationError: The key is missing.
        """
        if key not in self.values:
            raise self.value.wrong(f"key {key!r} is missing")
        return self.values[key]

    def optional(self, key: str, read: Callable[[Value], T], default: T) -> T:
        """Read the value of a key, or return the default if the key is missing."""
        return read(self.values[key]) if key in self.values else default

    def read(self, readers: Mapping[str, Callable[[Value], Any]]) -> dict[str, Any]:
        """Read the keys that the mapping has, as arguments of a dataclass.

        Args:
            readers: Key to the function that reads its value. The argument of a key that
                `Value.duration_us` reads has the suffix ``_us``.
        """
        return {
            f"{key}_us" if read is Value.duration_us else key: read(self.values[key])
            for key, read in readers.items()
            if key in self.values
        }


def or_null(read: Callable[[Value], T]) -> Callable[[Value], T | None]:
    """Return a reader that also accepts null, as None."""
    return lambda value: None if value.is_null else read(value)


class _Loader(yaml.SafeLoader):
    """Refuses a deeply nested file before Python's stack overflows."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MOST_DEEP:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"it is nested more than {MOST_DEEP} deep; no configuration is",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node


def read_file(path: Path) -> Value:
    """Parse a YAML file.

    Args:
        path: The file, as errors name it.

    Returns:
        The top level of the file.

    Raises:
        ConfigurationError: The file is missing, unreadable, empty, not UTF-8, not YAML, has more
            than one document, or is nested deeper than `MOST_DEEP`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no file {path}; name another with --config, or write a project to start "
            "from with `tidemill init NAME`"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"{path}:{line}: found the byte 0x{error.object[error.start]:02x}, expected UTF-8; "
            "save the file as UTF-8"
        ) from error
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: is no YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: is no YAML: {error}") from error
    if node is None:
        raise ConfigurationError(f"{path}: is empty")
    return Value(str(path), "", node)


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node.tag == f"{_TAG}null":
        return "null"
    kind = _KINDS.get(node.tag.removeprefix(_TAG), f"a value tagged {node.tag}")
    return f"{kind} ({node.value!r})"
