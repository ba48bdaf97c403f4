"""The names of what a program and its workers exchange."""

from __future__ import annotations

import enum
from typing import Final

DOWN: Final = "down"
"""The journal of the program."""
UP: Final = "up"
"""The folder of the workers' journals, by worker."""
FILES: Final = "files"
"""The folder of what the program gives to all workers, as it stands below its root."""
OUT: Final = "out"
"""The folder of what the tasks of jobs in batch have written, as it is to stand below the root."""
GIVEN: Final = "given"
"""The folder of the lists of what a job in batch is given, by the name of the list."""
DONE: Final = "done"
"""The folder of what is told of tasks that are done, by task."""
BATCH: Final = "batch-"
"""How the name of the folder of a command with jobs in batch begins."""
TRIED: Final = f"{FILES}/.tidemill"
"""What the program writes first, to see whether that can be read."""


def list_of(folder: str) -> str:
    """Return the name of the list of the files of a folder that the program has given."""
    return f"{FILES}/{folder}.list"


class Told(enum.StrEnum):
    """What is told."""

    OBJECT = "object"
    """What the object is that this is the first entry of."""
    BEAT = "beat"
    """That its writer lives; of a worker also which poll its operators have taken, and how many
    objects of the program's journal it has read."""
    POLL = "poll"
    """A poll, and the records that were rejected while it was read."""
    END = "end"
    """The poll after which nothing comes."""
    SOURCE = "source"
    """That the source runs in this worker."""
    ELEMENTS = "elements"
    """The elements of a bundle for a step that runs in the program."""
    GIVEN = "given"
    """A file that the program gives, or the names of all files of a folder."""
    FILE = "file"
    """A file to write."""
    LINK = "link"
    """Another name for a file that was written."""
    JOIN = "join"
    """A file to write behind what is in others, which it replaces."""
    CHUNKED = "chunked"
    """The checksums of a large file, behind its bytes."""
    DONE = "done"
    """That a task is done, and what the program takes of what it has written."""
    PROBLEM = "problem"
    """What is wrong with a worker, or with what it was to do."""
