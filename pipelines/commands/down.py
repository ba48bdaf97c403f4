"""`tidemill down`: end what `tidemill up` has started."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options


@click.command("down", short_help="End the servers that `tidemill up` has started.")
@options.servers_folder
@click.option("--remove", is_flag=True, help="Remove their data and logs too.")
def down(folder: Path, remove: bool) -> None:
    """End the servers that `tidemill up` has started in this folder, and no others.

    Their data stay, and `tidemill up` continues with them, unless they are removed.
    """
    from tidemill.pipelines.servers.local_servers import LocalServers

    servers = LocalServers(folder)
    stopped = servers.stop()
    for server, ran in stopped:
        how = "stopped" if ran else "had ended already"
        click.echo(f"{server.name}  {server.address}  process {server.pid}, {how}")
    if not stopped:
        click.echo(f"nothing runs that `tidemill up --folder {folder}` has started")
    if remove and servers.remove():
        click.echo(f"removed the data in {folder}")
    elif stopped:
        click.echo(f"the data stay in {folder}; `tidemill down --remove` removes them")
