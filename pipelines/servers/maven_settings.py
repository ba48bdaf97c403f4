"""The parts of a user's Maven settings that say where jars come from.

They stand in ``~/.m2/settings.xml`` (https://maven.apache.org/settings.html). Read are the mirrors,
with the user and password of the server of the same name, and the local repository.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from tidemill.features.errors import JarsMissing

_CENTRAL: Final = "central"
_VARIABLE: Final = re.compile(r"\$\{(?:env\.([^}]+)|(user\.home))\}")


def read_settings() -> ElementTree.Element:
    """Read the user's settings; an empty element if there are none.

    Raises:
        JarsMissing: The file is not XML.
    """
    path = Path.home() / ".m2" / "settings.xml"
    try:
        return ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        return ElementTree.Element("settings")
    except ElementTree.ParseError as error:
        raise JarsMissing(
            f"{path} is not XML ({error}), so it cannot say where Kafka's jars come from: "
            "correct it, or remove it"
        ) from None


def local_repository(settings: ElementTree.Element) -> Path:
    """Return the folder in which Maven keeps what it has fetched."""
    named = _text(settings, "localRepository") or os.environ.get("M2_REPO")
    return Path(named) if named else Path.home() / ".m2" / "repository"


def central(settings: ElementTree.Element) -> str | None:
    """Return the URL of the mirror of Maven's central repository, with its user and password.

    Returns:
        The URL, without a slash at its end; None if no mirror is configured.

    Raises:
        JarsMissing: The mirror is blocked, has no URL, or its password is encrypted.
    """
    mirrors = settings.findall("{*}mirrors/{*}mirror")
    # Maven prefers the mirror that names a repository to those that name several.
    exact = [mirror for mirror in mirrors if _text(mirror, "mirrorOf") == _CENTRAL]
    for mirror in exact or [one for one in mirrors if _covers_central(_text(one, "mirrorOf"))]:
        name, url = _text(mirror, "id"), _text(mirror, "url").rstrip("/")
        if not url or _text(mirror, "blocked") == "true":
            raise JarsMissing(
                f"the mirror {name!r} in ~/.m2/settings.xml is blocked or has no url, and the "
                "jars are to come from it: correct it"
            )
        return _with_user(url, name, settings)
    return None


def _covers_central(patterns: str) -> bool:
    """Tell whether ``mirrorOf`` covers the central repository, which is external and https."""
    names = [name.strip() for name in patterns.split(",")]
    return f"!{_CENTRAL}" not in names and bool({"*", "external:*", _CENTRAL} & set(names))


def _with_user(url: str, name: str, settings: ElementTree.Element) -> str:
    for server in settings.findall("{*}servers/{*}server"):
        if _text(server, "id") == name and (user := _text(server, "username")):
            password = _text(server, "password")
            if password.startswith("{"):
                raise JarsMissing(
                    f"the password of the server {name!r} in ~/.m2/settings.xml is encrypted, and "
                    "only Maven can read it: put mvn on the PATH"
                )
            parts = urlsplit(url)
            place = f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc}"
            return urlunsplit(parts._replace(netloc=place))
    return url


def _text(element: ElementTree.Element, name: str) -> str:
    """Return the text of a child, with its variables filled in; "" if there is none."""
    found = (element.findtext(f"{{*}}{name}") or "").strip()

    def value(match: re.Match[str]) -> str:
        return str(Path.home()) if match[2] else os.environ.get(match[1], "")

    return _VARIABLE.sub(value, found)
