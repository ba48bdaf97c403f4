"""The id of this run of a command: it is in every line of the log, and names the run's figures."""

from __future__ import annotations

import secrets
import time
from typing import Final

RUN_ID: Final = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
"""When the process began, in UTC, and a random text: ids sort by time."""
