"""The training table of `benchmarks.fraud` by hand in polars: one program, from Parquet to Parquet.

Running counts and sums per key, and two as-of joins for each window: what was before the request,
and what was before the window. Sums are rounded at each step; nothing is checked, deduplicated,
logged or kept for a stream.
"""

from __future__ import annotations

import sys

import polars as pl

DAY = 86_400_000_000
DELAY_US = 7 * DAY
_DAYS = (1, 7, 30)


def windows(
    requests: pl.DataFrame, events: pl.DataFrame, key: str, names: tuple[str, str]
) -> list[pl.Series]:
    """Return number and mean of the events in each window, in the order of the requests.

    Args:
        requests: ``row``, ``t`` and the key, sorted by ``t``.
        events: ``t``, ``value`` and the key, sorted by ``t``.
        key: The key's column.
        names: The names of the number and of the mean.
    """
    running = events.select(
        key,
        "t",
        n=pl.int_range(1, pl.len() + 1).over(key),
        total=pl.col("value").cum_sum().over(key),
    )

    def before(asked: pl.DataFrame, suffix: str) -> pl.DataFrame:
        return asked.join_asof(
            running.rename({"n": f"n{suffix}", "total": f"total{suffix}"}),
            on="t",
            by=key,
            strategy="backward",
            allow_exact_matches=False,
            check_sortedness=False,
        ).select(pl.col(f"n{suffix}").fill_null(0), pl.col(f"total{suffix}").fill_null(0.0))

    head = before(requests, "")
    found = []
    for days in _DAYS:
        tail = before(requests.with_columns(t=(pl.col("t") - days * DAY) // DAY * DAY), "_before")
        n = head["n"] - tail["n_before"]
        total = head["total"] - tail["total_before"]
        found.append(n.alias(f"{names[0]}_{days}d"))
        found.append((total / n).set(n == 0, None).alias(f"{names[1]}_{days}d"))
    return found


def main(source: str, target: str) -> None:
    """Write the training table of a file of payments."""
    rows = pl.read_parquet(source).with_columns(t=pl.col("paid_at").cast(pl.Int64))
    requests = rows.select("t", "customer", "terminal", "payment").sort("t")
    customers = windows(
        requests,
        rows.select("t", "customer", value="amount").sort("t"),
        "customer",
        ("payments", "amount"),
    )
    outcomes = rows.select(
        "payment",
        "terminal",
        "fraud",
        t=pl.col("t") + DELAY_US,
        value=pl.col("fraud").cast(pl.Float64),
    ).sort("t")
    terminals = windows(requests, outcomes, "terminal", ("known", "risk"))
    labels = rows.select("payment", "amount").join(
        outcomes.select("payment", label="fraud", label_time="t"), on="payment", how="left"
    )
    table = requests.join(labels, on="payment", how="left", maintain_order="left")
    table.with_columns([*customers, *terminals]).write_parquet(target, compression="snappy")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
