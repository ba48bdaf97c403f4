"""The plan of a registration (`serving.registry.plan`) as tables, and carrying it out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.contract import TIME_MAX, TIME_MIN, format_duration, write_instant
from tidemill.features.definitions import Project
from tidemill.pipelines.run.tables import Table
from tidemill.serving.definition_changes import Change
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.offline.bigquery_tables import project_ddl
from tidemill.serving.registry.plan import (
    Preview,
    RegistrationPlan,
    Role,
    SpacePlan,
    ViewPlan,
    behind_us,
)
from tidemill.serving.registry.registration import apply_project
from tidemill.serving.stores.class_paths import renamed_classes
from tidemill.serving.stores.feast_config import (
    FEATURE_STORE_YAML,
    OBJECTS_MODULE,
    write_feature_store_yaml,
    write_objects_module,
)
from tidemill.serving.stores.online_places import Clock
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import registry_lock

BIGQUERY_SQL: Final = "bigquery.sql"
"""The file below the root with the statements that make the tables of BigQuery."""

_SIGNS = {Change.ADDED: "+", Change.CHANGED: "~", Change.REMOVED: "-", Change.UNCHANGED: "="}
_SECOND_US = 1_000_000


def carry_out(
    project: Project,
    places: StorePlaces,
    shown: Preview,
    *,
    promote: bool,
    unfilled_too: bool,
    clock: Clock,
) -> list[str]:
    """Register what a plan shows, and write the file that Feast's own programs read.

    With an offline store in BigQuery, also write the statements that create its tables to
    `BIGQUERY_SQL`: Tidemill itself does not connect to BigQuery.

    Args:
        project: The definitions.
        places: Where the project's stores are.
        shown: The plan that the user has seen.
        promote: Whether to switch all readers to the code's definitions.
        unfilled_too: Whether to promote definitions that have no values yet.
        clock: The clock by which Feast's programs judge the age of values.

    Returns:
        One line for each thing that was done.

    Raises:
        StoreError: The registry or the store refuses, has changed since the plan was shown, or a
            definition to promote has no values.
    """
    done = apply_project(project, places, promote=promote, unfilled_too=unfilled_too, shown=shown)
    lines = list(done.promotes if promote else done.registers)
    lines += [f"make key space {space.name}" for space in done.plan.spaces or () if _made(space)]
    lines += _write_feature_store_yaml(project.name, places, clock)
    lines += _write_objects_module(places)
    if _wrote_bigquery_sql(project, places):
        lines.append(f"write {BIGQUERY_SQL}: run it in BigQuery, which makes the tables")
    return lines or ["nothing to do"]


def next_steps(done: RegistrationPlan, *, promoted: bool) -> Iterator[str]:
    """Yield a line for each step that the user has to take after registering."""
    for view in done.views:
        if view.change is Change.ADDED and not view.in_service and done.service is Change.CHANGED:
            yield f"{view.view} is new: fill it with `tidemill backfill --publish`"
        if view.change is Change.CHANGED and not promoted:
            yield (
                f"{view.view} has version {view.version} pending as {view.feast_name}: fill it "
                "with `tidemill backfill --publish`"
            )
    if done.to_promote and not promoted:
        yield "then switch all readers to the new definitions with `tidemill apply --promote`"


def plan_tables(preview: Preview, *, now_us: int | None = None) -> list[Table]:
    """Return a plan as tables."""
    made = preview.plan
    now = time.time_ns() // 1_000 if now_us is None else now_us
    tables = [
        Table(
            f"project {made.project}",
            ("", "what", "version", "definition", "what becomes of it"),
            [
                *map(_view_row, made.views),
                *_superseded_rows(made),
                *_entity_rows(made),
                *_service_rows(made),
            ],
            frozenset([2]),
        )
    ]
    if rows := [row for view in made.views for row in _change_rows(view)]:
        tables.append(Table("changes", ("", "view", "feature", "difference"), rows))
    if made.spaces is not None:
        rows = [_space_row(space, made.spaces, now) for space in made.spaces]
        columns = ("key space", "referred to as", "shards", "as of", "state")
        tables.append(Table("online store", columns, rows))
    return tables


def plan_verdict(preview: Preview) -> list[str]:
    """Return lines that say what `apply` would do, and what `apply --promote` would do."""
    made = preview.plan
    made_spaces = [f"make key space {s.name}" for s in made.spaces or () if _made(s)]
    doing = [*preview.registers, *made_spaces]
    lines = ["`tidemill apply` would:", *(f"  {line}" for line in doing)]
    if not doing:
        lines = ["`tidemill apply` would do nothing: everything is registered"]
    if made.to_promote:
        lines.append(f"`tidemill apply --promote` would switch {', '.join(made.to_promote)}:")
        lines += [f"  {line}" for line in preview.promotes]
    if made.to_promote and made.unfilled:
        lines.append("and is refused for now: fill with `tidemill backfill --publish`:")
        lines += [f"  {line}" for line in made.unfilled]
    return lines


def orphan_tables(orphans: list[SpacePlan], *, now_us: int | None = None) -> list[Table]:
    """Return the unused key spaces as a table."""
    now = time.time_ns() // 1_000 if now_us is None else now_us
    rows = [
        (orphan.space.name, orphan.space.view, _as_of(orphan.frontiers.least, now))
        for orphan in orphans
    ]
    return [Table("key spaces that no version refers to", ("key space", "view", "as of"), rows)]


def _write_feature_store_yaml(project: str, places: StorePlaces, clock: Clock) -> list[str]:
    """Bring ``feature_store.yaml`` up to date; return a line for each change."""
    target = places.root / FEATURE_STORE_YAML
    with registry_lock(places.registry):
        before = target.read_bytes() if target.exists() else b""
        write_feature_store_yaml(project, places, clock=clock)
        if target.read_bytes() == before:
            return []
    renamed = renamed_classes(before.decode(errors="replace"))
    return [
        f"write {FEATURE_STORE_YAML}: clock {clock}",
        *(f"in {FEATURE_STORE_YAML}, {old} becomes {new}" for old, new in renamed.items()),
    ]


def _write_objects_module(places: StorePlaces) -> list[str]:
    """Bring the module of generated objects up to date; return a line if it changed."""
    target = places.root / OBJECTS_MODULE
    with registry_lock(places.registry):
        before = target.read_bytes() if target.exists() else b""
        write_objects_module(places)
        if target.read_bytes() == before:
            return []
    return [f"write {OBJECTS_MODULE}"]


def _wrote_bigquery_sql(project: Project, places: StorePlaces) -> bool:
    """Bring ``bigquery.sql`` up to date; return whether it changed."""
    if not isinstance(places.offline, BigQueryDataset):
        return False
    target = places.root / BIGQUERY_SQL
    text = project_ddl(places.offline, project)
    if target.exists() and target.read_text() == text:
        return False
    write_text(target, text)
    return True


def _made(space: SpacePlan) -> bool:
    return not space.exists and space.role is not Role.ORPHANED


def _view_row(view: ViewPlan) -> tuple[str, ...]:
    what = {
        Change.ADDED: "new: promoted at once",
        Change.CHANGED: f"pending as {view.feast_name}; promoted is "
        f"{'' if view.promoted is None else view.promoted.definition}",
        Change.REMOVED: "not in the code: stays until promotion",
        Change.UNCHANGED: "promoted",
    }[view.change]
    return _SIGNS[view.change], f"view {view.view}", str(view.version), view.definition, what


def _superseded_rows(made: RegistrationPlan) -> Iterator[tuple[str, ...]]:
    for version in made.superseded:
        what = f"pending as {version.feast_name}, not in the code: stays until promotion"
        view, number = f"view {version.view}", str(version.version)
        yield _SIGNS[Change.REMOVED], view, number, version.definition, what


def _entity_rows(made: RegistrationPlan) -> Iterator[tuple[str, ...]]:
    for entity in made.entities:
        if entity.change is Change.UNCHANGED:
            continue
        what = {
            Change.ADDED: "new",
            Change.CHANGED: f"{'; '.join(entity.details)}: pending as {entity.feast_name}",
            Change.REMOVED: "not in the code: stays until promotion",
        }[entity.change]
        yield _SIGNS[entity.change], f"entity {entity.entity}", "", "", what


def _service_rows(made: RegistrationPlan) -> Iterator[tuple[str, ...]]:
    what = {
        Change.ADDED: "new",
        Change.CHANGED: f"{'; '.join(made.service_details) or 'other order'}: on promotion",
        Change.UNCHANGED: "the code's features",
    }[made.service]
    yield _SIGNS[made.service], f"feature service {made.project}", "", "", what


def _change_rows(view: ViewPlan) -> Iterator[tuple[str, ...]]:
    sign = _SIGNS[Change.CHANGED]
    for detail in view.details:
        yield sign, view.view, "", detail
    for feature in view.features:
        yield _SIGNS[feature.change], view.view, feature.feature, ", ".join(feature.details)


def _space_row(space: SpacePlan, spaces: tuple[SpacePlan, ...], now_us: int) -> tuple[str, ...]:
    frontiers = space.frontiers
    shards = f"{len(frontiers.by_shard)} of {frontiers.shard_count or '?'}"
    return (
        space.name,
        space.role.value,
        shards if space.exists else "",
        _as_of(frontiers.least, now_us) if space.exists else "",
        _state(space, spaces),
    )


def _state(space: SpacePlan, spaces: tuple[SpacePlan, ...]) -> str:
    if not space.exists:
        return "will be made, empty: fill it with `tidemill backfill --publish`"
    if lacking := space.unfilled:
        return lacking
    behind = behind_us(space, spaces)
    trails = f", {_rounded(behind)} behind the newest of the view" if behind else ""
    return f"filled{trails}"


def _as_of(least_us: int, now_us: int) -> str:
    if not TIME_MIN < least_us < TIME_MAX:
        return "-"
    text = write_instant(least_us // _SECOND_US * _SECOND_US)
    age = now_us - least_us
    return f"{text} ({_rounded(age)} ago)" if age >= 0 else text


def _rounded(duration_us: int) -> str:
    """Write a duration in the largest unit that it holds at least twice."""
    for unit_us in (86_400 * _SECOND_US, 3_600 * _SECOND_US, 60 * _SECOND_US, _SECOND_US):
        if duration_us >= 2 * unit_us:
            return format_duration(duration_us // unit_us * unit_us)
    return f"{duration_us / _SECOND_US:.1f}s"
