"""Whether workers on other machines would reach the exchange that a configuration names."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tidemill.pipelines.io.exchange.objects import without_secrets

_HERE: Final = re.compile(r"localhost|127(\.\d+){3}|::1|0\.0\.0\.0")
_SUCH: Final = "name a folder in object storage, such as gs://BUCKET/tidemill"


def missing_exchange(url: str | None, *, is_here: bool) -> list[str]:
    """Return what is wrong with an exchange, and what to set instead; empty if nothing is.

    Args:
        url: Its URL; None if the configuration names none.
        is_here: Whether the workers are on this machine after all.
    """
    if url is None:
        return [f"stream.exchange is not set; {_SUCH}"]
    if is_here or not _is_of_this_machine(url):
        return []
    return [f"stream.exchange, {without_secrets(url)}, is of this machine; {_SUCH}"]


def is_address_here(host: str) -> bool:
    """Tell whether a host is this machine."""
    return _HERE.fullmatch(host) is not None


def _is_of_this_machine(url: str) -> bool:
    parts = urlsplit(url)
    override = parse_qs(parts.query).get("endpoint_override", [""])[0]
    host = urlsplit(override if "://" in override else f"//{override}").hostname
    return parts.scheme == "file" or is_address_here(host or "")
