"""The code that a worker must have imported before it takes work: the program's own, no other."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from tidemill.features.errors import WorkerCodeDiffers, WorkerLacksModule
from tidemill.features.kernel.code_cache import digest


@dataclass(frozen=True)
class ProgramCode:
    """The code of the program that submits a job.

    Attributes:
        project: ``module:attribute`` of the project.
        definitions: The hash of its definitions.
        kernel: The digest of the kernel's sources.
    """

    project: str
    definitions: str
    kernel: str

    @staticmethod
    def here(project: str, definitions: str) -> ProgramCode:
        """Return that of this program."""
        return ProgramCode(project, definitions, digest())

    def check(self) -> None:
        """Import the project in this process, and compare.

        Raises:
            WorkerLacksModule: It cannot be imported.
            WorkerCodeDiffers: It is another one, or Tidemill is.
        """
        module, _, attribute = self.project.partition(":")
        try:
            project: Any = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise WorkerLacksModule(
                f"a worker cannot import the project {self.project!r}: {type(error).__name__}: "
                f"{error}; its environment must have what that of the program has which submits "
                "the job (docs/engines.md)"
            ) from error
        if project.hash != self.definitions:
            raise WorkerCodeDiffers(
                f"a worker has imported the project {self.project!r} with the definitions "
                f"{project.hash}, and the job is of {self.definitions}: its files were changed "
                "meanwhile, or are others there; run the command again"
            )
        if digest() != self.kernel:
            raise WorkerCodeDiffers(
                f"a worker has Tidemill's kernel {digest()}, and the program that submits the job "
                f"{self.kernel}: let both run in one environment"
            )
