"""The error that a step raised, recovered from the error that the engine raises.

FnApiRunner raises an error of the same class with ``[while running 'STEP']`` after its message, or
a RuntimeError if the class takes more than one argument. Prism raises a RuntimeError that holds the
text of a traceback. `original` recovers the step's own error, so that the same mistake gives the
same message on every engine.
"""

from __future__ import annotations

import re
from typing import Final

from tidemill.features import errors
from tidemill.features.errors import TidemillError
from tidemill.serving.files.file_errors import file_error, named_in_text

_STEP: Final = re.compile(r" \[while running '([^']*)'\]")
_OURS: Final = re.compile(
    rf"^(?:\w+Error: )?{re.escape(errors.__name__)}\.(\w+): (.*?)"
    r"(?= \[while running '|\n\n(?:The above|During handling)|\nTraceback |\Z)",
    re.DOTALL | re.MULTILINE,
)
_SYSTEM: Final = re.compile(r"\[Errno (\d+)\] ([^\n:\[]*)(?:: ['\"]([^'\"\n]+)['\"])?")


def original(error: Exception) -> TidemillError | None:
    """Return the error of the tree (`features.errors`) that made a pipeline fail.

    Args:
        error: The error that running the pipeline raised.

    Returns:
        The error as the step raised it, with the step's name in a note; None if the step's error is
        neither of the tree nor an operating system error.
    """
    text = str(error)
    found = _found(error, text)
    if found is not None and (step := _STEP.search(text)):
        found.add_note(f"while running {step[1]}")
    return found


def _found(error: Exception, text: str) -> TidemillError | None:
    if isinstance(error, TidemillError):
        if not _STEP.search(text):
            return error
        return type(error)(_STEP.sub("", text))
    if isinstance(error, OSError):
        return file_error(error)
    if not isinstance(error, RuntimeError):
        return None
    for kind, message in reversed(_OURS.findall(text)):
        if isinstance(found := getattr(errors, kind, None), type):
            named: TidemillError = found(_STEP.sub("", message))
            return named
    # First an OSError as Python writes it, then the system's words inside a library's message.
    if _STEP.search(text) and (system := list(_SYSTEM.finditer(text))):
        number, why, path = system[-1].groups()
        return file_error(OSError(int(number), why.strip(), path))
    return named_in_text(text)
