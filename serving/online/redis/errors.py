"""The meaning of Redis's errors: whether the same call may succeed later, and a remedy."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tidemill.features.errors import StoreError, StoreUnavailable
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.stores.redis_place import RedisPlace

# Error codes that the client removes from the text and turns into classes.
_CODES: Final = {
    BusyLoadingError: "LOADING",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    MovedError: "MOVED",
    AuthenticationError: "NOAUTH",
}

# Errors that pass, or that an operator can end: the same call may succeed later.
_PASSING: Final = {
    "LOADING": "it reads its data after a start: try again when it is done",
    "OOM": "its memory is full and nothing was written: raise its maxmemory, or remove key spaces "
    "that are no longer read (`tidemill clean-store`), and try again",
    "READONLY": "it is a replica that takes no writes: name the primary's host and port, or try "
    "again when it has become the primary",
    "MISCONF": "it refuses writes because it cannot save to its disk: make room there or look into "
    "its log, and try again",
    "NOREPLICAS": "it refuses writes while too few replicas follow it: start them, and try again",
    "MASTERDOWN": "it is a replica without its primary: start that, and try again",
    "CLUSTERDOWN": "its cluster is down: start the missing nodes, and try again",
    "TRYAGAIN": "its cluster is moving keys: try again",
    "BUSY": "it is running a script that does not end: end that (SCRIPT KILL), and try again",
}

_NO_LOGIN: Final = (
    "it refuses the user or the password: correct username, and the password that "
    "password_env or password_file names"
)
IN_CLUSTER: Final = (
    "it is a node of a Redis Cluster, which cannot write several keys in one step: "
    "name a Redis that is not part of a cluster"
)
_LASTING: Final = {
    "NOAUTH": _NO_LOGIN,
    "WRONGPASS": _NO_LOGIN,
    "NOPERM": "the user may not do this: give it the commands and keys that the online store "
    "needs (docs/online-store.md: ACL SETUSER)",
    "WRONGTYPE": "another program keeps other things under the keys tm:*: choose another db, or "
    "remove them",
    "MOVED": IN_CLUSTER,
    "CROSSSLOT": IN_CLUSTER,
}

# Redis 7.0 and Valkey 9 say this for a command within a script, other releases NOPERM.
_NOPERM_WITHIN: Final = ("The user executing the script can't", "ACL failure in script")

# Older servers wrap the error of a command within a script: "... -READONLY You can't write".
_CODE: Final = re.compile(rf"(?:^|[-\s])({'|'.join([*_PASSING, *_LASTING])})\b")


def explained(place: RedisPlace, spaces: Sequence[KeySpace], error: RedisError) -> StoreError:
    """Turn a Redis error into a `StoreError`, with the store, the key spaces (or all) and a remedy.

    It is a `StoreUnavailable` if the same call may succeed later, else a `StoreError`.
    """
    names = sorted({space.name for space in spaces})
    of = f"key space{'s' if len(names) > 1 else ''} {', '.join(names)}"
    where = f"{place.name}, {of if names else 'all key spaces'}"
    code = _code(error)
    if code in _PASSING:
        return StoreUnavailable(f"{where}: {_said(code, error)}; {_PASSING[code]}")
    if code in _LASTING:
        return StoreError(f"{where}: {_said(code, error)}; {_LASTING[code]}")
    if failed := _tls_failure(error):
        return StoreError(
            f"{where}: the TLS handshake failed ({failed}); name the authority of the server's "
            "certificate (tls.ca) and the host that the certificate is for, and the port that "
            "speaks TLS"
        )
    if isinstance(error, RedisTimeoutError):
        plain = "" if place.tls is None else " (a port that speaks no TLS does not answer either)"
        return StoreUnavailable(
            f"{where}: no answer within {place.timeout_us / 1e6:g} s ({error}); what was sent may "
            f"have been written: try again, or raise the timeout{plain}"
        )
    if isinstance(error, RedisConnectionError):
        return StoreUnavailable(
            f"{where}: no connection ({error}); what was sent may have been written: start "
            "Redis there, or correct host and port (a port that speaks TLS needs tls), and try "
            "again"
        )
    return StoreError(f"{where}: {error}")


def _code(error: RedisError) -> str | None:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    if str(error).startswith(_NOPERM_WITHIN):
        return "NOPERM"
    if isinstance(error, ResponseError) and (found := _CODE.search(str(error))):
        return found[1]
    return None


def _said(code: str, error: RedisError) -> str:
    text = str(error)
    return text if code in text else f"{code} {text}"


def _tls_failure(error: BaseException) -> str | None:
    """Return the message of the TLS library, if it caused the error."""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, ssl.SSLError):
            # A verification error also names the check that failed.
            return getattr(reason, "verify_message", None) or reason.reason or str(reason)
        reason = reason.__cause__ or reason.__context__
    return None
