"""The errors of Tidemill: one tree; a leaf also inherits from the built-in error that it resembles.

```
TidemillError
├── DefinitionError (ValueError)      a feature definition that cannot work
│   ├── UnknownColumn (KeyError)
│   ├── DuplicateName
│   └── WrongType (TypeError)
├── ConfigurationError (ValueError)   the YAML file or an option
├── InputError (ValueError)           a batch without the declared shape
│   └── TooManyRejected               more of a source's rows are rejected than it allows
├── StateError (ValueError)           persisted state that cannot be read
│   ├── StateVersionError
│   ├── StateMismatch
│   └── DamagedState
├── SequenceError (RuntimeError)      the stream's own order is broken
│   ├── PartitionGap
│   ├── BatchConflict
│   └── OutputConflict                a repeated output differs from the first
├── BundleError (ValueError)          a bundle that cannot be used
│   ├── DamagedBundle                 its files are not those that were written
│   └── BundleMismatch                it was trained for other definitions
├── ModelError (ValueError)           a SavedModel that cannot be called as it was asked
├── StoreError (RuntimeError)         the online store refused or lost something
│   ├── StoreUnavailable              it cannot be written or read now: try again later
│   ├── LostPublications              it is behind what was already published
│   ├── NoKeySpace                    it has no such key space: emptied, or never registered
│   ├── ConflictingPublication
│   ├── SupersededWriter              another writer has taken the key space, or the shard
│   ├── HeldByAnotherRoot             another root writes to the key space
│   ├── BehindReaders                 a switch would show readers an earlier instant
│   ├── StoreFull                     there is no room for another fill
│   └── OtherLayout                   another version of Tidemill wrote it
├── BrokerError (RuntimeError)        the Kafka broker cannot be used as it was asked
│   ├── UnknownBrokerHost             no address belongs to the host's name
│   ├── BrokerUnreachable             nobody listens or answers there: try again later
│   ├── NotKafka                      what listens speaks another protocol
│   ├── UntrustedCertificate          its certificate is not trusted, expired, or another host's
│   ├── ClientCertificateNeeded       it asks for a certificate, or refuses the one it got
│   ├── MechanismNotOffered           it does not offer the mechanism to log in by
│   ├── WrongCredentials              it refuses the user or the password
│   ├── NotAuthorised                 the user may not do this
│   ├── NoSuchTopic (LookupError)     the topic or the partition does not exist, or no longer
│   ├── RecreatedTopic                the topic was deleted, and another has its name
│   ├── PositionOutOfRange (LookupError)  the partition does not hold the position
│   ├── DamagedMessages (ValueError)  messages that cannot be decoded
│   ├── MessageTooLarge (ValueError)  a message is larger than what is accepted
│   ├── MessagesNotWritten            the broker did not accept messages, or did not say so
│   ├── OpenTransaction               another writer's transaction hides what comes after it
│   └── FencedWriter                  another writer has the transactional id: this one must end
├── RegistryError (RuntimeError)      the schema registry
│   ├── RegistryUnavailable           it does not answer for now: try again later
│   └── RegistryRefused               it refuses, is not trusted, or is not a registry
├── FileError (OSError)               a file or folder that cannot be read or written
│   ├── NoSpace                       the disk, a quota or a limit of the process is full
│   ├── NoAccess (PermissionError)    it is read-only, or not this user's
│   ├── NoSuchFile (FileNotFoundError)  it is not there
│   └── DamagedFile (ValueError)      its bytes are not those that were written
├── Locked (RuntimeError)             another process does what only one at a time may do
├── UnsafeCache (PermissionError)     other users could write to the cache of compiled code
├── EngineError (RuntimeError)        the Beam engine failed
│   ├── UnknownEngine (ValueError)    no engine has the name that was asked for
│   ├── PrismMissing                  Prism was asked for, and there is no binary to run
│   ├── PrismFailed                   Prism's process did not start, or ended before the job
│   ├── ClusterUnreachable            a process of a Flink cluster does not answer
│   ├── EngineLost                    a process of the engine was lost, and the job with it
│   ├── WorkerLacksModule             a worker cannot import the project
│   ├── WorkerNotStarted              the command that is to start a job's worker has failed
│   ├── WorkerCodeDiffers             a worker has other code than the program that submits
│   ├── WrongBeamFlag (ValueError)    a Beam flag is not known, or not for a stream to take
│   ├── RootNotShared                 an engine's workers cannot reach the root, a local folder
│   ├── JobRefused                    an engine's service does not take a job, or a request
│   ├── ServiceUnreachable            an engine's service does not answer, or has failed itself
│   ├── ExchangeError                 storage that workers meet the program in cannot be used
│   │   ├── ExchangeUnreachable       it does not answer: try again later
│   │   ├── ExchangeRefused           it refuses the credentials, or what they ask for
│   │   ├── ExpiredCredentials        the credentials are no longer valid
│   │   └── NoSuchBucket (LookupError)  there is no such bucket or folder, or no longer
│   └── WrongEngine                   another engine ran than the one that was chosen
├── ServerError (RuntimeError)        a broker or store that was to run on this machine
│   ├── JavaMissing                   a broker needs Java, and there is none
│   ├── JarsMissing                   a broker's jars are not here, and could not be fetched
│   ├── WrongJar                      a jar is not the one whose hash is locked
│   ├── ServerNotStarted              it ended while starting, or did not answer in time
│   ├── ServerNotStopped              its process cannot be ended
│   └── ForeignServer                 another program listens on its port
└── ProofError (AssertionError)       a value differs from its recomputation
```

`tests/features/errors_test.py` checks that this tree is that of the classes, and that each leaf is
raised somewhere.

A bad *record* raises no exception once it has been read: it becomes a rejected record.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

_DIGITS_SHOWN: Final = 40


class TidemillError(Exception):
    """Root of every error that Tidemill raises on purpose."""

    def __str__(self) -> str:
        """Return the message as it was written (``KeyError`` would show its repr)."""
        return str(self.args[0]) if self.args else ""


class DefinitionError(TidemillError, ValueError):
    """A definition (stream, view, feature, request, label, project) that cannot work."""


class UnknownColumn(DefinitionError, KeyError):
    """An expression or a definition names a column that its schema does not have."""


class DuplicateName(DefinitionError):
    """Two definitions carry the same name where names must be unique."""


class WrongType(DefinitionError, TypeError):
    """An expression or aggregation is applied to a dtype that it does not take."""


class ConfigurationError(TidemillError, ValueError):
    """The YAML file or a command line option is unusable."""


class InputError(TidemillError, ValueError):
    """A batch does not have the declared shape at all (a caller's mistake, not a bad row)."""


class TooManyRejected(InputError):
    """More of a source's rows are rejected than it allows.

    Attributes:
        figures: The counts of every source, with examples of the rejected records.
    """

    def __init__(self, message: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.figures = dict(figures or {})

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, Any]]]:
        """Keep the figures when the error is pickled."""
        return type(self), (str(self), self.figures)


