"""A definition changes, its name and its type stay: each answer is proven by the one that made it.

Inputs of the request, the label, the order of views, and all that a view says: formula, filter,
default, window, hop, key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.grown_shop import ASKED, AskedShop
from tests.support.memory_topics import PAYMENTS
from tidemill import Entity, FeatureView, Project, col, count, last, mean, sum
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.definitions.aggregations import Aggregation
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.upgrade.plan import plan_upgrade
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.served import read_predictions
from tidemill.pipelines.verify.verify import verify

SPENT: Final = {
    "spent_1h": sum(col("amount") * 2.0, over="1h"),
    "large_1h": count(over="1h", where=col("amount") > 50.0),
    "shop_1h": mean(col("shop").fill_null(0), over="1h"),
    "last_amount": last(col("amount"), over="1h"),
}


def spending(features: Mapping[str, Aggregation] = SPENT, **options: Any) -> FeatureView:
    return FeatureView(
        **{
            "name": "spending",
            "entity": Entity("card"),
            "stream": PAYMENTS,
            "hop": "1m",
            "features": features,
            **options,
        }
    )


def project(view: FeatureView | None = None, **changes: Any) -> Project:
    (by_card, _) = ASKED.views
    return replace(ASKED, **{"views": [by_card, view or spending()], **changes})


def asking(**inputs: Any) -> Project:
    return project(request=replace(ASKED.request, inputs={**ASKED.request.inputs, **inputs}))


BEFORE: Final = project()
(BY_CARD, SPENDING), LABEL = BEFORE.views, ASKED.label
assert LABEL is not None

OF_REQUESTS: Final = {
    "an input": asking(wanted=col("wanted") * 2.0),
    "the default of an input, and one is added": asking(
        items=col("items").fill_null(7) + 1, double=col("wanted") * 2.0
    ),
    "the label": project(label=replace(LABEL, value=col("value") > 0.25, horizon="5m")),
    "orders": project(
        views=[SPENDING, BY_CARD],
        request=replace(ASKED.request, inputs=dict(reversed([*ASKED.request.inputs.items()]))),
    ),
}
"""What is no view: the states of all views are kept."""
OF_VIEWS: Final = {
    "formula": spending({**SPENT, "spent_1h": sum(col("amount") * 3.0, over="1h")}),
    "filter and default": spending(
        {
            **SPENT,
            "large_1h": count(over="1h", where=col("amount") > 20.0),
            "shop_1h": mean(col("shop").fill_null(5), over="1h"),
        }
    ),
    "window, aggregation, hop": spending(
        {**SPENT, "last_amount": mean(col("amount"), over="10m")}, hop="2m"
    ),
    "key": spending(key="payment"),
    "entity": spending(entity=Entity("holder", "card")),
    "removed": None,
}


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def begun(folder: Path, patch: pytest.MonkeyPatch) -> AskedShop:
    """Return a shop whose stream has stopped."""
    shop = AskedShop.of_now(folder / "shop", patch, ago_us=HOUR, project=BEFORE)
    backfill(shop.config(), QuietProgress(), publish=True)
    shop.send(shop.until_us, steps=20, every_us=30 * SECOND)
    shop.stream(patch)
    return shop


def proven(shop: AskedShop) -> dict[str, Any]:
    """Verify that every stream and the build are proven, by whatever definitions."""
    found = verify(shop.config(), QuietProgress(), sample=20)
    assert found["mismatches"] == 0, str(found["first_mismatches"])
    assert [one["why"] for one in found["earlier"]] == [""] * len(found["earlier"])
    assert found["states"] > 0 < found["training_rows"]
    return found


def goes_on(shop: AskedShop, to: Project, patch: pytest.MonkeyPatch) -> list[str]:
    """Upgrade a stream, let it go on, prove all; return what has changed."""
    shop.project = to
    with pytest.raises(StateMismatch, match="upgrade"):
        shop.stream(patch, resume=True)
    plan = plan_upgrade(shop.config())
    assert plan is not None
    assert upgrade(shop.config(), QuietProgress())["upgraded"] == 1
    before = proven(shop)
    assert before["predictions"] > 5
    shop.send(shop.until_us + 20 * MINUTE, steps=20, every_us=30 * SECOND)
    shop.stream(patch, resume=True)
    after = proven(shop)
    assert after["predictions"] > 5
    (earlier,) = after["earlier"]
    assert earlier["predictions"] == before["predictions"]
    return [step.what for step in plan.changes]


@pytest.mark.parametrize("case", OF_REQUESTS)
def test_what_is_no_view_changes_and_each_version_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    shop = begun(tmp_path, monkeypatch)
    assert goes_on(shop, OF_REQUESTS[case], monkeypatch) == ["definitions"]


@pytest.mark.parametrize("case", OF_VIEWS)
def test_a_view_changes_and_each_version_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    shop, view = begun(tmp_path, monkeypatch), OF_VIEWS[case]
    to = project(views=[BY_CARD]) if view is None else project(view)
    assert "view spending" in goes_on(shop, to, monkeypatch)


def test_answers_of_versions_are_explained_and_followed_by_their_own_definitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = begun(tmp_path, monkeypatch)
    before = predictions(shop)
    goes_on(shop, replace(asking(wanted=col("wanted") + 1.0), views=project(
        OF_VIEWS["formula"]).views), monkeypatch)  # fmt: skip
    after = predictions(shop)
    for rows, added, factor in ((before, 0.0, 2.0), (after, 1.0, 3.0)):
        asked = next(row for row in rows if row["spending__spent_1h"])
        explained = explain(shop.config(), asked["request_id"])
        assert {value.verdict for value in explained.values} == {"equal"}
        by_column = {value.column: value for value in explained.values}
        spent = by_column["by_card__spent_1h"].recomputed
        assert spent is not None
        assert by_column["spending__spent_1h"].recomputed == pytest.approx(factor * spent)
        sent = {row["check"]: row["wanted"] for of in shop.rows["checks"] for row in of}
        assert asked["wanted"] == sent[asked["request_id"]] + added


def predictions(shop: AskedShop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_predictions(
        shop.current.stream_folder, shop.project
    ).to_pylist()
    return found


def test_a_version_whose_definitions_were_not_recorded_is_named_and_not_accused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases before did not record them."""
    shop = begun(tmp_path, monkeypatch)
    run = StreamRun.read(shop.current.stream_folder)
    assert run is not None
    replace(run, definitions=None).write(shop.current.stream_folder)
    shop.project = asking(wanted=col("wanted") * 2.0)
    label = replace(LABEL, horizon="5m")
    plan = plan_upgrade(replace(shop.config(), project=replace(shop.project, label=label)))
    assert plan is not None
    assert not plan.changes  # nothing tells
    shop.project = replace(shop.project, views=project(OF_VIEWS["formula"]).views)
    upgrade(shop.config(), QuietProgress())
    shop.send(shop.until_us + 20 * MINUTE, steps=20, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    found = verify(shop.config(), QuietProgress(), sample=20)
    assert found["mismatches"] == 0, str(found["first_mismatches"])
    assert [one["why"] for one in found["earlier"]] == ["of another definition of spending"]
