"""Objects below a URL that the program and its workers both reach, through pyarrow's filesystems.

Nothing is asked of the storage but what S3, Google Cloud Storage, Azure, HDFS and a mounted disk
all promise: an object is seen whole or not at all, by everybody, as soon as its writing has
returned. An object is written again only with the same bytes, so no promise about overwriting is
needed; and folders are removed, not single objects, since pyarrow asks S3 four times for one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Final

import pyarrow as pa
from pyarrow import fs

from tidemill.features.errors import ExchangeUnreachable

_WRITING: Final = ".writing"
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
        except (OSError, pa.ArrowException, ValueError) as error:
            text = str(error).replace(self.url, self.shown)
            raise ExchangeUnreachable(
                f"the exchange {self.shown} cannot be {what}: {text}"
            ) from None

    def _path(self, name: str) -> str:
        return posixpath.join(self._opened[1], name)

    def put(self, name: str, data: bytes | memoryview | pa.Buffer) -> None:
        """Write an object, which has not been there.

        Raises:
            ExchangeUnreachable: It cannot be written.
        """
        found, path = self._opened[0], self._path(name)
        with self._named("written"):
            if not isinstance(found, fs.LocalFileSystem | fs.HadoopFileSystem):
                with found.open_output_stream(path, metadata={}) as stream:
                    stream.write(data)
                return
            # A file is seen while it grows.
            found.create_dir(posixpath.dirname(path), recursive=True)
            with found.open_output_stream(path + _WRITING) as stream:
                stream.write(data)
            found.move(path + _WRITING, path)

    def get(self, name: str) -> pa.Buffer | None:
        """Read an object; None if there is none.

        Raises:
            ExchangeUnreachable: It cannot be read.
        """
        found, path = self._opened[0], self._path(name)
        with (
            self._named("read"),
            suppress(FileNotFoundError),
            found.open_input_file(path) as file,
        ):
            return file.read_buffer()
        return None

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects in a folder and below it, ascending.

        Raises:
            ExchangeUnreachable: They cannot be listed.
        """
        top = self._path("")
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        with self._named("listed"):
            found = self._opened[0].get_file_info(selector)
        return sorted(
            posixpath.relpath(one.path, top)
            for one in found
            if one.type is fs.FileType.File and not one.path.endswith(_WRITING)
        )

    def remove_folder(self, folder: str) -> None:
        """Remove all objects in a folder and below it.

        Raises:
            ExchangeUnreachable: They cannot be removed.
        """
        found, path = self._opened[0], self._path(folder)
        with self._named("written"), suppress(FileNotFoundError):
            for deeper in reversed(range(_DEPTH)):
                try:
                    found.delete_dir(path)
                except FileNotFoundError:
                    return
                except OSError:
                    # An S3 with directories behind it removes one only when it is empty, and is
                    # asked in no order: what is deepest goes each time.
                    if not deeper:
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
