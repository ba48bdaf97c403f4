"""Objects below a URL that the program and its workers both reach, through pyarrow's filesystems.

Nothing is asked of the storage but what S3, Google Cloud Storage, Azure, HDFS and a mounted disk
all promise: an object is seen whole or not at all, by everybody, as soon as its writing has
returned. An object is written again only with the same bytes, so no promise about overwriting is
needed; and folders are removed, not single objects, since pyarrow asks S3 four times for one.
"""

from __future__ import annotations

import posixpath
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Final

import pyarrow as pa
from pyarrow import fs

from tidemill.features.errors import ExchangeError, ExchangeUnreachable, TidemillError
from tidemill.pipelines.io.exchange.storage_errors import is_unanswered, is_unclear, storage_error

_WRITING: Final = ".writing"
_SURE_S: Final = 2.0
"""So long a bucket that was there is believed to be."""
_DEPTH: Final = 16
"""No name has so many parts."""


class Objects:
    """Objects by name; the storage is asked at the first use.

    Args:
        url: A URL that pyarrow knows, such as ``s3://bucket/folder?region=eu-west-1``; the
            credentials are those of the process (``AWS_ACCESS_KEY_ID``, ...).
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._sure_s = float("-inf")

    @property
    def shown(self) -> str:
        """The URL, as errors show it."""
        return without_secrets(self.url)

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        with self._named("opened"):
            found, path = fs.FileSystem.from_uri(self.url)
            if isinstance(found, fs.S3FileSystem):
                found = _one_request_for_a_small_object(found)
            return found, path.rstrip("/")

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except TidemillError:
            raise  # of what is written, or of whoever reads
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._error(what, error) from None

    def _error(self, what: str, error: Exception) -> ExchangeError:
        text = str(error)
        if is_unclear(text) and "_opened" in vars(self):
            text = self._said_of_a_list() or text
        return storage_error(self.shown, what, text.replace(self.url, self.shown))

    def _said_of_a_list(self) -> str:
        """Return why the storage makes no list: unlike other answers, that one has words."""
        try:
            self._opened[0].get_file_info(fs.FileSelector(self._path(""), allow_not_found=False))
        except OSError as error:
            return str(error)
        return ""

    def _check_bucket(self) -> None:
        """Check that the bucket is there: where it is not, no object is, and nobody says why.

        Raises:
            ExchangeError: It is not, or cannot be asked for.
        """
        found, path = self._opened
        now_s = time.monotonic()
        if not isinstance(found, fs.S3FileSystem) or now_s - self._sure_s < _SURE_S:
            return
        bucket = path.partition("/")[0]
        with self._named("read"):
            there = found.get_file_info(bucket)
        if there.type is fs.FileType.NotFound:
            # Some say so, too, to whoever has a key that they do not know.
            said = f"Bucket '{bucket}' not found"
            error = storage_error(self.shown, "read", self._said_of_a_list() or said)
            is_named = not isinstance(error, ExchangeUnreachable)
            raise error if is_named else storage_error(self.shown, "read", said)
        self._sure_s = now_s

    def _path(self, name: str) -> str:
        return posixpath.join(self._opened[1], name)

    def place(self, name: str) -> str:
        """Return what names an object, and no other one, as errors show it."""
        return f"{self.shown}/{name}"

    def put(self, name: str, *pieces: bytes | memoryview | pa.Buffer) -> None:
        """Write an object, which has not been there, in pieces.

        Raises:
            ExchangeError: It cannot be written.
        """
        self.put_pieces(name, pieces)

    def put_pieces(self, name: str, pieces: Iterable[bytes | memoryview | pa.Buffer]) -> None:
        """Write an object, piece by piece; it is there once all are written. Errors as for `put`.

        Args:
            name: Its name.
            pieces: What it has, perhaps more than the memory holds.
        """
        found, path = self._opened[0], self._path(name)
        with self._named("written"):
            if not isinstance(found, fs.LocalFileSystem | fs.HadoopFileSystem):
                with found.open_output_stream(path, metadata={}) as stream:
                    for piece in pieces:
                        stream.write(piece)
                return
            # A file is seen while it grows. Another process may write the same at the same time.
            found.create_dir(posixpath.dirname(path), recursive=True)
            unfinished = f"{path}.{secrets.token_hex(4)}{_WRITING}"
            with found.open_output_stream(unfinished) as stream:
                for piece in pieces:
                    stream.write(piece)
            found.move(unfinished, path)

    def get(self, name: str) -> pa.Buffer | None:
        """Read an object; None if there is none.

        Raises:
            ExchangeError: It cannot be read.
        """
        return self._taken(name, lambda file: file.read_buffer())

    def get_range(self, name: str, start: int, size: int) -> pa.Buffer | None:
        """Read a part of an object; None if there is no such object.

        Args:
            name: Its name.
            start: The first byte; below 0 it is counted from the end.
            size: How many bytes are read, or fewer where the object ends.

        Raises:
            ExchangeError: It cannot be read.
        """

        def take(file: pa.NativeFile) -> pa.Buffer:
            file.seek(start if start >= 0 else max(file.size() + start, 0))
            return file.read_buffer(min(size, file.size()))

        return self._taken(name, take)

    def _taken(self, name: str, take: Callable[[pa.NativeFile], pa.Buffer]) -> pa.Buffer | None:
        """Return what is taken of an object; None if there is none."""
        found, path = self._opened[0], self._path(name)
        with (
            self._named("read"),
            suppress(FileNotFoundError),
            found.open_input_file(path) as file,
        ):
            return take(file)
        self._check_bucket()
        return None

    def blocks(self, name: str, size: int) -> Iterator[pa.Buffer]:
        """Yield an object in blocks of so many bytes; nothing if there is no such object.

        Raises:
            ExchangeError: It cannot be read.
        """
        found, path = self._opened[0], self._path(name)
        with (
            self._named("read"),
            suppress(FileNotFoundError),
            found.open_input_file(path) as file,
        ):
            while (block := file.read_buffer(size)).size:
                yield block

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects in a folder and below it, ascending.

        Raises:
            ExchangeError: They cannot be listed.
        """
        top = self._path("")
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        with self._named("listed"):
            found = self._opened[0].get_file_info(selector)
        if not found:
            self._check_bucket()
        return sorted(
            posixpath.relpath(one.path, top)
            for one in found
            if one.type is fs.FileType.File and not one.path.endswith(_WRITING)
        )

    def remove_folder(self, folder: str) -> None:
        """Remove all objects in a folder and below it.

        Raises:
            ExchangeError: They cannot be removed.
        """
        found, path = self._opened[0], self._path(folder)
        with self._named("written"), suppress(FileNotFoundError):
            for deeper in reversed(range(_DEPTH)):
                try:
                    found.delete_dir(path)
                except FileNotFoundError:
                    return
                except OSError as error:
                    # An S3 with directories behind it removes one only when it is empty, and is
                    # asked in no order: what is deepest goes each time.
                    if not deeper or is_unanswered(str(error)):
                        raise
                else:
                    return


def _one_request_for_a_small_object(found: fs.S3FileSystem) -> fs.FileSystem:
    """Return the same filesystem, which writes small objects in one request instead of three."""
    make, (settings,) = found.__reduce__()
    made: fs.FileSystem = make({**settings, "allow_delayed_open": True, "background_writes": False})
    return made


def without_secrets(url: str) -> str:
    """Return a URL without user, password and options."""
    scheme, separator, place = url.partition("?")[0].rpartition("://")
    return f"{scheme}{separator}{place.rpartition('@')[2]}"