class StateError(TidemillError, ValueError):
    """Persisted state cannot be used."""


class StateVersionError(StateError):
    """Persisted state has a version that this code does not read."""


class StateMismatch(StateError):
    """Persisted state belongs to another definition, shard or shard count."""


class DamagedState(StateError):
    """Persisted state or a message is damaged or incomplete."""


class SequenceError(TidemillError, RuntimeError):
    """The stream's own order is broken."""


class PartitionGap(SequenceError):
    """Rows of a partition between two positions never came."""


class BatchConflict(SequenceError):
    """Two batches claim the same positions with different rows."""


class OutputConflict(SequenceError):
    """An output was written again with other content."""


class BundleError(TidemillError, ValueError):
    """A bundle cannot be loaded or used."""


class DamagedBundle(BundleError):
    """A file of a bundle is missing, added or changed."""


class BundleMismatch(BundleError):
    """A bundle was trained for other definitions than the project's."""


class ModelError(TidemillError, ValueError):
    """A SavedModel cannot be loaded, or cannot be called as it was asked to."""


class UnsafeCache(TidemillError, PermissionError):
    """Another user could write to the directory from which compiled code is run."""


class StoreError(TidemillError, RuntimeError):
    """The online store refused, lost or contradicted something."""


class StoreUnavailable(StoreError):
    """The online store is unavailable for now; the same call may succeed later."""


