"""Prism's options that decide whether a run is right, without importing Beam."""

from __future__ import annotations

from typing import Final

JOB_SERVER_TIMEOUT_S: Final = 10 * 365 * 24 * 3600
"""Ten years. The client's default of 300 s ends a stream with DEADLINE_EXCEEDED, and Prism with
it."""

NO_SDF_SPLIT: Final = "prism_disable_sdf_split"
"""With dynamic splits of a source Prism 2.77 lets one key be in two bundles at once, and its state
loses rows: no error, state DONE. So they are off, in every run, bounded or not."""
