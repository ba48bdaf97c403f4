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
    from tidemill.pipelines.run.tables import columns_as_rows, print_tables
    from tidemill.pipelines.verify.instants import scalar_text
    from tidemill.pipelines.verify.read_features import read_features
    from tidemill.serving.online.reader import FRONTIER

    table = read_features(config.project, config.online_store, view, keys)
    texts = {
        name: [
            scalar_text(name if name == FRONTIER else "", value) if value.is_valid else None
            for value in column
        ]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    print_tables([columns_as_rows(texts)], sys.stdout)
