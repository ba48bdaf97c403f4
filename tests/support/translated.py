"""A stream's job for Dataflow, translated by a process of its own; and what is compared of it.

``python -m tests.support.translated ROOT FOLDER`` translates the stream of `parcels_root`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.support.builds import make_build
from tests.support.markdown import ROOT
from tests.support.streaming_project import Row, arrivals, configuration
from tests.support.trained_bundle import PROJECT, START, bundle
from tidemill.features.contract import HOUR, SECOND
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.inference_section import InferenceOptions
from tidemill.pipelines.engines.choosing import EngineChoice, choose_engine
from tidemill.pipelines.servers.python_path import import_path, python_command
from tidemill.pipelines.stream_run.translation import translate_stream
from tidemill.serving.bundles.current import CURRENT

FLAGS: Final = (
    "--project=some-project", "--region=europe-west4", "--temp_location=gs://some-bucket/temp",
    "--sdk_container_image=europe-west4-docker.pkg.dev/some-project/images/parcels:1",
)  # fmt: skip
"""What Dataflow needs of a user; nobody is asked about any of it."""
ACCELERATOR: Final = "type:nvidia-l4;count:1;install-nvidia-driver"
CUT: Final = START + 4 * HOUR
STOP: Final = START + 8 * HOUR
PARTITIONS: Final = {"scans": 2, "pickups": 2}


def random_rows(seed: int) -> dict[str, list[Row]]:
    chance = random.Random(seed)

    def time() -> int:
        return START + chance.randrange(8 * 3_600) * SECOND

    scans = [
        {"at": time(), "scan": f"s{n}", "parcel": f"p{n}", "depot": chance.choice("nsw"),
         "minutes": chance.uniform(0, 30)}
        for n in range(40)
    ]  # fmt: skip
    pickups = [
        {"at": time(), "parcel": f"r{n}", "depot": chance.choice("nsw"),
         "grams": chance.randrange(1_000), "metres": chance.uniform(0, 9), "fragile": True}
        for n in range(30)
    ]  # fmt: skip
    return {"scans": scans, "pickups": pickups}


def parcels(root: Path, **stream: Any) -> Configuration:
    """Return the configuration of a root that `parcels_root` has made."""
    return configuration(root, PROJECT, CUT, STOP, poll_rows=60, **stream)


def parcels_root(root: Path) -> Configuration:
    """Make a root with a log, a live bundle and a handed-over state."""
    trained = bundle().directory
    shutil.copytree(trained, root / "bundles" / trained.name)
    (root / "bundles" / CURRENT).write_text(trained.name)
    made = parcels(root)
    make_build(made, arrivals(PROJECT, random_rows(1), PARTITIONS, random.Random(1)))
    return made


def dataflow(flags: Sequence[str] = FLAGS) -> EngineChoice:
    return choose_engine("dataflow", streaming=True, flags=flags)


def with_accelerator(config: Configuration) -> Configuration:
    hints = InferenceOptions(ACCELERATOR, "8GB")
    return replace(config, stream=replace(config.stream, inference=hints))


def translate_elsewhere(root: Path, folder: Path, beam: Path | None = None) -> None:
    """Translate the stream of `parcels_root` in another process.

    Args:
        root: The root.
        folder: Where the job is written.
        beam: Where another Beam is; None for the one of this process.
    """
    places = [*([] if beam is None else [str(beam)]), str(ROOT), *import_path()]
    command = python_command("tests.support.translated", places)
    # Whatever is a set, or a hash, has another order there.
    seeded = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(places)}
    subprocess.run([*command, str(root), str(folder)], check=True, env=seeded)


def main(root: str, folder: str) -> None:
    """Translate, and say with which Beam."""
    import apache_beam as beam

    translation, steps = translate_stream(with_accelerator(parcels(Path(root))), dataflow())
    translation.write(Path(folder))
    steps.write(Path(folder))
    (Path(folder) / "beam").write_text(beam.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
