"""What a storage says when it does not do what it was asked, as errors with a name and a remedy.

Pyarrow raises an OSError for all of it; the words of the storage are in its text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tidemill.features.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnreachable,
    ExpiredCredentials,
    NoSuchBucket,
)


def _any(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


# The codes of S3 as its SDK and as its servers write them, then the words of other storages.
_EXPIRED: Final = _any(
    "EXPIRED_?TOKEN", "TOKEN_?REFRESH_?REQUIRED", "REQUEST_?EXPIRED", "has expired"
)
_RENEW: Final = (
    "renew the credentials of this process (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_SESSION_TOKEN), or give its machine a role, whose credentials renew themselves"
)
_ABSENT: Final = _any("NO_?SUCH_?BUCKET", r"Bucket '[^']*' not found", "bucket does not exist")
_MAKE: Final = "make the bucket, or correct stream.exchange"
_REFUSED: Final = _any(
    "ACCESS_?DENIED",
    "INVALID_?ACCESS_?KEY_?ID",
    "INVALID_?CLIENT_?TOKEN_?ID",
    "INVALID_?SIGNATURE",
    "SIGNATURE_?DOES_?NOT_?MATCH",
    "UNRECOGNIZED_?CLIENT",
    "MISSING_?AUTHENTICATION_?TOKEN",
    "AdminUserNotFound",
    "INVALID_?TOKEN",
    "REQUEST_?TIME_?TOO_?SKEWED",
    "HTTP status 40[13]",
    "PERMISSION_?DENIED",
    "Permission denied",
    "UNAUTHENTICATED",
    "AuthenticationFailed",
    "AuthorizationFailure",
)
_CORRECT: Final = (
    "correct the credentials of this process (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "the role of its machine), and let them list, read, write and delete there"
)
_SAID: Final[Sequence[tuple[type[ExchangeError], re.Pattern[str], str]]] = (
    (ExpiredCredentials, _EXPIRED, _RENEW),
    (NoSuchBucket, _ABSENT, _MAKE),
    (ExchangeRefused, _REFUSED, _CORRECT),
)
_UNCLEAR: Final = _any("No response body", "HTTP status 400")
_UNANSWERED: Final = _any("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT")


def storage_error(shown: str, what: str, text: str) -> ExchangeError:
    """Return the error of a storage.

    Args:
        shown: The URL, as errors show it.
        what: What cannot be done, such as ``read``.
        text: What pyarrow says.
    """
    head = f"the exchange {shown} cannot be {what}: {text}"
    for kind, words, remedy in _SAID:
        if words.search(text):
            return kind(f"{head}; {remedy}")
    return ExchangeUnreachable(head)


def is_unclear(text: str) -> bool:
    """Tell whether a storage has had no place to say why: to some requests it answers a number."""
    return bool(_UNCLEAR.search(text))


def is_unanswered(text: str) -> bool:
    """Tell whether nobody has answered at all, so that the next request would wait, too."""
    return bool(_UNANSWERED.search(text))