class LostPublications(StoreError):
    """The online store is behind what was already published: it lost writes."""


class NoKeySpace(StoreError):
    """The online store has no such key space: it was emptied, or the view never registered."""


class ConflictingPublication(StoreError):
    """Two publications carry the same (event_timestamp, revision) and different bytes."""


class SupersededWriter(StoreError):
    """Another writer has taken the key space, or a later attempt the shard: this one must end."""


class HeldByAnotherRoot(StoreError):
    """A key space is written to by another root, which was not told to give it up."""


class BehindReaders(StoreError):
    """A fill is behind what readers see, so switching to it would take them back in time.

    Attributes:
        shown_us: The frontier that readers see, microseconds UTC.
    """

    def __init__(self, message: str, shown_us: int = 0) -> None:
        super().__init__(message)
        self.shown_us = shown_us

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        """Keep the frontier when the error is pickled."""
        return type(self), (str(self), self.shown_us)


class StoreFull(StoreError):
    """The online store has no room for another fill beside the one that is read."""


class OtherLayout(StoreError):
    """The online store has the layout of another version of Tidemill."""


class BrokerError(TidemillError, RuntimeError):
    """The Kafka broker cannot be reached, refused something, or lost something."""


class UnknownBrokerHost(BrokerError):
    """The host's name has no address."""


class BrokerUnreachable(BrokerError):
    """The broker does not listen or answer for now; the same call may succeed later."""


class NotKafka(BrokerError):
    """What listens speaks another protocol: TLS or plain text instead of the other, or no Kafka."""


class UntrustedCertificate(BrokerError):
    """The broker's certificate is not trusted, is expired or belongs to another host."""


class ClientCertificateNeeded(BrokerError):
    """The broker asks for a certificate of the client's, or refuses the one that it got."""


class MechanismNotOffered(BrokerError):
    """The broker does not offer the SASL mechanism."""


class WrongCredentials(BrokerError):
    """The broker refuses the user, or the password, or asks for them."""


class NotAuthorised(BrokerError):
    """The broker knows the user, who may not do this."""


class NoSuchTopic(BrokerError, LookupError):
    """A topic or a partition does not exist, or was deleted."""


class RecreatedTopic(BrokerError):
    """A topic was deleted and made again: its positions mean other messages now."""


class PositionOutOfRange(BrokerError, LookupError):
    """A partition does not hold a position: its messages were deleted, or never written.

    Attributes:
        topic: The topic.
        partition: The partition.
        position: The position that was asked for.
        first: The first offset that the partition holds.
        end: The offset after its last.
    """

    def __init__(
        self,
        message: str,
        topic: str = "",
        partition: int = -1,
        position: int = -1,
        first: int = -1,
        end: int = -1,
    ) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.position = position
        self.first = first
        self.end = end

    def __reduce__(self) -> tuple[type, tuple[str, str, int, int, int, int]]:
        """Keep the figures when the error is pickled."""
        figures = (self.topic, self.partition, self.position, self.first, self.end)
        return type(self), (str(self), *figures)


class DamagedMessages(BrokerError, ValueError):
    """Messages are not those that were written: they cannot be decoded, or fail their checksum."""


class MessageTooLarge(BrokerError, ValueError):
    """A message is larger than the client or the topic accepts."""


class MessagesNotWritten(BrokerError):
    """The broker refused messages, or did not confirm them in time."""


class OpenTransaction(BrokerError):
    """Another writer's transaction is open for too long: what comes after it cannot be read."""


class FencedWriter(BrokerError):
    """Another writer began with the same transactional id: this one must end."""


class RegistryError(TidemillError, RuntimeError):
    """The schema registry cannot say what a schema is."""


class RegistryUnavailable(RegistryError):
    """The schema registry does not answer for now; the same call may succeed later."""


