"""The Flex Template of a project: what can be checked of it without Docker and without Google."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from google.cloud.dataflow_v1beta3.types import ContainerSpec

from tests.support.builds import make_build
from tests.support.streaming_project import START as BEGIN
from tests.support.streaming_project import UNLABELLED, arrivals, configuration, random_rows
from tests.support.translated import FLAGS
from tidemill.features.contract import MINUTE
from tidemill.pipelines.commands.flex_template import arguments
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.engines.dataflow_flags import read_flags
from tidemill.pipelines.servers.python_path import import_path

LAUNCHER = [
    "--runner=DataflowRunner", "--template_location=gs://some-bucket/job_object",
    "--job_name=mine", "--labels={\"goog-dataflow-provided-template-type\": \"flex\"}",
    "--staging_location=gs://some-bucket/staging", *FLAGS,
]  # fmt: skip
"""Flags that the launcher of Google's image gives."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project("tiny_shop", tmp_path_factory.mktemp("init"), dataflow=True)
    return folder / "dataflow"


def test_other_projects_have_no_template(tmp_path: Path) -> None:
    assert not (write_project("tiny_shop", tmp_path) / "dataflow").exists()


def test_the_metadata_are_what_the_service_takes(template: Path) -> None:
    metadata = json.loads((template / "metadata.json").read_text())
    spec = {"image": FLAGS[3], "sdkInfo": {"language": "PYTHON"}, "metadata": metadata}
    found = ContainerSpec.from_json(json.dumps(spec))  # it refuses what it does not know
    assert found.metadata.name == "tidemill tiny_shop"
    for parameter in found.metadata.parameters:
        assert re.fullmatch(r"[a-zA-Z][-_a-zA-Z0-9]*", parameter.name)
        assert parameter.label
        assert parameter.help_text
        for regex in parameter.regexes:
            re.compile(regex)


def test_each_parameter_is_one_of_the_command_or_of_beam(template: Path) -> None:
    metadata = json.loads((template / "metadata.json").read_text())
    values = {"resume": "true", "mode": "eager"}
    given = [f"--{one['name']}={values.get(one['name'], 'x')}" for one in metadata["parameters"]]
    command = arguments([*given, *LAUNCHER], template.parent)
    ours = command[: command.index("--")]
    assert ours == [
        "stream", "--engine=dataflow", f"--config={template.parent / 'tidemill.yaml'}",
        "--root=x", "--mode=eager", "--translate=x", "--resume",
    ]  # fmt: skip
    place = read_flags(command[command.index("--") + 1 :])
    assert (place.job_name, place.staging_location) == ("mine", "gs://some-bucket/staging")
    assert place.image == FLAGS[3].partition("=")[2]


def test_what_the_dockerfile_copies_and_names_is_there(template: Path) -> None:
    text = (template / "Dockerfile").read_text()
    beam, minor = version("apache-beam"), sys.version_info.minor
    assert f"apache/beam_python${{PYTHON}}_sdk:{beam}" in text
    assert f'"apache-beam[gcp]=={beam}"' in text
    assert not {"PROJECT_NAME", "BEAM_VERSION"} & set(re.findall(r"[A-Z_]+", text))
    (entry,) = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=/project/(\S+)", text)
    assert (template.parent / entry).is_file()
    ignored = (template / "Dockerfile.dockerignore").read_text().split()
    assert not {"dataflow", "project.py", "model.py", "tidemill.yaml"} & {*ignored}
    assert minor in range(11, 14)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_entry_point_makes_the_job(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    config = configuration(root, UNLABELLED, BEGIN + 5 * MINUTE, BEGIN + 12 * MINUTE)
    partitions = dict.fromkeys(("trips", "rain", "hails"), 1)
    make_build(config, arrivals(UNLABELLED, random_rows(1), partitions, random.Random(1)))
    path = tmp_path / "tidemill.yaml"
    path.write_text(
        "project: tests.support.streaming_project:UNLABELLED\nroot: run\nsources:\n"
        "  trips: {files: [trips.csv]}\n  rain: {files: [rain.csv]}\n  hails: {files: [h.csv]}\n"
        "splits: {train_until: 2020-09-13T12:30:40Z, evaluate_until: 2020-09-13T12:31:40Z,\n"
        "         stream_until: 2020-09-13T12:38:40Z}\n"
    )
    start = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); sys.argv.pop(0); "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", start, json.dumps(import_path()), str(template / "launch.py")]
    further = [f"--config={path}", f"--translate={tmp_path / 'job'}"]
    done = run([*command, *LAUNCHER, *further])
    assert done.returncode == 0, done.stderr
    job = json.loads((tmp_path / "job" / "job.json").read_text())
    assert job["name"] == "mine"
    assert job["labels"] == {"goog-dataflow-provided-template-type": "flex"}
    refused = run([*command, *LAUNCHER, *further[:1]])
    assert refused.returncode == 1
    assert "a launcher of a Flex Template ends before its job runs" in refused.stderr
    # In the same image, on a machine that keeps the root.
    elsewhere = [flag for flag in LAUNCHER if "template_location" not in flag]
    refused = run([*command, *elsewhere, *further[:1]])
    assert refused.returncode == 1
    assert "stream.exchange is not set" in refused.stderr
    assert "is a file; let it be Redis" in refused.stderr
