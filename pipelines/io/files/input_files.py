"""Input files: find them by path, glob or package, tell their format, open them decompressed."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
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
_WILDCARDS: Final = frozenset("*?[")
_COMPRESSED: Final = (".gz", ".zip")


def find_files(patterns: Sequence[str], root: Path = Path()) -> list[Path]:
    """Return the files that patterns match, in the patterns' order; those of a glob are sorted.

    Args:
        patterns: Paths or globs (``**`` matches any depth), relative to ``root`` or absolute; or
            ``package://NAME/PATH``, a path or glob inside an installed top-level package. The
            package is not imported.
        root: The folder that relative patterns start from.

    Returns:
        The files, each once: regular files and links to them.

    Raises:
        ConfigurationError: A pattern matches no file, or its package is not installed. Nothing
            that a pattern matches is left out in silence: a broken link, a pipe, a socket, a device
            and a folder with files of which none matches are errors, and so are a folder that may
            not be read, a linked folder that ``**`` would have to follow, and two names of a file.
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
    _check_links(found)
    return list(found)


def _check_links(files: Iterable[Path]) -> None:
    """Refuse a file under two names: its rows would be read twice."""
    names: dict[Path, Path] = {}
    for path in files:
        first = names.setdefault(path.resolve(), path)
        if first is not path:
            raise ConfigurationError(
                f"files: {first} and {path} are the same file; write patterns that match one of "
                "the two names"
            )


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
    anchor, parts = Path(path.anchor), path.relative_to(path.anchor).parts
    matches = _glob(anchor, parts) if parts else [path]
    files = [match for match in matches if match.is_file()]
    for match in matches:
        if not match.is_file() and (what := _why_not_read(match, files)):
            raise ConfigurationError(f"files: {pattern!r} matches {what}")
    for number, part in enumerate(parts):
        if part == "**":
            _check_linked_folders(anchor, parts, number, files)
        if _WILDCARDS & set(part):
            _check_readable(anchor.glob("/".join(parts[:number]) or "."), pattern)
    return files


def _glob(anchor: Path, parts: Sequence[str]) -> list[Path]:
    """Return what a pattern matches, sorted: also broken links, whatever its last part is."""
    *folders, last = parts
    if _WILDCARDS & set(last):
        return sorted(anchor.glob("/".join(parts)))
    named = (folder / last for folder in anchor.glob("/".join(folders) or "."))
    return sorted({path for path in named if os.path.lexists(path)})


def _why_not_read(match: Path, files: Sequence[Path]) -> str | None:
    """Say what a match is that is no file; None for a folder whose files are found, or are none."""
    if match.is_symlink() and not match.exists():
        return f"{match}, a link to {match.readlink()}, which is not there; correct or remove it"
    if not match.is_dir():
        return (
            f"{match}, which is neither a file nor a link to one; a source is read more "
            "than once, so write the content to a file"
        )
    if any(match in file.parents for file in files):
        return None
    if not any(names for _, _, names in os.walk(match)):
        return None
    return f"the folder {match}; for the files in it write {match / '*'}, or a narrower pattern"


def _check_linked_folders(
    anchor: Path, parts: Sequence[str], number: int, files: Sequence[Path]
) -> None:
    """Refuse links to folders with matching files: ``**`` does not follow links to folders."""
    known = {file.resolve() for file in files}
    for base in anchor.glob("/".join(parts[:number]) or "."):
        for folder, names, _ in os.walk(base):
            for link in (Path(folder, name) for name in sorted(names)):
                if not link.is_symlink():
                    continue
                missed = link.glob("/".join(parts[number:]))
                if any(path.is_file() and path.resolve() not in known for path in missed):
                    pattern = Path(link, *parts[number:])
                    raise ConfigurationError(
                        f"files: ** does not follow links to folders, and {link} is one with "
                        f"files that match; name them, too: {pattern}"
                    )


def _check_readable(folders: Iterable[Path], pattern: str) -> None:
    for folder in folders:
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            raise ConfigurationError(
                f"files: {pattern!r} may match files in the folder {folder}, which this user may "
                "not read; change its permissions, or write a narrower pattern"
            )


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


_COPIES: Final[ContextVar[Mapping[Path, Path]]] = ContextVar("copies", default={})  # noqa: B039


@contextlib.contextmanager
def copied(copies: Mapping[Path, Path]) -> Iterator[None]:
    """Read copies of files in the block, which are called by the files' own names.

    Args:
        copies: File to its copy on this machine, which may lack the file.
    """
    token = _COPIES.set(copies)
    try:
        yield
    finally:
        _COPIES.reset(token)


def at_hand(path: Path) -> Path:
    """Return where the bytes of a file are on this machine (`copied`)."""
    return _COPIES.get().get(path, path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, and decompress ``.gz``, or ``.zip`` with one member.

    Raises:
        InputError: The file cannot be decompressed, when it is opened or while it is read.
    """
    try:
        with contextlib.ExitStack() as stack:
            suffix, here = path.suffix.lower(), at_hand(path)
            if suffix == ".gz":
                yield cast(BinaryIO, stack.enter_context(gzip.open(here)))
            elif suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(here))
                member = _only_member(archive, path)
                yield cast(BinaryIO, stack.enter_context(archive.open(member)))
            else:
                yield stack.enter_context(here.open("rb"))
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
