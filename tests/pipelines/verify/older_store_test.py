"""An online store that is a copy of before: what was published since is missed, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.proof_run import Server, configuration, score_without_models, write_sources
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.republish import republish
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify


def test_a_copy_of_before_a_stream_that_has_ended_is_found_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_without_models(monkeypatch)
    write_sources(tmp_path)
    config = configuration(tmp_path, tmp_path / "run")
    backfill(config, QuietProgress(), publish=True)
    store = config.root / "online.db"
    before = store.read_bytes()
    Server(config).serve()
    run = StreamRun.read(config.current.stream_folder)
    assert run is not None
    assert run.ended
    assert verify(config, QuietProgress(), sample=5)["mismatches"] == 0
    store.write_bytes(before)
    found = verify(config, QuietProgress(), sample=5)
    assert found["store_mismatches"] == found["mismatches"] > 0
    (first, *_) = found["first_mismatches"]
    assert (first["what"], first["feature"]) == ("store", "mark")
    assert first["seen"] == "release 0"
    assert "tidemill republish" in first["cause"]
    republish(config, QuietProgress())
    assert verify(config, QuietProgress(), sample=5)["mismatches"] == 0
