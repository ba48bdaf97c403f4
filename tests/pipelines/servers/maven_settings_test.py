"""The mirror that a user's Maven settings name for the central repository."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tidemill.features.errors import JarsMissing
from tidemill.pipelines.servers.maven_settings import central, local_repository, read_settings


def mirrors(*of: tuple[str, str], more: str = "") -> ElementTree.Element:
    """Settings with a mirror for each name and pattern."""
    listed = "".join(
        f"<mirror><id>{name}</id><url>https://{name}.example/maven</url>"
        f"<mirrorOf>{pattern}</mirrorOf>{more}</mirror>"
        for name, pattern in of
    )
    return ElementTree.fromstring(f"<settings><mirrors>{listed}</mirrors></settings>")


@pytest.mark.parametrize(
    ("of", "chosen"),
    [
        ([], None),
        ([("a", "*")], "a"),
        ([("a", "external:*")], "a"),
        ([("a", "other, central")], "a"),
        ([("a", "other")], None),
        ([("a", "*,!central")], None),
        ([("a", "external:http:*")], None),
        ([("a", "*"), ("b", "*")], "a"),
        ([("a", "*"), ("b", "central")], "b"),
    ],
)
def test_the_mirror_is_the_one_that_maven_takes(
    of: list[tuple[str, str]], chosen: str | None
) -> None:
    expected = None if chosen is None else f"https://{chosen}.example/maven"
    assert central(mirrors(*of)) == expected


def test_a_blocked_mirror_and_an_encrypted_password_are_errors() -> None:
    with pytest.raises(JarsMissing, match=r"'a' in ~/\.m2/settings\.xml is blocked"):
        central(mirrors(("a", "*"), more="<blocked>true</blocked>"))
    settings = mirrors(("a", "*"))
    settings.append(
        ElementTree.fromstring(
            "<servers><server><id>a</id><username>me</username>"
            "<password>{c2VjcmV0}</password></server></servers>"
        )
    )
    with pytest.raises(JarsMissing, match="password of the server 'a'"):
        central(settings)


def test_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIRROR", "https://mirror.example")
    settings = ElementTree.fromstring(
        "<settings><localRepository>${user.home}/kept</localRepository><mirrors><mirror>"
        "<id>a</id><url>${env.MIRROR}/maven</url><mirrorOf>central</mirrorOf></mirror></mirrors>"
        "</settings>"
    )
    assert central(settings) == "https://mirror.example/maven"
    assert local_repository(settings) == tmp_path / "kept"


def test_settings_may_be_missing_and_not_be_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("M2_REPO", raising=False)
    assert central(read_settings()) is None
    assert local_repository(read_settings()) == tmp_path / ".m2" / "repository"
    (tmp_path / ".m2").mkdir()
    (tmp_path / ".m2" / "settings.xml").write_text("<settings>")
    with pytest.raises(JarsMissing, match=r"settings\.xml is not XML"):
        read_settings()
