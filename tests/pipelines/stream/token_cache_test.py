"""The cache of decoded operators: an entry is valid only with its token."""

from __future__ import annotations

from tidemill.pipelines.stream.token_cache import TokenCache


def test_an_entry_is_taken_only_under_its_token() -> None:
    cache = TokenCache(most=2)
    cache.put(("run", "a"), b"1", "first")
    assert cache.take(("run", "a"), b"2") is None
    # Taking removes a stale entry: the caller decodes the state again.
    assert cache.take(("run", "a"), b"1") is None
    cache.put(("run", "a"), b"3", "second")
    assert cache.take(("other", "a"), b"3") is None
    assert cache.take(("run", "a"), b"3") == "second"
    assert cache.take(("run", "a"), b"3") is None


def test_a_run_can_be_forgotten() -> None:
    """A run has the name of an earlier run of the same segment."""
    cache = TokenCache(most=9)
    cache.put(("run", "a"), b"1", "old")
    cache.put(("other", "a"), b"1", "of another")
    cache.forget("run")
    assert cache.take(("run", "a"), b"1") is None
    assert cache.take(("other", "a"), b"1") == "of another"


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache = TokenCache(most=2)
    for name in ("a", "b"):
        cache.put(("run", name), b"1", name)
    cache.put(("run", "a"), b"2", "a again")
    cache.put(("run", "c"), b"1", "c")
    assert cache.take(("run", "b"), b"1") is None
    assert cache.take(("run", "a"), b"2") == "a again"
    assert cache.take(("run", "c"), b"1") == "c"
