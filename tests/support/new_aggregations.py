"""A program: puts the example aggregations of docs/aggregations.md in place and runs the laws.

It is run in a process of its own, because a registered aggregation stays registered. Each fragment
is run in the namespace of the module that the document puts it into, after the module's code.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from tests.support.markdown import DOCS, ROOT, blocks
from tidemill.features.definitions import REGISTRY
from tidemill.features.kernel import advance  # noqa: F401 - registers all folds
from tidemill.features.kernel.registry import FINISHES, FOLDS

LAWS = ROOT / "tests" / "laws" / "kernel_laws_test.py"


def put_in_place(folder: Path) -> None:
    """Run every fragment of the document in its module."""
    for number, block in enumerate(blocks(DOCS / "aggregations.md")):
        if block.language != "python" or block.file is None:
            continue
        # numba caches by file, so the fragment needs one.
        path = folder / f"{number}_{Path(block.file).name}"
        path.write_text(block.text)
        module = importlib.import_module(
            "tidemill." + block.file.removesuffix(".py").replace("/", ".")
        )
        exec(_compiled(path), vars(module))


def _compiled(path: Path) -> CodeType:
    # The modules' own `from __future__ import annotations` holds for a fragment as well.
    source = "from __future__ import annotations\n" + path.read_text()
    return compile(source, str(path), "exec")


def forget_compiled(functions: dict[str, Any], before: set[str]) -> None:
    """Remove numba's cache of functions whose files will be deleted."""
    for name in functions.keys() - before:
        shutil.rmtree(functions[name].run._cache.cache_path, ignore_errors=True)


def main() -> int:
    """Register, narrow the registry to what is new, print the rows of values, run the laws."""
    known, folds, finishes = set(REGISTRY), set(FOLDS), set(FINISHES)
    with tempfile.TemporaryDirectory() as folder:
        put_in_place(Path(folder))
        for name in known:
            del REGISTRY[name]
        print("new aggregations:", *REGISTRY)
        from tests.features.kernel.value_table_test import value_table

        print(value_table())
        try:
            return int(pytest.main([str(LAWS), "-q", "-p", "no:cacheprovider"]))
        finally:
            forget_compiled(FOLDS, folds)
            forget_compiled(FINISHES, finishes)


if __name__ == "__main__":
    sys.exit(main())
