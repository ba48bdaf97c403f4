"""What people say about a definition: its owner, its tags and a description.

They reach Feast's registry, and are no part of a definition's canonical form: no value depends on
them, so a change makes no new version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tidemill.features.definitions.arguments import check_kind, check_utf8, read_only
from tidemill.features.errors import DefinitionError, WrongType, found, shown

DESCRIPTIVE: Final = ("owner", "tags", "description")
"""The attributes that are no part of a canonical form."""

TAG_PREFIX: Final = "tidemill_"
"""The start of the names of tags that Tidemill itself writes."""


class Described:
    """A definition that has an owner, tags and a description.

    Attributes:
        owner: Who is responsible for it, such as an e-mail address.
        tags: Free texts by name; a name must not start with ``tidemill_``.
        description: What it is, in words.
    """

    owner: str
    tags: Mapping[str, str]
    description: str

    def check_described(self, what: str) -> None:
        """Check the three attributes, and make the tags immutable.

        Raises:
            DefinitionError: One of them is not text, or a tag has a name that Tidemill uses.
        """
        for name in ("owner", "description"):
            check_kind(getattr(self, name), str, f"{what}: {name}", "a text")
            check_utf8(getattr(self, name), f"{what}: {name}")
        example = "a dict from text to text, such as {'team': 'risk'}"
        tags = read_only(self.tags, f"{what}: tags", example)
        for name, value in tags.items():
            for text in (name, value):
                if not isinstance(text, str):
                    raise WrongType(f"{what}: tags must be {example}; {found(text)}")
                check_utf8(text, f"{what}: tags:")
            if name.startswith(TAG_PREFIX):
                raise DefinitionError(
                    f"{what}: tags: {shown(name)} starts with {TAG_PREFIX!r}, as those that "
                    "Tidemill writes do; rename it"
                )
        object.__setattr__(self, "tags", tags)

    def described(self) -> dict[str, Any]:
        """Return the three attributes by name, the tags as a dict of their own."""
        return {"owner": self.owner, "tags": dict(self.tags), "description": self.description}
