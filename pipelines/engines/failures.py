"""What went wrong in a step, out of what an engine makes of it.

Beam carries the error of a step to the program in a form of its own. FnApiRunner raises an error of
the same class with ``[while running 'STEP']`` behind its message, or a RuntimeError where the class
takes more than one argument; Prism hands over the text of a traceback. `original` finds the error
that the step raised, so that the same mistake reads the same on every engine.
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
    """Return the error of the tree that made a pipeline fail.

    Args:
        error: What running the pipeline raised.

    Returns:
        The error as the step raised it, the step's name in a note; None where the step raised
        something that is not of the tree and not the operating system's.
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
    # The system's own words, and then, where a library has put them into a text of its own.
    if _STEP.search(text) and (system := list(_SYSTEM.finditer(text))):
        number, why, path = system[-1].groups()
        return file_error(OSError(int(number), why.strip(), path))
    return named_in_text(text)
