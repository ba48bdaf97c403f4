"""The command line: ``tidemill``.

A command loads the configuration, calls one function and prints what the function returns: results
on standard output, progress and errors on standard error. Each command is a module of this folder,
imported on demand. At the top it imports nothing slow, so ``tidemill --help`` answers at once; the
rest it imports inside its function.

Exit status:

======  ===========================================================================================
0       success
1       an error, explained in one paragraph; or `verify` or `demo` found a mismatch
2       a wrong option or argument
129     SIGHUP: the terminal was closed
130     Ctrl-C
141     the reader of standard output ended first (``tidemill verify | head``)
143     SIGTERM
======  ===========================================================================================

An error without an explanation is a fault of Tidemill or of the project's own code: the command
shows its traceback and ends with status 1. ``--debug`` shows the traceback of every error, and the
logs of Beam, TensorFlow and the other libraries.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from tidemill.pipelines.commands.feast_import import leave_out_checks
from tidemill.pipelines.commands.session import Session
from tidemill.pipelines.commands.signals import Stop, heeded
from tidemill.pipelines.config.choices import LOG_FORMATS

COMMANDS: Final = (
    "demo", "init", "validate", "backfill", "train", "stream", "promote", "rollback", "upgrade",
    "reload", "status", "republish", "verify", "report", "features", "explain", "lineage", "apply",
    "clean-store", "merge-log", "archive", "export-archive", "replay-rejected", "forget", "up",
    "down",
)  # fmt: skip
"""The commands, in the order in which a user needs them. The command ``merge-log`` is the function
``merge_log`` of the module ``merge_log``, and so for the others."""

_BROKEN_PIPE: Final = 141

_PRINTERS: Final = (("click", "utils.py"), ("rich", "console.py"), ("run", "tables.py"))
"""The modules that write to standard output; they write to nothing else."""

_log: Final = logging.getLogger(__name__)


def _show_everything(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        context.ensure_object(Session).diagnostics.show_everything()


def _debug() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_show_everything,
        help="Show tracebacks, and the logs of Beam and other libraries.",
    )


def _choose_log_format(context: click.Context, _: click.Parameter, given: str | None) -> None:
    if given is not None:
        context.ensure_object(Session).diagnostics.choose(given)


def _log_format() -> click.Option:
    return click.Option(
        ["--log-format"],
        type=click.Choice(LOG_FORMATS),
        expose_value=False,
        is_eager=True,
        callback=_choose_log_format,
        help="json: one JSON object a line, with the id of the run. Replaces `logging`.",
    )


class _Commands(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        if not any(parameter.name == "debug" for parameter in command.params):
            command.params += [_debug(), _log_format()]
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run the command; handle a broken pipe and Ctrl-C before click does."""
        try:
            return super().invoke(context)
        except OSError as error:
            if error.errno == errno.EPIPE:
                _leave_the_pipe()
                sys.exit(_BROKEN_PIPE)
            if not _came_of_printing(error):
                raise
            from tidemill.features.errors import FileError

            _leave_the_pipe()
            raise FileError(
                f"what is printed cannot be written ({error.strerror}); send it elsewhere"
            ) from error
        except KeyboardInterrupt as error:
            raise click.Abort from error  # click would write an empty line first


commands = _Commands(
    name="tidemill",
    help="""Windowed features, training and inference, the same in batch and on a stream.

    A project is one Python module and one YAML file. `tidemill init NAME` writes a small one to
    start from; `tidemill demo` runs every stage of an installed one.
    """,
    params=[_debug(), _log_format()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands = click.version_option(package_name="tidemill")(commands)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status.

    Args:
        arguments: The command line without the program's name; the process's own by default.
    """
    leave_out_checks()
    session = Session()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for standard error
    with heeded() as stop, session.listening():
        try:
            status = commands.main(
                args=_as_utf8(sys.argv[1:] if arguments is None else arguments),
                prog_name="tidemill",
                standalone_mode=False,
                obj=session,
            )
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt) as error:
            status = _stopped(stop, session, error)
        except Exception as error:
            if (status := _failed(stop, session, error)) is None:
                raise
    sys.exit(status if isinstance(status, int) else 0)


def _as_utf8(arguments: Sequence[str]) -> list[str]:
    """Read arguments that the locale could not decode as UTF-8, as keys and ids are kept.

    Raises:
        UsageError: An argument is not UTF-8 either.
    """
    found = []
    for number, text in enumerate(arguments, 1):
        try:
            text.encode()
            found.append(text)
        except UnicodeEncodeError:
            try:
                found.append(os.fsencode(text).decode())
            except UnicodeError as error:
                raise click.UsageError(
                    f"argument {number} is neither text of the locale nor UTF-8: "
                    f"{text!a}; write it as UTF-8"
                ) from error
    return found


def _failed(stop: Stop, session: Session, error: Exception) -> int | None:
    """Explain an error and return the exit status; None if there is no explanation of it."""
    if stop.number is not None:
        return _stopped(stop, session, error)
    from tidemill.pipelines.commands.explained import explanation

    said = explanation(error, session.root)
    if session.diagnostics.is_json:
        # An error without an explanation is one of ours: then the place where it arose counts.
        is_ours = said is None or session.diagnostics.debug
        _log_error(error, said or f"{type(error).__name__}: {error}", shows_traceback=is_ours)
        return 1
    if said is None:
        session.diagnostics.show_kept()
        return None
    _show_traceback(session, error)
    click.echo(said, err=True)
    return 1


def _stopped(stop: Stop, session: Session, error: BaseException) -> int:
    """Print that a signal has ended the command; return the exit status."""
    if stop.number is None:  # raised by hand, such as by a test
        stop.number = 2
    if session.diagnostics.is_json:
        from tidemill.pipelines.telemetry.events import log_event

        log_event(_log, "interrupted", stop.line, level=logging.WARNING, signal=stop.number)
        return stop.status
    _show_traceback(session, error)
    with contextlib.suppress(OSError):  # the signal may mean that the terminal was closed
        click.echo(stop.line, err=True)
    return stop.status


def _log_error(error: Exception, said: str, *, shows_traceback: bool) -> None:
    from tidemill.pipelines.telemetry.events import log_event
    from tidemill.pipelines.telemetry.json_log import described

    what = described(error, shows_traceback=shows_traceback)
    log_event(_log, "error", said, level=logging.ERROR, error=what)


def _show_traceback(session: Session, error: BaseException) -> None:
    if session.diagnostics.debug:
        traceback.print_exception(error)


def _came_of_printing(error: OSError) -> bool:
    """Tell whether it was standard output or standard error that could not be written."""
    if error.errno is None or error.filename is not None:
        return False
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return last.parts[-2:] in _PRINTERS


def _leave_the_pipe() -> None:
    """Discard buffered output, or Python reports the error again when it exits."""
    with contextlib.suppress(OSError, ValueError):  # standard output may have no file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
