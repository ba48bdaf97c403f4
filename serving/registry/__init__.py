"""Registration with Feast, in process: compare, plan, apply.

A changed view gets a version beside the promoted one. Applying again changes nothing.
"""

from __future__ import annotations

from tidemill.serving.registry.orphaned_spaces import drop_orphans, find_orphans
from tidemill.serving.registry.plan import Preview, RegistrationPlan, SpacePlan
from tidemill.serving.registry.registration import (
    apply_project,
    feast_name,
    open_store,
    plan_project,
)

__all__ = [
    "Preview",
    "RegistrationPlan",
    "SpacePlan",
    "apply_project",
    "drop_orphans",
    "feast_name",
    "find_orphans",
    "open_store",
    "plan_project",
]
