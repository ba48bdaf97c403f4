"""One process with Feast's SDK for all tests: importing Feast takes longer than all they ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.markdown import ROOT

PROGRAM: Final = Path(__file__).with_name("stock_client.py")


class StockClient:
    """Asks `PROGRAM`, which is started at the first question and after it failed.

    Args:
        home: Its home directory, where Feast writes files, and where its log is.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[str] | None = None

    def ask(
        self,
        repository: Path,
        features: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        *,
        server: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the repository's clock, and the features' values and statuses.

        Args:
            repository: The folder of ``feature_store.yaml``.
            features: References, ``view:feature``.
            rows: The entities.
            server: The URL of Feast's server, to ask that instead of the store.
            environment: What the repository names by environment variables.
        """
        asked = {"repository": str(repository), "features": features, "entity_rows": rows}
        asked |= {"server": server, "environment": environment or {}}
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            process.wait()
        assert answer, self._log.read_text()
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=60)

    @property
    def _log(self) -> Path:
        return self._home / "stock_client.log"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, str(PROGRAM)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=self._home,
                    env={**os.environ, "HOME": str(self._home), "PYTHONPATH": str(ROOT)},
                )
        return self._process
