"""The offline store: every change point of every feature, on disk or in BigQuery.

The log only grows, `merge` combines its files, and `join` reads it as of an instant.
"""

from __future__ import annotations

from tidemill.serving.offline.bigquery_tables import log_ddl, newest_ddl, project_ddl
from tidemill.serving.offline.log import OfflineLog, Span
from tidemill.serving.offline.merge import Merge, merge_day, planned_merge
from tidemill.serving.offline.offline_table import offline_table

__all__ = [
    "Merge",
    "OfflineLog",
    "Span",
    "log_ddl",
    "merge_day",
    "newest_ddl",
    "offline_table",
    "planned_merge",
    "project_ddl",
]
