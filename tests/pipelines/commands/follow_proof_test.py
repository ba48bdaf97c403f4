"""`tidemill verify --follow`: what it prints, the page that it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.folders import made_root
from tests.support.live_project import CONFIGURATION, PROJECT
from tidemill.features.contract import SECOND
from tidemill.pipelines.commands import follow_proof
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.run.proof_record import Cause, Difference, ProofRecord, Round
from tidemill.pipelines.verify.follow import follow as follow_module
from tidemill.pipelines.verify.follow.follow import FollowOptions, Step

AT = 1_796_000_000 * SECOND


def record(*, mismatches: int = 0, share: float = 1.0) -> ProofRecord:
    causes = {Cause.LATE_EVENT: 4, Cause.UNEXPLAINED: mismatches}
    done = Round(
        AT + 12 * SECOND, AT, 0.25, 12.0, 1_234_567, 1_234_567, share,
        {str(cause): count for cause, count in causes.items() if count}, 2.4,
    )  # fmt: skip
    fault = Difference(
        "2026-11-29T01:00:00Z", Cause.UNEXPLAINED, "as seen", "value", "q-1", "c-1", "by_card",
        "by_card__payments_10m", "2026-11-29T00:59:00Z", "7", "6", "unknown", ("p-1 (paid/0:7)",),
    )  # fmt: skip
    return ProofRecord("g", 1, "b").with_round(done, [fault] * bool(mismatches))


def test_the_line_says_up_to_when_what_is_proven() -> None:
    assert follow_proof.line(record(), 0) == (
        "proved up to 2026-11-30T00:53:20Z: 0 mismatches in 1,234,567 values · 4 late event · "
        "12 s behind · fresh 2.4 s"
    )
    shared = follow_proof.line(record(mismatches=2, share=0.1), 3)
    assert "2 mismatches in 1,234,567 values (a share of 0.1) · 4 late event" in shared
    assert "12 s behind, 3 segments to prove" in shared
    assert follow_proof.line(ProofRecord("g", 1, "b"), 0) == (
        "proved up to -: 0 mismatches in 0 values"
    )


def test_a_mismatch_is_described_with_its_events() -> None:
    (one,) = record(mismatches=1).differences
    assert follow_proof.described(one) == (
        "value q-1 of entity c-1 by_card by_card__payments_10m as of 2026-11-29T00:59:00Z: served "
        "7, recomputed 6 (unexplained: unknown; events p-1 (paid/0:7))"
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose sources go on in topics."""
    (tmp_path / "project.py").write_text(PROJECT)
    text = CONFIGURATION.format(
        bootstrap="127.0.0.1:1", payments="paid", checks="asked", engine="fnapi", mode="exact",
        train_until="2026-11-01T00:00:00Z", until="2026-11-02T00:00:00Z", savepoint_every="10m",
        format="json", shards=2,
    )  # fmt: skip
    (tmp_path / "tidemill.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.nice", lambda _: 0)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(("verify", "--follow", *arguments))
    code = left.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("mismatches", [0, 2])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_round_is_a_line_and_a_mismatch_the_status(
    mismatches: int,
    as_json: bool,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = record(mismatches=mismatches)
    seen: list[FollowOptions] = []

    def follow(config: object, options: FollowOptions, stop: object) -> list[Step]:
        seen.append(options)
        return [Step(found, said="it waits"), Step(found, found.rounds[-1], 1)]

    monkeypatch.setattr(follow_module, "follow", follow)
    options = ("--share", "0.5", "--every", "3", "--until", "2026-11-29T00:00:00Z", "--keep-up")
    assert run(*options, *["--json"] * as_json) == int(mismatches > 0)
    assert seen == [FollowOptions(0.5, 3.0, False, 1_795_910_400 * SECOND, True)]
    printed = capsys.readouterr()
    assert "it waits" in printed.err
    page = project / "run" / "proof" / "proof.html"
    assert str(page) in printed.err
    assert f"{mismatches} mismatches in 1,234,567 values" in page.read_text()
    (line,) = printed.out.splitlines()
    if as_json:
        said = json.loads(line)
        assert said["proved_up_to"] == "2026-11-30T00:53:20Z"
        assert (said["mismatches"], said["values"], said["share"]) == (mismatches, 1_234_567, 1.0)
        assert said["causes"]["late event"] == 4
    else:
        assert line == follow_proof.line(found, 1)


def test_it_ends_by_itself_when_asked_to(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_root(project / "run")
    assert run("--once") == 0
    printed = capsys.readouterr()
    assert printed.err == "the stream has not begun: it waits for `tidemill stream`\n"
    assert printed.out == ""
