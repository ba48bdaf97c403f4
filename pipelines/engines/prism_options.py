"""Prism's options that a correct run needs. This module does not import Beam."""

from __future__ import annotations

from typing import Final

JOB_SERVER_TIMEOUT_S: Final = 10 * 365 * 24 * 3600
"""Ten years. With the client's default of 300 s a stream fails with DEADLINE_EXCEEDED."""

NO_SDF_SPLIT: Final = "prism_disable_sdf_split"
"""Turns dynamic splits of sources off, in every run. With them Prism 2.77 processes one key in two
bundles at once, and the key's state loses rows without an error."""
