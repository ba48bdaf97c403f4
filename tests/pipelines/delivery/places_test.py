"""A set of places is a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.pipelines.delivery.places import Place, Places

PLACES = st.builds(
    Place,
    st.sampled_from([("prediction", 0), ("prediction", 1), ("rejected", "read", "orders", 0, 1)]),
    st.one_of(st.integers(0, 100), st.integers(65_500, 65_600), st.integers(0, 2**62)),
)


@given(st.lists(PLACES), st.lists(PLACES))
def test_it_has_what_was_added_and_nothing_else(added: list[Place], asked: list[Place]) -> None:
    places = Places()
    for place in added:
        places.add(place)
    assert len(places) == len(set(added))
    for place in [*added, *asked]:
        assert (place in places) == (place in set(added))
