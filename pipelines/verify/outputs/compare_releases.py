"""Comparing the release log: every field of every release is what the polls give."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tidemill.pipelines.recovery.release_log import place_of, read_release_lines
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.release_line import RELEASE_VERSION, release_line
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text
from tidemill.pipelines.verify.outputs.reach import Beyond

_WITHOUT_MARKS: Final = 1
"""The version of releases that had no marks."""
_MARKS: Final = ("mark_before", "mark")


class ReleaseCheck:
    """Compares the release log of a stream.

    Args:
        stream: The stream's folder.
        findings: Takes the mismatches.

    Attributes:
        found: The entries of the release log, by view, shard and number, that were not compared.
        compared: How many releases were compared.

    Raises:
        InputError: There are no releases.
        DamagedFile: A line does not say which release it is.
    """

    def __init__(self, stream: Path, findings: Findings) -> None:
        self._findings = findings
        self.compared = 0
        self.found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
        for key, entry in read_release_lines(stream, lambda one: (place_of(one), dict(one))):
            self.found.setdefault(key, []).append(entry)

    def leave_out(self, beyond: Beyond) -> None:
        """Do not compare the releases that are beyond the live log."""
        keys = list(self.found)
        for key, is_beyond in zip(keys, beyond.numbers(key[-1] for key in keys), strict=True):
            if is_beyond:
                del self.found[key]

    def take(self, releases: Iterable[tuple[ShardOperator, Release]], complete: int) -> None:
        """Compare releases.

        Args:
            releases: What the polls give.
            complete: Releases up to this number must be there.
        """
        for operator, release in releases:
            key = operator.key.view, operator.key.shard, release.number
            entries = self.found.pop(key, [])
            if not entries:
                if release.number <= complete:
                    self._note(
                        key, "no evidence", "one",
                        "the engine lost it, or it was removed: every step leaves evidence",
                    )  # fmt: skip
                continue
            self.compared += 1
            expected = json.loads(release_line(operator, release))
            if any(entry != entries[0] for entry in entries):
                self._note(key, "two that differ", "one", "it was recorded again, otherwise")
            self._compare(key, entries[0], expected)

    def _compare(
        self, key: tuple[str, int, int], entry: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        version = entry.get("version", _WITHOUT_MARKS)
        if version != RELEASE_VERSION:
            for name in ("version", *_MARKS):
                expected.pop(name)
            entry.pop("version", None)
        for name in sorted(expected.keys() | entry.keys()):
            seen, right = entry.get(name), expected.get(name)
            if type(seen) is not type(right) or seen != right:
                self._note(
                    key, _shown(name, seen), _shown(name, right),
                    "the stream's polls give another release: the record was changed, or the "
                    "engine has cut its polls elsewhere", name,
                )  # fmt: skip

    def finish(self) -> None:
        """Note the releases that no poll gives."""
        for key in sorted(self.found):
            self._note(key, "a release", "none", "no poll of the stream gives it: it was added")

    def _note(
        self, key: tuple[str, int, int], seen: str, expected: str, cause: str, field: str = ""
    ) -> None:
        view, shard, number = key
        id = f"release {number} of shard {shard}"
        self._findings.add(
            Mismatch("release", id, view, field, seen=seen, expected=expected, cause=cause)
        )


def _shown(name: str, value: Any) -> str:
    """Write a field as the line has it, and an instant as one."""
    return field_text(name, value) if type(value) is int else json.dumps(value)
