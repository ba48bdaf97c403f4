"""Input files: find them by path, glob or package, tell their format, open them decompressed."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

from tidemill.features.errors import ConfigurationError, InputError

FORMATS: Final[Mapping[str, str]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
"""File extension, without that of the compression, to format."""
PACKAGE: Final = "package://"
_COMPRESSED: Final = (".gz", ".zip")


def find_files(patterns: Sequence[str], root: Path = Path()) -> list[Path]:
    """Return the files that patterns match, in the patterns' order; those of a glob are sorted.

    Args:
        patterns: Paths or globs (``**`` matches any depth), relative to ``root`` or absolute; or
            ``package://NAME/PATH``, a path or glob inside an installed top-level package. The
            package is not imported.
        root: The folder that relative patterns start from.

    Returns:
        The files, each once.

    Raises:
        ConfigurationError: A pattern matches no file, or its package is not installed.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if pattern.startswith(PACKAGE):
            package, _, rest = pattern.removeprefix(PACKAGE).partition("/")
            folders, where = _package_folders(package, pattern), f"package {package!r}"
        else:
            folders, rest, where = [root.absolute()], pattern, f"folder {str(root)!r}"
        matches = [path for folder in folders for path in _matches(folder, rest)]
        if not matches:
            raise ConfigurationError(
                f"files: {pattern!r} names no file; a relative path or glob starts in the {where}"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _package_folders(package: str, pattern: str) -> list[Path]:
    # `find_spec` of a dotted name would import the parent package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"files: {pattern!r}: there is no installed package {package!r}; write "
            f"{PACKAGE}NAME/PATH with a top-level package, and install it if it is missing"
        )
    return [Path(folder) for folder in spec.submodule_search_locations]


def _matches(folder: Path, pattern: str) -> list[Path]:
    path = folder / pattern
    if path.is_file():
        return [path]
    parts = path.relative_to(path.anchor)
    return sorted(match for match in Path(path.anchor).glob(str(parts)) if match.is_file())


def short_names(files: Sequence[Path]) -> list[str]:
    """Return short names: without the compression's extension, with only the folders needed.

    >>> short_names([Path("/data/2013/orders.csv.gz"), Path("/data/2014/orders.csv.gz")])
    ['2013/orders.csv', '2014/orders.csv']
    """
    plain = [_decompressed_name(path) for path in files]
    for length in range(1, max((len(path.parts) for path in plain), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in plain]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in files]


def format_of(path: Path) -> str:
    """Return a file's format by its extension.

    Raises:
        ConfigurationError: The extension is not in `FORMATS`.
    """
    suffix = _decompressed_name(path).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigurationError(
            f"{path.name}: its format cannot be derived from the extension {suffix!r}; declare the "
            "source's format: csv, jsonl or parquet"
        )
    return FORMATS[suffix]


def is_compressed(path: Path) -> bool:
    """Tell by its extension whether a file is compressed."""
    return path.suffix.lower() in _COMPRESSED


def _decompressed_name(path: Path) -> Path:
    return path.with_suffix("") if is_compressed(path) else path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, and decompress ``.gz``, or ``.zip`` with one member.

    Raises:
        InputError: The file cannot be decompressed, when it is opened or while it is read.
    """
    try:
        with contextlib.ExitStack() as stack:
            suffix = path.suffix.lower()
            if suffix == ".gz":
                yield cast(BinaryIO, stack.enter_context(gzip.open(path)))
            elif suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                member = _only_member(archive, path)
                yield cast(BinaryIO, stack.enter_context(archive.open(member)))
            else:
                yield stack.enter_context(path.open("rb"))
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(
            f"{path.name}: cannot be decompressed ({error}); is it complete, and does its "
            "extension match its compression?"
        ) from error


def _only_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise InputError(
            f"{path.name}: a .zip must hold exactly one file, found {len(members)}; unpack it and "
            "name its files"
        )
    if members[0].flag_bits & 1:
        raise InputError(f"{path.name}: is encrypted; unpack it first")
    return members[0]
