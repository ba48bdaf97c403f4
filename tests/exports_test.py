"""What each room offers to others: a name that goes or comes shows here, and is meant."""

from __future__ import annotations

import importlib

import pytest
from setuptools import find_packages

from tests.serving.exports_test import EXPORTS as SERVING
from tests.support.markdown import ROOT
from tidemill.pipelines.commands.cli import COMMANDS

_AGGREGATIONS = (
    "count distinct_count first last last_k max mean min quantile rate std sum time_since_last "
    "variance"
)

EXPORTS = {
    "tidemill": "Entity EventStream FeatureView Label Project Request col " + _AGGREGATIONS,
    "tidemill.testing": "Checkpoint Released RunComparison ShardPlayer compare_with_run "
    "features_at rejected_rows",
    "tidemill.features.definitions": "ARROW_TYPES BOOL DISTINCT_EXACT_BOUND "
    "DISTINCT_REGISTER_BITS DTYPES FEATURE_DTYPES FLOAT64 INT64 QUANTILE_MANTISSA_BITS REGISTRY "
    "STRING TIMESTAMP "
    "Aggregation Arithmetic Column Comparison Entity EventStream Expression FeatureColumn "
    "FeatureView FillNull IsIn IsNull Label Literal LocalField Logic Mask Not Origin Partial "
    "Project Request Scalar Schema col count distinct_count first has_grown last last_k max mean "
    "min quantile rate spec_hash std sum time_since_last variance wrap",
    "tidemill.features.kernel.folds": "counts_and_extremes distinct finish first_last quantiles "
    "sums",
    "tidemill.serving": "SplitRejected TensorFlowModelHandler bundle_handler",
    **{f"tidemill.serving.{package}": names for package, names in SERVING.items()},
}
"""The packages that export names; of the others, each module is imported by its own name."""


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_offers_these_names(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == EXPORTS[package].split()
    assert all(hasattr(module, name) for name in module.__all__)


def test_no_other_package_exports_a_name() -> None:
    packages = find_packages(str(ROOT), include=["tidemill", "tidemill.*"])
    exporting = {name for name in packages if hasattr(importlib.import_module(name), "__all__")}
    assert exporting == set(EXPORTS)


def test_pipelines_offers_its_commands() -> None:
    assert " ".join(COMMANDS) == (
        "demo init validate backfill train stream promote rollback upgrade reload status "
        "republish verify report features explain lineage apply clean-store merge-log archive "
        "export-archive replay-rejected forget up down"
    )
