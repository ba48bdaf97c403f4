from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill.features.errors import DamagedFile
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.release_line import RELEASE_VERSION
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.outputs.compare_releases import ReleaseCheck

RELEASE = {"version": RELEASE_VERSION, "view": "by_driver", "shard": 0, "number": 1}


@pytest.mark.parametrize("field", ["view", "shard", "number"])
def test_a_line_that_does_not_say_which_release_it_is_is_an_error_with_its_file(
    tmp_path: Path, field: str
) -> None:
    file = tmp_path / paths.RELEASES / "by_driver.jsonl"
    file.parent.mkdir()
    lines = [RELEASE, {name: value for name, value in RELEASE.items() if name != field}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DamagedFile, match=f"{file}.*there is no '{field}'.*tidemill stream"):
        ReleaseCheck(tmp_path, Findings())
