"""The report: one file, the right figures, and a sentence about everything that is missing."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of, made_root
from tests.support.trained_bundle import PROJECT, REQUEST, SCANS
from tidemill.features.contract import HOUR, MINUTE, write_instant
from tidemill.pipelines.config.configuration import Configuration, Splits
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.report.page import write_report
from tidemill.pipelines.report.pictures import (
    Curve,
    draw_calibration,
    draw_latency,
    draw_roc,
    short_count,
    write_ms,
)
from tidemill.pipelines.report.tables import proof_verdict, write_span
from tidemill.pipelines.training.evaluation import (
    Effect,
    Evaluation,
    Runs,
    calibration,
    measure,
    roc_points,
)
from tidemill.serving.bundles.bundle import FORMAT, bundle_version, manifest_digest
from tidemill.serving.bundles.content_hash import file_hashes
from tidemill.serving.stores.online_places import SqlitePlace

START = 1_600_000_000_000_000
STREAM = START + 200 * HOUR
ROWS = 600
STEP = 5 * MINUTE
STRANGERS = 2


def scored(rows: int, seed: int, noise: float = 1.0) -> tuple[Any, Any]:
    """Return labels, and scores that predict them the better, the less noise there is."""
    random = np.random.default_rng(seed)
    scores = random.beta(1.5, 4.0, rows)
    labels = (random.random(rows) < scores).astype(np.float64)
    return labels, np.clip(scores * (1 - noise) + random.permutation(scores) * noise, 0, 1)


def evaluation(beaten: bool = True) -> Evaluation:
    def runs(name: str, seeds: tuple[int, ...], noise: float) -> Runs:
        return Runs(
            name, seeds, tuple(measure(*scored(4_000, seed, noise)) for seed in seeds or (9,))
        )

    labels, scores = scored(4_000, 1, 0.0)
    return Evaluation(
        model=runs("with windowed features", (1, 2, 3), 0.0 if beaten else 0.9),
        baselines=(
            runs("rate by size", (), 1.0),
            runs("without windowed features", (1, 2, 3), 0.5),
        ),
        chosen_seed=1,
        calibration=calibration(labels, scores),
        roc=roc_points(labels, scores),
        effects=(
            *(Effect(f"depot__feature_{i:02d}", 0.02 / (i + 1)) for i in range(18)),
            Effect("fragile", -0.0001),
        ),
    )


def write_bundle(root: Path, found: Evaluation) -> str:
    """Write a bundle with a real evaluation and no model."""
    scratch = root / "bundles" / "new"
    scratch.mkdir(parents=True)
    (scratch / "evaluation.json").write_text(json.dumps(found.to_json()))
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "project": "parcels",
        "inputs": [],
        "transformed": {},
        "padding": {},
        "software": {},
        "transform_hash": "0" * 16,
        "model_hash": "0" * 16,
        "lineage": {"generation": "g1"},
        "created_at": "2026-11-20T12:00:00Z",
        "feature_spec_hash": "feedbeef",
        "training": {"epochs": 4, "rows": {"train": 10_000}},
        "files": file_hashes(scratch),
    }
    version = manifest["version"] = bundle_version(manifest)
    manifest["digest"] = manifest_digest(manifest)
    (scratch / "manifest.json").write_text(json.dumps(manifest))
    scratch.rename(root / "bundles" / version)
    (root / "bundles" / "current").write_text(version + "\n")
    return version


@dataclasses.dataclass(frozen=True)
class Streamed:
    """The labels of the streamed requests."""

    labels: Any
    scores: Any
    labelled: Any


def write_streamed(root: Path, labels: Any = None, clocks: bool = True) -> Streamed:
    """Write requests, the scans that label most of them, and predictions in another order.

    Of ten requests, one has its label after the horizon of one hour, and one has none.
    """
    drawn, scores = scored(ROWS, 5, 0.0)
    labels = drawn if labels is None else labels
    scores32 = scores.astype(np.float32)
    times = STREAM + STEP * np.arange(ROWS)
    parcels = [f"p{i:04d}" for i in range(ROWS)]
    requests = pa.table(
        {
            "at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "parcel": parcels,
            "depot": ["north"] * ROWS,
            "grams": pa.nulls(ROWS, pa.int64()),
            "metres": pa.nulls(ROWS, pa.float64()),
            "fragile": pa.nulls(ROWS, pa.bool_()),
        }
    )
    current = made_root(root)
    log, folder = Log(current.build_folder), current.stream_folder / "predictions"
    log.write(REQUEST, 0, requests, times)
    kept = np.arange(ROWS) % 10 != 3
    after = np.where(np.arange(ROWS) % 10 == 7, HOUR + 1, HOUR)
    came = (times + after)[kept]
    scans = pa.table(
        {
            "at": pa.array(came, pa.timestamp("us", tz="UTC")),
            "scan": [f"s{i}" for i in range(int(kept.sum()))],
            "parcel": np.array(parcels)[kept],
            "depot": ["north"] * int(kept.sum()),
            "minutes": np.where(labels[kept] == 1.0, 20.0, 15.0),
        }
    )
    log.write(SCANS, 0, scans, came)
    order = np.random.default_rng(2).permutation(ROWS)
    columns: dict[str, Any] = {
        "request_time": pa.array(times[order], pa.timestamp("us", tz="UTC")),
        "partition": pa.array(np.zeros(ROWS), pa.int64()),
        "position": pa.array(order),
        "score": scores32[order],
        "bundle_version": ["0123456789abcdef"] * ROWS,
        "device": ["CPU test"] * ROWS,
        "tensorflow": ["2.21.0"] * ROWS,
        "xla": [False] * ROWS,
    }
    if clocks:
        columns["sent_us"] = pa.array(np.full(ROWS, 10**15))
        columns["created_us"] = pa.array(10**15 + 1_000 * np.arange(1, ROWS + 1))
    whole = pa.table(columns)
    strange = whole.slice(0, STRANGERS).set_column(
        2, "position", pa.array(np.array([-1, ROWS]), pa.int64())
    )
    folder.mkdir(parents=True)
    pq.write_table(whole.slice(0, 250), folder / "a.parquet")
    pq.write_table(pa.concat_tables([whole.slice(250), strange]), folder / "b.parquet")
    labelled = (np.arange(ROWS) % 10 != 3) & (np.arange(ROWS) % 10 != 7)
    return Streamed(labels, scores32.astype(np.float64), labelled)


def configuration(root: Path, project: Any = PROJECT) -> Configuration:
    return Configuration(
        path=root / "tidemill.yaml",
        project_name="project:project",
        project=project,
        root=root,
        shards=2,
        sources={},
        splits=Splits(START, STREAM - 24 * HOUR, STREAM + ROWS * STEP),
        online_store=SqlitePlace(root / "online.db"),
    )


SUMMARY: dict[str, Any] = {
    "backfill": {
        "sources": {
            "scans": {
                "read": 12_345, "kept": 12_000, "dropped": 300, "rejected": 45,
                "reasons": {"null_id": 40, "odd_code": 5},
            },
            "pickups": {"read": 700, "kept": 700, "dropped": 0, "rejected": 0, "reasons": {}},
        },
        "training": {"requests": 700, "rows": 700, "label_leaks": 0},
        "seconds": 10.0,
    },
    "train": {"bundle": "?", "seconds": 754.3},
    "stream": {
        "engine": "fnapi", "why": "asked for by name", "mode": "exact", "requests": 602,
        "events": 4_321, "predictions": 602, "unanswered": 0, "publications": 1_717, "releases": 31,
        "late": 11, "duplicates": 12, "conflicts": 13, "repeats": 14, "seconds": 2.0,
        "rows_per_s": 2_461.5, "speed": None, "unheard_of": {"figure": 777_777},
        "frontiers_us": {"depot": STREAM + ROWS * STEP - 90 * MINUTE},
    },
    "verify": {
        "mismatches": 0, "values": 1_204, "predictions": 602, "feature_mismatches": 0,
        "late_values": 6, "oracle_requests": 100, "oracle_values": 200, "oracle_mismatches": 0,
        "store_entities": 3, "store_values": 9, "store_mismatches": 0, "seconds": 1.0,
        "first_mismatches": [], "first_late": [{"request": "p0042", "late_events": "s41"}],
    },
}  # fmt: skip


class Page(HTMLParser):
    """Parses a page into text, rows of tables and references; fails if tags do not match."""

    _VOID = ("meta", "wbr", "br", "link", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self._VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        for name, value in attrs:
            assert value is not None, (tag, name)
            self.attributes.append((name, value))
            if name == "id":
                self.ids.append(value)
            if name in ("href", "aria-labelledby"):
                self.references.append(value.removeprefix("#"))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.rows if row[: len(start)] == list(start))


def report(config: Configuration, summary: dict[str, Any]) -> Page:
    path = write_report(config, summary)
    assert path == config.root / "report.html"
    assert [p.name for p in config.root.glob("report*")] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Configuration, Evaluation, Streamed]:
    root = tmp_path_factory.mktemp("run")
    found = evaluation()
    write_bundle(root, found)
    return configuration(root), found, write_streamed(root)


@pytest.fixture(scope="module")
def page(run: tuple[Configuration, Evaluation, Streamed]) -> Page:
    return report(run[0], SUMMARY)


def test_the_page_refers_to_nothing_outside_itself(page: Page) -> None:
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "//" not in page.source.replace("</", "")
    assert "@import" not in page.source
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "srcset", "xlink:href", "data"})
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    assert page.source.count("<svg") == 3


def test_the_page_names_the_generation_that_the_bundle_was_trained_on(page: Page) -> None:
    assert "Trained on" in page.source
    assert "generation g1" in page.source


def test_every_id_stands_once_and_every_reference_finds_one(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    clips = re.findall(r"url\(#([^)]*)\)", page.source)
    assert clips
    assert {*page.references, *clips} <= set(page.ids)


def test_the_page_says_nothing_about_any_domain_but_the_project(page: Page) -> None:
    folder = Path(__file__).parents[3] / "pipelines"
    for path in (*folder.glob("report*.py"), *folder.glob("templates/report/*")):
        assert not re.search(r"flight|airport|carrier|parcel", path.read_text(), re.IGNORECASE)
    assert "<title>parcels: report of a run</title>" in page.source


def test_streamed_predictions_are_measured_against_the_labels_within_the_horizon(
    page: Page, run: tuple[Configuration, Evaluation, Streamed]
) -> None:
    streamed = run[2]
    at = streamed.labelled
    expected = measure(streamed.labels[at], streamed.scores[at])
    assert expected.rows == 480
    assert page.row("streamed period", "480")[2:] == [
        f"{expected.positive_rate:.1%}",
        f"{expected.log_loss:.4f}",
        f"{expected.auc:.4f}",
        f"{expected.brier:.4f}",
    ]
    assert f"{expected.auc:.3f} AUC, streamed period" in page.text
    assert "20.3% of the 602 predictions are unlabelled (122)" in page.text
    assert "no label came within 1h of the request" in page.text
    assert "2 of them belong to no request in the log" in page.text


def test_the_calibration_is_there_in_numbers(
    page: Page, run: tuple[Configuration, Evaluation, Streamed]
) -> None:
    streamed = run[2]
    bins = calibration(streamed.labels[streamed.labelled], streamed.scores[streamed.labelled])
    for found in bins:
        row = page.row("streamed period", f"{found.low:.0%} to {found.high:.0%}")
        assert row[2:] == [f"{found.rows:,}", f"{found.mean_score:.1%}", f"{found.rate:.1%}"]


def test_the_model_stands_beside_both_baselines(
    page: Page, run: tuple[Configuration, Evaluation, Streamed]
) -> None:
    found = run[1]
    model = page.row("with windowed features")
    assert model[1] == "3"
    assert model[2] == (
        f"{found.model.mean('log_loss'):.4f} ± {found.model.spread('log_loss'):.4f}"
    )
    rate = page.row("rate by size")
    assert rate[1:4] == ["-", *(f"{found.baselines[0].mean(m):.4f}" for m in ("log_loss", "auc"))]
    for baseline, margins in zip(found.baselines, found.verdicts(), strict=True):
        assert page.row(baseline.name)[-1] == (
            f"yes, by {margins.log_loss_margin:.4f} log loss, {margins.auc_margin:.4f} AUC"
        )
    assert "✓ The model beats every baseline." in page.text


def test_a_baseline_that_is_not_beaten_is_said(tmp_path: Path) -> None:
    found = evaluation(beaten=False)
    assert not found.beats_baselines
    write_bundle(tmp_path, found)
    page = report(configuration(tmp_path), {})
    assert "✗ The model does not beat every baseline." in page.text
    assert page.row("without windowed features")[-1].startswith("no, by -")


def test_the_largest_effects_come_first_with_bars_in_proportion(page: Page) -> None:
    start = page.rows.index(page.row("model input"))
    shown = page.rows[start + 1 : start + 16]
    assert [row[0] for row in shown] == [f"depot__feature_{i:02d}" for i in range(15)]
    assert [row[1] for row in shown][:2] == ["+0.02000", "+0.01000"]
    widths = re.findall(r'class="bar" style="width: ([0-9.]+)%"', page.source)
    assert widths[:3] == ["100.0", "50.0", "33.33"]
    assert "The other 4 inputs have smaller effects" in page.text


def test_effects_that_are_none_have_no_bar(tmp_path: Path) -> None:
    found = dataclasses.replace(evaluation(), effects=(Effect("grams", 0.0), Effect("hour", -0.1)))
    write_bundle(tmp_path, found)
    page = report(configuration(tmp_path), {})
    assert page.row("hour")[1] == "-0.10000"
    assert 'class="bar"' not in page.source


def test_stages_say_what_they_did_and_how_fast(page: Page) -> None:
    assert page.row("backfill") == [
        "backfill",
        "10 s",
        "1,304 rows/s",
        "read 13,045 rows, computed the features of 700 requests",
    ]
    assert page.row("train")[1:] == [
        "12 min 34 s",
        "318 rows/s",
        "6 trainings of 4 passes over 10,000 rows, and their evaluation",
    ]
    assert page.row("stream")[1:] == ["2 s", "2,462 rows/s", "4,321 events and 602 requests"]
    assert page.row("verify")[1:3] == ["1 s", "1,204 values/s"]


def test_latency_runs_from_the_poll_to_the_score(page: Page) -> None:
    # Latencies of 1 to 600 ms, and those of the two predictions without a request.
    assert "p50 300 ms , p90 540 ms , p99 594 ms" in page.text
    assert "This replay ran as fast as it could" in page.text


def test_a_replay_at_a_speed_says_so(run: tuple[Configuration, Evaluation, Streamed]) -> None:
    summary = {"stream": {**SUMMARY["stream"], "speed": 60.0}}
    assert "This replay ran at 60 times real time." in report(run[0], summary).text


def test_frontiers_say_how_far_each_view_got(page: Page) -> None:
    reached = STREAM + ROWS * STEP - 90 * MINUTE
    assert page.row("depot") == ["depot", write_instant(reached), "1 h 30 min"]


def test_counts_are_explained(page: Page) -> None:
    expected = {"late": 11, "duplicates": 12, "conflicts": 13, "repeats": 14, "unanswered": 0}
    for name, count in expected.items():
        _, shown, meaning = page.row(name)
        assert shown == str(count)
        assert meaning
    assert page.row("publications")[1] == "1,717"


def test_rejected_records_stand_by_reason_with_its_meaning(page: Page) -> None:
    assert page.row("scans", "12,345") == ["scans", "12,345", "12,000", "300", "45"]
    assert page.row("scans", "null_id") == ["scans", "null_id", "the id is null", "40"]
    assert page.row("scans", "odd_code") == ["scans", "odd_code", "", "5"]


def test_figures_that_the_page_does_not_know_are_still_there(page: Page) -> None:
    assert "777,777" in page.text


def test_a_clean_proof_is_green_with_all_that_was_compared(page: Page) -> None:
    assert 'class="verdict good"' in page.source
    assert "✓ 0 mismatches in 1,204 values" in page.text
    assert page.row("Values used")[1:4] == ["602 predictions", "1,204", "0"]
    assert page.row("Of them late")[1:4] == ["", "6", "0"]
    assert page.row("Oracle")[1:4] == ["100 requests", "200", "0"]
    assert page.row("Feature store")[1:4] == ["3 entities", "9", "0"]
    assert page.row("p0042") == ["p0042", "s41"]


def test_mismatches_are_red_and_listed_first_and_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    first = [{"what": hostile, "seen": "1.5", "expected": "2.5", "cause": None}]
    verify = {**SUMMARY["verify"], "mismatches": 1, "feature_mismatches": 1}
    page = report(configuration(tmp_path), {"verify": {**verify, "first_mismatches": first}})
    assert 'class="verdict bad"' in page.source
    assert "✗ 1 mismatches in 1,204 values" in page.text
    assert page.row("what") == ["what", "seen", "expected"]
    assert page.row(hostile) == [hostile, "1.5", "2.5"]
    assert "<script" not in page.source
    assert page.source.index("The first mismatches") < page.source.index("The run</h2>")


@pytest.mark.parametrize("part", ["oracle", "store"])
def test_a_mismatch_anywhere_is_never_green(part: str) -> None:
    found = proof_verdict({**SUMMARY["verify"], f"{part}_mismatches": 2})
    assert found.tone == "bad"
    assert "(2)" in found.more


def test_every_part_of_a_proof_counts() -> None:
    parts = {"mismatches": 0, "values": 5, "oracle_values": 2, "oracle_mismatches": 0}
    parts |= {"feature_mismatches": 0}
    assert proof_verdict(parts).tone == "good"
    assert proof_verdict({**parts, "oracle_mismatches": 1}).tone == "bad"


def test_a_proof_of_nothing_is_not_green() -> None:
    assert proof_verdict({"mismatches": 0, "values": 0}).tone == "none"
    assert proof_verdict({"mismatches": 0, "values": 5, "oracle_values": 2}).tone == "none"
    assert proof_verdict({}).line == "Not proven yet"


def test_before_the_first_stage_every_part_says_what_is_missing(tmp_path: Path) -> None:
    page = report(configuration(tmp_path / "new"), {})
    assert 'class="verdict none"' in page.source
    for words in (
        "Not proven yet",
        "there is no live bundle",
        "There are no predictions yet; run tidemill stream .",
        "No effects were measured",
        "No stage has run yet",
        "No latency is known",
        "No frontiers yet",
        "the stream has not run",
        "the backfill has not run",
    ):
        assert words in page.text
    assert "<svg" not in page.source
    assert "None" not in page.text


def test_a_project_without_a_label_still_has_a_report(tmp_path: Path) -> None:
    write_streamed(tmp_path)
    page = report(configuration(tmp_path, dataclasses.replace(PROJECT, label=None)), SUMMARY)
    assert "This project has no label" in page.text
    assert "602 predictions" in page.text


def test_a_lost_log_is_said(tmp_path: Path) -> None:
    write_streamed(tmp_path)
    (build_of(tmp_path) / "log" / "pickups" / "00000.arrow").unlink()
    page = report(configuration(tmp_path), SUMMARY)
    assert "there is no log of 'pickups'" in page.text


def test_labels_that_are_all_alike_cannot_be_measured_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    write_streamed(tmp_path, labels=np.zeros(ROWS))
    page = report(configuration(tmp_path), {})
    assert "These scores cannot be measured: all 480 rows to measure have the label 0" in page.text
    assert "20.3% of the 602 predictions are unlabelled" in page.text


def test_predictions_without_clocks_have_no_latency(tmp_path: Path) -> None:
    write_streamed(tmp_path, clocks=False)
    assert "No latency is known" in report(configuration(tmp_path), {}).text


def test_a_bundle_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    version = write_bundle(tmp_path, evaluation())
    (tmp_path / "bundles" / version / "evaluation.json").write_text("{}")
    page = report(configuration(tmp_path), {})
    assert "has changed: 'evaluation.json'" in page.text
    assert "beats every baseline" not in page.text


def test_predictions_of_another_bundle_than_the_live_one_are_said(page: Page) -> None:
    assert "Predicted with bundle 0123456789abcdef" in page.text
    assert "Device CPU test" in page.text
    assert "TensorFlow 2.21.0" in page.text
    assert "Engine fnapi: asked for by name" in page.text


def test_a_picture_is_the_same_for_the_same_figures_and_takes_the_pages_colours() -> None:
    labels, scores = scored(2_000, 3, 0.0)
    curve = Curve("some <scores>", calibration(labels, scores), roc_points(labels, scores))
    for draw in (draw_calibration, draw_roc):
        picture = draw([curve])
        assert picture == draw([curve])
        assert "some &lt;scores&gt;" in picture
        assert "var(--first)" in picture
        assert not re.search(r"#0102\d\d", picture)
        Page(picture)


@pytest.mark.parametrize("took_ms", [[0.0], [5.0, 5.0], [1.0, 3_000.0], [-4.0, 200_000.0]])
def test_latencies_of_any_size_can_be_drawn(took_ms: list[float]) -> None:
    picture = draw_latency(np.array(took_ms))
    assert f"Latency of {len(took_ms)} predictions" in picture
    assert "nan" not in picture
    Page(picture)


def test_figures_are_written_in_units_that_suit_them() -> None:
    assert [write_ms(v) for v in (0.42, 37, 1_234, 180_000)] == [
        "0.42 ms",
        "37 ms",
        "1.23 s",
        "3 min",
    ]
    assert [short_count(v) for v in (87, 4_321, 28_212, 1_250_000)] == ["87", "4.3k", "28k", "1.2M"]
    assert write_span(90_061_000_000) == "1 d 1 h"
