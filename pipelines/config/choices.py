"""Names that the configuration and the command line share; quick to import."""

from __future__ import annotations

from typing import Final

ENGINES: Final = ("fnapi", "prism")
"""The engines that run a stream (`pipelines.engines.choosing.Engine`; the third refuses them)."""
MODES: Final = ("exact", "eager")
"""exact: answer a request when the frontier has passed it; eager: answer it at once."""
