"""The names that both the configuration and the command line know; importing this costs nothing."""

from __future__ import annotations

from typing import Final

ENGINES: Final = ("fnapi", "prism")
"""The engines that run a stream (`pipelines.engines.choosing.Engine`; the third refuses them)."""
MODES: Final = ("exact", "eager")
"""Wait for the frontier before a request is answered, or answer it at once."""
