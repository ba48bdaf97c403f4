"""Every example in the documents is run."""

from __future__ import annotations

import doctest
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.markdown import DOCS, ROOT, blocks, session, table_names
from tests.support.recorded import record
from tidemill.features.definitions import REGISTRY
from tidemill.features.kernel import advance  # noqa: F401 - registers all folds
from tidemill.features.kernel.registry import FOLDS

AGGREGATIONS = DOCS / "aggregations.md"
OFFLINE = DOCS / "offline-store.md"
ONLINE = DOCS / "online-store.md"
TESTING = DOCS / "testing.md"
DOCUMENTS = (
    DOCS / "contract-of-time.md",
    AGGREGATIONS,
    DOCS / "architecture.md",
    DOCS / "kafka-payloads.md",
    OFFLINE,
    ONLINE,
    TESTING,
)


def failures(document: Path, names: Mapping[str, Any] | None = None) -> list[str]:
    """Run a document's sessions, one after the other in one namespace that has these names."""
    test = doctest.DocTestParser().get_doctest(
        session(document), dict(names or {}), document.name, str(document), 0
    )
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    return report


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_sessions_answer_what_the_document_says(document: Path, tmp_path: Path) -> None:
    # The page on testing has a run recorded where a user would have one.
    names = {"record": functools.partial(record, tmp_path / "run")} if document == TESTING else {}
    assert failures(document, names) == []


def test_a_session_that_answers_something_else_is_found(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("# Sums\n\n```python\n>>> 1 + 1\n3\n```\n")
    (report,) = failures(document)
    assert 'wrong.md", line 4' in report
    assert "Expected:\n    3\nGot:\n    2" in report


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_python_blocks_are_sessions_or_fragments_of_a_file_that_is_there(document: Path) -> None:
    for block in blocks(document):
        if block.language == "python" and not block.is_session:
            assert block.file is not None, f"{document.name}, line {block.line}"
            assert (ROOT / block.file).is_file(), f"{document.name}, line {block.line}"


def test_the_page_of_aggregations_lists_the_registered_ones_in_their_order() -> None:
    assert table_names(AGGREGATIONS, "| aggregation | value | how good |") == list(REGISTRY)


def test_the_page_of_aggregations_lists_the_folds_and_their_words() -> None:
    heading = "| fold | words in the tile | what they hold |"
    assert sorted(table_names(AGGREGATIONS, heading)) == sorted(FOLDS)
    text = AGGREGATIONS.read_text()
    for fold in FOLDS.values():
        assert f"| `{fold.name}` | {len(fold.identity)} |" in text
