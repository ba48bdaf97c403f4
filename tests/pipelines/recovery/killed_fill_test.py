"""Commands that are killed (`kill -9`) between the build and the end of the store's fill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support import killed_command
from tests.support.command_runs import Ended, Run, arguments, without_a_model
from tests.support.folders import stream_of
from tests.support.proof_run import rides_yaml, write_sources
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.paths import STREAM_BEGINS
from tidemill.serving.generations.current import read_current

RECOVERY = "tidemill.pipelines.recovery"
FILL = {
    "before the first key space": f"{RECOVERY}.republish:begin_fills",
    "before the third shard": f"{RECOVERY}.republish:publish_shard@3",
    "before readers are switched": f"{RECOVERY}.republish:switch_if_caught_up",
    "before the stream is recorded": f"{RECOVERY}.resume:show_live_clock",
    "before CURRENT names the stream": f"{RECOVERY}.resume:write_current",
}


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model."""
    without_a_model(monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*given: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(given)
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def rides(tmp_path: Path) -> Path:
    """A project with sources and no root."""
    write_sources(tmp_path)
    (tmp_path / "tidemill.yaml").write_text(rides_yaml(more="stream: {engine: fnapi}\n"))
    return tmp_path


def killed(place: str, *command: str) -> None:
    assert killed_command.killed(place, *command) == -signal.SIGKILL


def succeeded(ended: Ended) -> str:
    assert ended.status == 0, ended.out + ended.err
    return ended.out


@pytest.mark.parametrize("place", FILL.values(), ids=FILL)
def test_a_stream_killed_while_it_fills_the_store_is_resumed(
    place: str, rides: Path, run: Run
) -> None:
    succeeded(run(*arguments("backfill", rides)))
    killed(place, *arguments("stream", rides))
    succeeded(run(*arguments("stream --resume", rides)))
    assert succeeded(run(*arguments("verify", rides))).splitlines()[-1].startswith("0 mismatches")
    assert not (stream_of(rides / "run") / STREAM_BEGINS).exists()
    assert read_current(rides / "run").stream == 1


def test_killed_twice_it_is_resumed_in_its_mode(rides: Path, run: Run) -> None:
    succeeded(run(*arguments("backfill", rides)))
    killed(FILL["before the third shard"], *arguments("stream --mode eager", rides))
    killed(FILL["before the first key space"], *arguments("stream --resume", rides))
    refused = run(*arguments("stream --resume --mode exact", rides))
    refused.is_explained("begun in mode 'eager'")
    succeeded(run(*arguments("stream --resume", rides)))
    found = StreamRun.read(stream_of(rides / "run"))
    assert found is not None
    assert (found.mode, found.ended) == ("eager", True)
    assert succeeded(run(*arguments("verify", rides))).splitlines()[-1].startswith("0 mismatches")


def test_the_stream_that_was_killed_is_resumed_and_not_the_one_before_it(
    rides: Path, run: Run
) -> None:
    succeeded(run(*arguments("backfill", rides)))
    succeeded(run(*arguments("stream --until 2026-01-03T12:00:00Z", rides)))
    killed(FILL["before the third shard"], *arguments("stream", rides))
    assert read_current(rides / "run").stream == 1
    succeeded(run(*arguments("stream --resume", rides)))
    assert read_current(rides / "run").stream == 2
    # A start that was given up is of no account once another stream has begun.
    killed(FILL["before the third shard"], *arguments("stream", rides))
    succeeded(run(*arguments("stream --until 2026-01-03T12:00:00Z", rides)))
    succeeded(run(*arguments("stream --resume", rides)))
    assert read_current(rides / "run").stream == 4
    assert succeeded(run(*arguments("verify", rides))).splitlines()[-1].startswith("0 mismatches")


def test_the_start_of_a_stream_of_another_generation_is_not_resumed(rides: Path, run: Run) -> None:
    succeeded(run(*arguments("backfill", rides)))
    killed(FILL["before the third shard"], *arguments("stream", rides))
    yaml = rides / "tidemill.yaml"
    yaml.write_text(yaml.read_text().replace("2026-01-03T00:00:00Z", "2026-01-02T18:00:00Z"))
    succeeded(run(*arguments("backfill", rides)))
    run(*arguments("stream --resume", rides)).is_explained(
        "there is no stream in", "without --resume"
    )


PUBLISH: dict[str, str] = {
    "before the third shard": f"{RECOVERY}.republish:publish_shard@3",
    "before readers are switched": "tidemill.serving.online.sqlite.database:SqliteDatabase.switch",
}


@pytest.mark.parametrize("place", PUBLISH.values(), ids=PUBLISH)
def test_a_backfill_that_was_killed_while_it_published_is_run_again(
    place: str, rides: Path, run: Run
) -> None:
    killed(place, *arguments("backfill --publish", rides))
    succeeded(run(*arguments("backfill --publish", rides)))
    assert "PRESENT" in succeeded(run(*arguments("features", rides)))
    assert succeeded(run(*arguments("verify", rides))).splitlines()[-1].startswith("0 mismatches")
    succeeded(run(*arguments("stream", rides)))
    assert succeeded(run(*arguments("verify", rides))).splitlines()[-1].startswith("0 mismatches")


@pytest.mark.parametrize("place", PUBLISH.values(), ids=PUBLISH)
def test_a_stopped_stream_resumes_after_a_backfill_was_killed_while_it_published(
    place: str, rides: Path, run: Run
) -> None:
    """History has only grown, so its generation stays, whichever command comes next."""
    succeeded(run(*arguments("backfill --publish", rides)))
    succeeded(run(*arguments("stream --until 2026-01-03T12:00:00Z", rides)))
    before = read_current(rides / "run")
    lines = (rides / "rides.csv").read_text().splitlines()
    last = lines[-1].split(",")
    (rides / "rides.csv").write_text("\n".join([*lines, ",".join(["new", *last[1:]])]) + "\n")
    status = killed_command.killed(place, *arguments("backfill --publish", rides))
    # Where the store keeps all its rows there may be no shard to write.
    assert status in (0, -signal.SIGKILL)
    assert read_current(rides / "run").generation == before.generation
    succeeded(run(*arguments("stream --resume", rides)))
    assert succeeded(run(*arguments("verify", rides))).splitlines()[-1].startswith("0 mismatches")
