"""The page of a proof: one file, with a chart for each question, and escaped text."""

from __future__ import annotations

import re
from pathlib import Path

from tidemill.features.contract import SECOND
from tidemill.pipelines.report.proof_charts import bins_of
from tidemill.pipelines.report.proof_page import render_proof_page, write_proof_page
from tidemill.pipelines.run.proof_record import Cause, Difference, ProofRecord, Round

AT = 1_796_000_000 * SECOND


def record(rounds: int = 90) -> ProofRecord:
    found = ProofRecord("0123456789abcdef", 2, "b", counts={"predictions": 7, "store_values": 3})
    for number in range(rounds):
        causes = {Cause.LATE_EVENT: number % 3, Cause.UNEXPLAINED: int(number == 50)}
        at = AT + number * 10 * SECOND
        done = Round(
            at, at - 12 * SECOND, 0.3, 12.0, 1_000, 500, 0.5,
            {str(cause): count for cause, count in causes.items() if count}, 2.0 + number / 100,
        )  # fmt: skip
        example = Difference(
            "2026-11-30T00:00:00Z", Cause.UNEXPLAINED, "as seen", "value", "q-<b>", "c-&", "v",
            "v__f", "2026-11-30T00:00:00Z", "7", "6", "why", ("p-1 (paid/0:7)",),
        )  # fmt: skip
        found = found.with_round(done, [example] * (number == 50))
    return found


def test_the_page_is_one_file_that_shows_what_was_found(tmp_path: Path) -> None:
    path = write_proof_page("a <project>", tmp_path, record())
    assert path == tmp_path / "proof" / "proof.html"
    page = path.read_text()
    assert "a &lt;project&gt;" in page
    assert "1 mismatches in 45,000 values" in page
    assert "It recomputes the values of 50% of entities, stream 2" in page
    assert page.count("<svg") == 3
    assert "q-&lt;b&gt;" in page
    assert "<b>" not in page.replace("<b>45,000</b>", "").replace("<b>50%</b>", "").replace(
        "<b>7</b>", ""
    ).replace("<b>3</b>", "").replace("<b>12 s</b>", "").replace("<b>2.9 s</b>", "")
    assert "p-1 (paid/0:7)" in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "http" not in page.replace('http-equiv="refresh"', "")
    assert not list(path.parent.glob("*.tmp*"))


def test_a_page_before_the_first_round_says_so() -> None:
    page = render_proof_page("shop", ProofRecord("g", 1, "b", stops="`x` is damaged"))
    assert page.count("No round has been done yet.") == 3
    assert "<svg" not in page
    assert "It cannot go on" in page
    assert "<code>x</code> is damaged" in page


def test_the_bins_hold_all_rounds_and_their_values() -> None:
    rounds = record(300).rounds
    bins = bins_of(rounds)
    assert len(bins) == 60
    assert sum(len(one.rounds) for one in bins) == len(rounds)
    assert sum(one.values for one in bins) == sum(one.values for one in rounds)
    assert bins_of([]) == []
