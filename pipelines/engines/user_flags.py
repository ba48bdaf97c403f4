"""Beam's flags that a user gives behind ``--``, read without Beam."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from tidemill.features.errors import WrongBeamFlag


def flag_parser() -> argparse.ArgumentParser:
    """Return a parser to which an engine adds the flags that it reads; names are written out."""
    return argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)


def parse_flags(
    parser: argparse.ArgumentParser,
    flags: Sequence[str],
    refused: Mapping[str, str],
    refusal: str,
) -> tuple[argparse.Namespace, list[str]]:
    """Read the flags that an engine knows, and refuse those that would break a stream.

    Args:
        parser: From `flag_parser`, with the flags that are read.
        flags: As on the command line, such as ``--parallelism=2``.
        refused: The name of each flag that is not for a user to give, and why.
        refusal: How the error begins; ``{}`` stands for the flag.

    Returns:
        What was read, and all other flags; see `check_form`.

    Raises:
        WrongBeamFlag: One is refused, or has a value that it cannot have.
    """
    for name in refused:
        parser.add_argument(f"--{name}", nargs="?", const="", dest=name)
    try:
        given, others = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise WrongBeamFlag(f"Beam's flags {' '.join(flags)!r}: {error}") from None
    for name, why in refused.items():
        if getattr(given, name) is not None:
            raise WrongBeamFlag(f"{refusal.format(f'--{name}')}: {why}; leave it out")
    return given, others


def check_form(others: Sequence[str]) -> None:
    """Check that what an engine does not read is flags, for Beam to know or not.

    Raises:
        WrongBeamFlag: One is no flag.
    """
    for one in others:
        if not one.startswith("--"):
            raise WrongBeamFlag(f"{one!r} is no flag of Beam: write --NAME=VALUE")
