"""`tidemill reload`: let the stream that runs take over what has changed in its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from tidemill.pipelines.commands import options, stages

_WITHIN_S: Final = 60.0


@click.command(short_help="Let the stream that runs take over changed settings.")
@options.config
@options.root
def reload(config_path: Path, root: Path | None) -> None:
    """Let the stream that runs read its file again, and take over what needs no restart.

    docs/configuration.md lists these keys. Whatever else has changed is named, and waits for a
    restart. A file that is wrong is refused here, before the stream is asked; the stream goes on
    with what it has. It may run on another machine that has the same root.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.features.errors import StateMismatch
    from tidemill.pipelines.telemetry.settings_record import SettingsRecord, mailbox
    from tidemill.pipelines.telemetry.stream_record import StreamRecord
    from tidemill.serving.files.locks import is_locked

    current = config.current
    record = StreamRecord.read(current.folder)
    if not is_locked(current.stream_lock) or record is None or record.ended_us is not None:
        raise StateMismatch(
            f"no stream of {config.root} runs: it reads {config.path} when it starts, with "
            "`tidemill stream --resume`"
        )
    box = mailbox(current.folder)
    answer = box.wait(box.ask(), lambda: is_locked(current.stream_lock), _WITHIN_S)
    if answer is None:
        raise StateMismatch(
            f"the stream of {config.root} (process {record.pid} on {record.host}) has not "
            f"answered within {_WITHIN_S:g} s, or has ended: see `tidemill status`, which "
            "shows what it has taken over"
        )
    found = SettingsRecord(**answer)
    for line in found.taken:
        click.echo(f"taken over  {line}")
    for line in found.waiting:
        click.echo(f"waits       {line} (needs a restart)")
    if found.error:
        click.echo(f"the stream has refused the file: {found.error}", err=True)
        sys.exit(1)
    if not (found.taken or found.waiting):
        click.echo("nothing has changed")
