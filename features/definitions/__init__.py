"""What a user writes down: event streams, entities, feature views, requests, labels, projects.

A definition is frozen and checked when it is made, so a mistake is an error at import time.
Its canonical form (`spec`) has a hash, which key spaces, states and bundles carry.
"""

from tidemill.features.definitions.aggregations import (
    DISTINCT_EXACT_BOUND,
    DISTINCT_REGISTER_BITS,
    QUANTILE_MANTISSA_BITS,
    REGISTRY,
    Aggregation,
    count,
    distinct_count,
    first,
    last,
    last_k,
    max,
    mean,
    min,
    quantile,
    rate,
    std,
    sum,
    time_since_last,
    variance,
)
from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.definitions.expressions import (
    Arithmetic,
    Column,
    Comparison,
    Expression,
    FillNull,
    IsIn,
    IsNull,
    Literal,
    LocalField,
    Logic,
    Not,
    col,
    wrap,
)
from tidemill.features.definitions.labels import Label
from tidemill.features.definitions.partials import Mask, Partial
from tidemill.features.definitions.project import Project
from tidemill.features.definitions.requests import Request
from tidemill.features.definitions.schema import (
    ARROW_TYPES,
    BOOL,
    DTYPES,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    Scalar,
    Schema,
)
from tidemill.features.definitions.streams import EventStream
from tidemill.features.definitions.views import Entity, FeatureColumn, FeatureView

__all__ = [
    "ARROW_TYPES",
    "BOOL",
    "DISTINCT_EXACT_BOUND",
    "DISTINCT_REGISTER_BITS",
    "DTYPES",
    "FLOAT64",
    "INT64",
    "QUANTILE_MANTISSA_BITS",
    "REGISTRY",
    "STRING",
    "TIMESTAMP",
    "Aggregation",
    "Arithmetic",
    "Column",
    "Comparison",
    "Entity",
    "EventStream",
    "Expression",
    "FeatureColumn",
    "FeatureView",
    "FillNull",
    "IsIn",
    "IsNull",
    "Label",
    "Literal",
    "LocalField",
    "Logic",
    "Mask",
    "Not",
    "Partial",
    "Project",
    "Request",
    "Scalar",
    "Schema",
    "col",
    "count",
    "distinct_count",
    "first",
    "last",
    "last_k",
    "max",
    "mean",
    "min",
    "quantile",
    "rate",
    "spec_hash",
    "std",
    "sum",
    "time_since_last",
    "variance",
    "wrap",
]
