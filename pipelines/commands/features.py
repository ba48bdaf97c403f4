"""`tidemill features`: read entities from the online store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Read features from the online store.")
@click.argument("view")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@options.config
@options.root
def features(config_path: Path, root: Path | None, view: str, keys: tuple[str, ...]) -> None:
    """Read the features of entities from the online store, with their status.

    VIEW is the name of a feature view, KEY the key of an entity.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.features.contract import write_instant
    from tidemill.pipelines.run.tables import columns_as_rows, print_tables
    from tidemill.pipelines.verify.read_features import read_features
    from tidemill.serving.online.reader import FRONTIER

    table = read_features(config.project, config.online_store, view, keys)
    columns = table.to_pydict()
    columns[FRONTIER] = [None if at is None else write_instant(at) for at in columns[FRONTIER]]
    print_tables([columns_as_rows(columns)], sys.stdout)
