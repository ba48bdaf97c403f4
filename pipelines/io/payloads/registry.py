"""A schema registry, read over HTTP: the schemas that messages name by their ids.

The interface is that of Confluent's Schema Registry (``GET /schemas/ids/{id}``, and ``GET
/subjects/{subject}/versions/{version}`` for the schemas that a schema refers to), which other
registries offer too.

The promises:

* The schema of an id never changes, so it is asked for once. An id that the registry does not know
  is asked for again: it may become known.
* Every request has a time limit. A registry that does not answer, or answers that it cannot now, is
  asked again a bounded number of times; then `RegistryUnavailable` is raised, and no message is
  rejected for it.
* Credentials are sent to the registry's own address only: redirections are refused.
"""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NoReturn

import tenacity

from tidemill.features.errors import ConfigurationError, RegistryRefused, RegistryUnavailable

_ACCEPT: Final = "application/vnd.schemaregistry.v1+json, application/json"
_MOST_BYTES: Final = 1 << 24
_MOST_DEPTH: Final = 32
_UNKNOWN_SCHEMA: Final = (40401, 40402, 40403)
"""Error codes of an unknown subject, version and schema."""
_PASSING: Final = (408, 425, 429)
AVRO, PROTOBUF, JSON = "AVRO", "PROTOBUF", "JSON"


@dataclass(frozen=True)
class RegistryPlace:
    """Where a registry is, and how to speak to it.

    Attributes:
        url: Its address, ``http://`` or ``https://``.
        user: The user of basic authentication; None without.
        password: The user's password.
        ca: A PEM file of the certificates to trust; None for the machine's.
        timeout_s: How long a request may take to connect, and between two parts of the answer.
        attempts: How often a request is made before the registry counts as unavailable.
        pause_s: The pause before the second attempt; it doubles, with some jitter.

    Raises:
        ConfigurationError: The address is not one of a registry.
    """

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    timeout_s: float = 10.0
    attempts: int = 4
    pause_s: float = 0.2

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"schema registry: found the address {parts.hostname or self.url[:40]!r}, expected "
                "http://HOST:PORT or https://HOST:PORT"
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(
                f"schema registry at {parts.hostname}: its address has a user or a password; give "
                "them apart from it, so that no message shows them"
            )


@dataclass(frozen=True)
class RegisteredSchema:
    """A schema as it is registered.

    Attributes:
        kind: ``AVRO``, ``PROTOBUF`` or ``JSON``.
        text: The schema.
        references: The schemas that it refers to, by the names that it uses for them; those that
            a schema needs come before it.
    """

    kind: str
    text: str
    references: Mapping[str, RegisteredSchema]


