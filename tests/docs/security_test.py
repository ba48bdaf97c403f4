"""What docs/security.md says, by the code."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feast
import pandas as pd
import pytest
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from tests.pipelines.io.no_pickle_test import modules
from tests.pipelines.report.page_test import evaluation, write_bundle
from tests.support.command_runs import Ended, Run, arguments, without_a_model
from tests.support.markdown import DOCS, ROOT
from tests.support.proof_run import rides_yaml, write_sources
from tests.support.redis_server import running
from tidemill.features.errors import ConfigurationError, DamagedBundle
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.config.configuration import load
from tidemill.serving.bundles.bundle import Bundle, manifest_digest
from tidemill.serving.registry.registration import open_store
from tidemill.serving.registry.state import read_registered

SECRET = "s3cret-of-the-page"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*given: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(given)
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, printed.out, printed.err)

    return run


def test_the_tests_that_the_page_names_are_there() -> None:
    text = (DOCS / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).is_file(), name


# What is never executed.

FORBIDDEN = {"eval", "exec", "compile", "__import__"}


def executes(code: str) -> Iterator[str]:
    """Yield the calls of a module that run text as code, or construct what a YAML file names."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN or called in ("os.system", "os.popen"):
            yield called
        if any(word.arg == "shell" for word in node.keywords):
            yield f"{called}(shell=)"
        if re.fullmatch(r"yaml\.\w*load\w*", called) and called not in (
            "yaml.safe_load", "yaml.safe_load_all",
        ):  # fmt: skip
            yield called
        loaders = [ast.unparse(word.value) for word in node.keywords if word.arg == "Loader"]
        if any("Unsafe" in one or "Full" in one or one == "yaml.Loader" for one in loaders):
            yield f"{called}(Loader=)"


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_text(module: Path) -> None:
    assert list(executes(module.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec('x')", "os.system('ls')", "subprocess.run('ls', shell=True)",
        "yaml.load(text)", "yaml.unsafe_load(text)", "yaml.compose(t, Loader=yaml.UnsafeLoader)",
    ],
)  # fmt: skip
def test_the_search_finds_code_that_runs_text(code: str) -> None:
    assert list(executes(code))


def test_tags_in_the_yaml_file_construct_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    bomb = f'!!python/object/apply:os.system ["touch {made}"]'
    for text in (
        rides_yaml().replace("root: run", f"root: {bomb}"),
        rides_yaml(more=f"online_store: {{type: feast, options: {{type: x, at: {bomb}}}}}\n"),
    ):
        (tmp_path / "tidemill.yaml").write_text(text)
        with contextlib.suppress(ConfigurationError):  # a list where a text is expected
            load(tmp_path / "tidemill.yaml")
    assert not made.exists()


def test_functions_in_views_of_the_registry_are_not_run(tmp_path: Path, run: Run) -> None:
    """Feast runs the stored source when it lists the views; Tidemill's commands do not."""
    write_sources(tmp_path)
    (tmp_path / "tidemill.yaml").write_text(rides_yaml())
    config = load(tmp_path / "tidemill.yaml")
    store = open_store(config.project, config.places, clock="replay")
    asked = feast.RequestSource(name="asked", schema=[feast.Field(name="x", dtype=Float64)])

    @on_demand_feature_view(sources=[asked], schema=[feast.Field(name="y", dtype=Float64)])
    def planted(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"y": inputs["x"]})

    made = tmp_path / "made"
    view: Any = planted
    view.feature_transformation.udf_string = (
        f"def planted(inputs, made=open({str(made)!r}, 'w').close()):\n    return inputs\n"
    )
    store.registry.apply_feature_view(view, config.project.name)
    assert read_registered(store).foreign_views == ("planted",)
    for command in ("apply --plan", "apply", "clean-store", "backfill --publish"):
        assert run(*arguments(command, tmp_path)).status == 0, command
    assert not made.exists()
    store.registry.list_on_demand_feature_views(config.project.name)
    assert made.exists()


# What an enemy can do.


def test_the_hashes_of_a_bundle_find_damage_and_are_no_signatures(tmp_path: Path) -> None:
    version = write_bundle(tmp_path, evaluation())
    path = tmp_path / "bundles" / version / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["created_at"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedBundle):
        Bundle.load(path.parent)
    manifest["digest"] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    assert Bundle.load(path.parent).created_at == "2020-01-01T00:00:00Z"


# Secrets.


def test_a_password_is_neither_printed_nor_written(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any command, with --debug, also where the server refuses it or is gone."""
    without_a_model(monkeypatch)
    monkeypatch.setenv("RIDES_PASSWORD", SECRET)
    project = tmp_path / "rides"
    project.mkdir()
    write_sources(project)
    printed = ""

    def loud(command: str) -> int:
        nonlocal printed
        given = [one for one in arguments(command, project) if one != "--quiet"]
        ended = run("--debug", *given)
        printed += ended.out + ended.err
        return ended.status

    with running(tmp_path / "redis", users=(f"tidemill on >{SECRET} ~* +@all",)) as server:
        place = server.place
        redis = f"host: {place.host}, port: {place.port}, username: tidemill"
        more = (
            f"online_store: {{type: redis, {redis}, password_env: RIDES_PASSWORD}}\n"
            "stream: {engine: fnapi}\n"
        )
        (project / "tidemill.yaml").write_text(rides_yaml(more=more))
        for command in ("backfill --publish", "apply", "stream", "features", "verify", "lineage",
                        "explain", "republish", "clean-store", "report"):  # fmt: skip
            assert loud(command) == 0, printed[-2_000:]
        monkeypatch.setenv("RIDES_PASSWORD", f"wrong {SECRET}")
        assert loud("features") == 1
        monkeypatch.setenv("RIDES_PASSWORD", SECRET)
    assert loud("features") == 1
    assert "Traceback" in printed
    assert SECRET not in printed
    files = [path for path in project.rglob("*") if path.is_file()]
    assert any(path.name == "feature_store.yaml" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
