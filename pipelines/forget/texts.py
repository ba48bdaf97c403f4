"""The summary, the report and the figures of a root, where they name an entity."""

from __future__ import annotations

import json
from typing import Any

from tidemill.pipelines.forget.linked_copy import LinkedCopy
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.proof_record import record_path
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.generations.current import GENERATIONS

TOLD = "forgotten"
"""What stands in place of a text that names the entity."""


def rewrite_texts(copy: LinkedCopy, subject: Subject) -> int:
    """Replace the texts of the summary that name a subject; remove report and figures that do.

    The figures of `verify` name entities and requests of mismatches and of late values.

    Returns:
        How many texts were replaced or removed.
    """
    count = 0
    figures = (copy.folder / GENERATIONS).glob("*/telemetry/**/*")
    for path in (copy.folder / paths.REPORT, *sorted(figures)):
        if path.is_file() and subject.in_bytes(path.read_bytes()):
            path.unlink()
            count += 1
    path = copy.folder / paths.SUMMARY
    if path.exists() and subject.in_bytes(path.read_bytes()):
        found, replaced = _without(json.loads(path.read_bytes()), subject)
        if replaced:
            write_text(path, json.dumps(found, indent=2) + "\n")
        count += replaced
    return count


def remove_proofs(copy: LinkedCopy, subject: Subject, *, is_blanked: bool) -> int:
    """Remove the record of a proof beside a stream: it has the digests of rows that are blank now.

    The proof begins anew. Pages, and records of earlier streams, are removed if they name the
    subject.

    Args:
        copy: The copy of the root.
        subject: The subject.
        is_blanked: Whether rows were blanked.
    """
    count = 0
    folder = copy.folder / paths.PROOF
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.html")]):
        is_current = path.name == record_path(copy.folder).name
        if (is_current and is_blanked) or subject.in_bytes(path.read_bytes()):
            path.unlink()
            count += 1
    return count


def _without(value: Any, subject: Subject) -> tuple[Any, int]:
    if isinstance(value, str):
        return (TOLD, 1) if subject.in_bytes(value.encode()) else (value, 0)
    count = 0
    if isinstance(value, dict):
        made = {}
        for name, one in value.items():
            made[name], of_it = _without(one, subject)
            count += of_it
        return made, count
    if isinstance(value, list):
        pairs = [_without(one, subject) for one in value]
        return [one for one, _ in pairs], sum(of_it for _, of_it in pairs)
    return value, 0