class Registry:
    """Reads the schemas of a registry; it may be pickled, without what it has read.

    Args:
        place: Where the registry is.
    """

    def __init__(self, place: RegistryPlace) -> None:
        self.place = place
        self._known: dict[str, RegisteredSchema] = {}
        self._opened: urllib.request.OpenerDirector | None = None

    def __reduce__(self) -> tuple[type, tuple[RegistryPlace]]:
        """Leave the schemas behind."""
        return type(self), (self.place,)

    def schema(self, id: int, format: str | None = None) -> RegisteredSchema | None:
        """Return the schema of an id; None if the registry has none, or lacks what it refers to.

        Args:
            id: The id.
            format: How the registry is to write schemas (``serialized`` for a protobuf descriptor
                in base64); None for as they are.

        Raises:
            RegistryUnavailable: The registry does not answer for now.
            RegistryRefused: It refuses, is not trusted, or is not a registry.
        """
        return self._read(f"/schemas/ids/{id}", "" if format is None else f"?format={format}", 0)

    def _read(self, resource: str, query: str, depth: int) -> RegisteredSchema | None:
        path = resource + query
        if path in self._known:
            return self._known[path]
        if depth > _MOST_DEPTH:
            self._refuse(f"{path}: a schema refers to others more than {_MOST_DEPTH} deep")
        given = self._get(path)
        if given is None:
            return None
        references: dict[str, RegisteredSchema] = {}
        try:
            kind, text = given.get("schemaType") or AVRO, given["schema"]
            for one in given.get("references") or ():
                subject = urllib.parse.quote(one["subject"], safe="")
                name, version = str(one["name"]), int(one["version"])
                found = self._read(f"/subjects/{subject}/versions/{version}", query, depth + 1)
                if found is None:
                    return None
                references[name] = found
        except (KeyError, TypeError, ValueError, AttributeError):
            self._refuse(f"{path}: found {str(given)[:80]}, expected a schema")
        if not isinstance(text, str) or not isinstance(kind, str):
            self._refuse(f"{path}: found {str(given)[:80]}, expected a schema")
        schema = self._known[path] = RegisteredSchema(kind, text, references)
        return schema

    def _refuse(self, what: str) -> NoReturn:
        raise RegistryRefused(f"schema registry {self.place.url}{what}")

    def _get(self, path: str) -> dict[str, Any] | None:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RegistryUnavailable),
            stop=tenacity.stop_after_attempt(self.place.attempts),
            wait=tenacity.wait_exponential_jitter(
                initial=self.place.pause_s, jitter=self.place.pause_s, max=10
            ),
            reraise=True,
        )
        found: dict[str, Any] | None = retrying(self._get_once, path)
        return found

    def _get_once(self, path: str) -> dict[str, Any] | None:
        place = self.place
        headers = {"Accept": _ACCEPT}
        if place.user is not None:
            credentials = f"{place.user}:{place.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"
        url = place.url.rstrip("/") + path
        request = urllib.request.Request(url, headers=headers)
        try:
            with self._opener().open(request, timeout=place.timeout_s) as answer:
                body = answer.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._check(path, error)
                return None
        except ssl.SSLCertVerificationError as error:
            self._untrusted(error)
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                self._untrusted(cause)
            raise RegistryUnavailable(
                f"schema registry {place.url} does not answer ({cause}); is it up, and is this its "
                "address?"
            ) from error
        return self._parsed(path, body)

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> NoReturn:
        self._refuse(
            f": its certificate is not trusted ({error.verify_message}); name the file of the "
            "certificates to trust"
        )

    def _opener(self) -> urllib.request.OpenerDirector:
        if self._opened is None:
            self._opened = self._made_opener()
        return self._opened

    def _made_opener(self) -> urllib.request.OpenerDirector:
        try:
            context = ssl.create_default_context(cafile=self.place.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"schema registry {self.place.url}: cannot read the certificates in "
                f"{self.place.ca} ({error})"
            ) from error
        return urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _NoRedirection()
        )

    def _check(self, path: str, error: urllib.error.HTTPError) -> None:
        """Raise, unless it is the answer about a schema that the registry does not know."""
        try:
            body = error.read(_MOST_BYTES)
        except (OSError, HTTPException):
            body = b""
        if error.code == 404 and _error_code(body) in _UNKNOWN_SCHEMA:
            return
        what = f"{path}: answered {error.code} {error.reason}"
        if error.code >= 500 or error.code in _PASSING:
            raise RegistryUnavailable(f"schema registry {self.place.url}{what}; try again later")
        hint = {
            401: "; check the user and the password",
            403: "; the user may not read schemas",
            404: "; is this the address of a schema registry?",
        }
        self._refuse(what + hint.get(error.code, ""))

    def _parsed(self, path: str, body: bytes) -> dict[str, Any]:
        try:
            given = json.loads(body) if len(body) <= _MOST_BYTES else None
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            self._refuse(f"{path}: found {body[:40]!r}, expected a JSON object")
        return given


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Refuse: another address would be given the credentials."""
        return


def _error_code(body: bytes) -> int | None:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = given.get("error_code") if isinstance(given, dict) else None
    return code if isinstance(code, int) else None
