"""The ``archive`` section of the YAML file: where rows of topics are kept as Parquet files.

```yaml
archive:
  folder: archive       # relative to this file
  every: 10m            # optional: how often a stream adds rows
  keep: 400d            # optional: how long; by default for ever
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.features.contract import MINUTE
from tidemill.pipelines.config.strict_yaml import Value

ARCHIVE_KEYS: Final = ("folder", "every", "keep")


@dataclass(frozen=True)
class Archive:
    """Where the rows that streams have read of topics are kept, by day (docs/archive.md).

    Attributes:
        folder: The folder, absolute; it need not exist. It belongs to one root.
        keep_us: Days that ended so long before the last receipt are removed, in microseconds; None
            keeps all.
        every_us: How often a stream adds the rows that its savepoints have sealed, in microseconds;
            it does so at its end, too.
    """

    folder: Path
    keep_us: int | None = None
    every_us: int = 10 * MINUTE


def read_archive(value: Value, folder: Path) -> Archive:
    """Read the section; a relative path is below ``folder``.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    section = value.section(ARCHIVE_KEYS)
    found = section.read({"keep": Value.duration_us, "every": Value.duration_us})
    return Archive(folder / section.required("folder").text(), **found)
