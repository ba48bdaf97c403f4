"""Write the generated pages: ``python -m docs.generate``."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generate import configuration, expressions

if __name__ == "__main__":
    folder = Path(__file__).parents[1]
    for name, page in (("configuration", configuration), ("expressions", expressions)):
        (folder / f"{name}.md").write_text(page.render(), encoding="utf-8")
        sys.stdout.write(f"wrote docs/{name}.md\n")