class RegistryRefused(RegistryError):
    """The registry refuses the user, is not trusted, or what answers is not a registry."""


class Locked(TidemillError, RuntimeError):
    """Another process does what only one process at a time may do."""


class FileError(TidemillError, OSError):
    """A file or folder cannot be read or written; ``errno`` says why, where the system did."""


class NoSpace(FileError):
    """The disk, a quota or a limit of the process leaves no room to write."""


class NoAccess(FileError, PermissionError):
    """A file or folder is read-only, or this user has no right to it."""


class NoSuchFile(FileError, FileNotFoundError):
    """A file or folder is not there."""


class DamagedFile(FileError, ValueError):
    """The bytes of a file are not those that were written."""


class EngineError(TidemillError, RuntimeError):
    """The Beam engine failed."""


class UnknownEngine(EngineError, ValueError):
    """An engine was asked for that does not exist here."""


class PrismMissing(EngineError):
    """Prism was asked for, and there is no binary to run."""


class PrismFailed(EngineError):
    """Prism's process did not start, or ended before the job did."""


class ClusterUnreachable(EngineError):
    """A process of the Flink cluster that a job is to run on does not answer."""


class EngineLost(EngineError):
    """A process of the engine was lost, and the job with it; a stream has its savepoint."""


class WorkerLacksModule(EngineError):
    """A worker cannot import the project."""


class WorkerNotStarted(EngineError):
    """The command that is to start a worker of a job has failed."""


class WorkerCodeDiffers(EngineError):
    """A worker has other code than the program that submits the job."""


class WrongBeamFlag(EngineError, ValueError):
    """A Beam flag is not known, or it would break what a stream promises."""


class RootNotShared(EngineError):
    """The workers of an engine are on other machines, and the root is a folder of this one."""


class JobRefused(EngineError):
    """The service of an engine does not take a job, or a request: it says why."""


class ServiceUnreachable(EngineError):
    """The service of an engine does not answer, or has failed itself."""


class ExchangeError(EngineError):
    """The storage through which a program and workers on other machines meet cannot be used."""


class ExchangeUnreachable(ExchangeError):
    """The storage of an exchange does not answer: try again later."""


class ExchangeRefused(ExchangeError):
    """The storage of an exchange refuses the credentials, or what they ask for."""


class ExpiredCredentials(ExchangeError):
    """The credentials for the storage of an exchange are no longer valid."""


class NoSuchBucket(ExchangeError, LookupError):
    """The bucket or folder of an exchange does not exist, or no longer."""


class WrongEngine(EngineError):
    """A pipeline ran on another engine than the one chosen for it."""


class ServerError(TidemillError, RuntimeError):
    """A broker or store that was to run on this machine does not."""


class JavaMissing(ServerError):
    """A broker needs Java, and this machine has none."""


class JarsMissing(ServerError):
    """The jars of a broker are not on this machine, and could not be fetched."""


class WrongJar(ServerError):
    """A jar is not the one whose hash is locked."""


class ServerNotStarted(ServerError):
    """A server ended while it started, or did not answer in time."""


class ServerNotStopped(ServerError):
    """The process of a server cannot be ended."""


class ForeignServer(ServerError):
    """Another program listens on the port of a server."""


class ProofError(TidemillError, AssertionError):
    """A value differs from its recomputation."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known names, or all of them when none is near.

    >>> nearest("orgin", ["origin", "dest"])
    "did you mean 'origin'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "there are none"


class _Shown(reprlib.Repr):
    """A ``repr`` that is short, and never an error."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 120

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write more than 4,300 digits.
        if abs(x) < 10**_DIGITS_SHOWN:
            return repr(x)
        return f"<an int of {x.bit_length()} bits>"


shown: Final = _Shown().repr
"""Write a value for an error message: like ``repr``, but short, and it never raises."""


def found(value: object) -> str:
    """Return a value and its type for an error message.

    >>> found(3)
    'found 3 (int)'
    """
    return f"found {shown(value)} ({type(value).__name__})"
