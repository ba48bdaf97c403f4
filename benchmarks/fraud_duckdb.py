"""The training table of `benchmarks.fraud` by hand in duckdb: one program, from Parquet to Parquet.

Running counts and sums per key, and as-of joins, as in `benchmarks.fraud_polars`.
"""

from __future__ import annotations

import sys

import duckdb

DAY = 86_400_000_000
DELAY_US = 7 * DAY
_DAYS = (1, 7, 30)


def _view(name: str, key: str, names: tuple[str, str]) -> str:
    """Return the query of a view's features, by payment."""
    columns, joins = [], []
    for days in _DAYS:
        tail = f"tail_{days}"
        count = f"coalesce(head.n, 0) - coalesce({tail}.n, 0)"
        total = f"coalesce(head.total, 0) - coalesce({tail}.total, 0)"
        columns.append(f"{count} AS {names[0]}_{days}d")
        columns.append(
            f"CASE WHEN {count} > 0 THEN ({total}) / ({count}) END AS {names[1]}_{days}d"
        )
        joins.append(
            f"ASOF LEFT JOIN {name} {tail} ON {tail}.{key} = asked.{key} "
            f"AND {tail}.t < (asked.t - {days * DAY}) // {DAY} * {DAY}"
        )
    return (
        f"SELECT asked.payment, {', '.join(columns)} FROM asked "
        f"ASOF LEFT JOIN {name} head ON head.{key} = asked.{key} AND head.t < asked.t "
        + " ".join(joins)
    )


def main(source: str, target: str, threads: int = 0) -> None:
    """Write the training table of a file of payments."""
    connection = duckdb.connect(config={"threads": threads} if threads else {})
    connection.execute(
        f"""
        CREATE TABLE asked AS SELECT *, epoch_us(paid_at) AS t FROM '{source}';
        CREATE TABLE paid AS SELECT customer, t,
            row_number() OVER one AS n, sum(amount) OVER one AS total
            FROM asked WINDOW one AS (PARTITION BY customer ORDER BY t ROWS UNBOUNDED PRECEDING);
        CREATE TABLE known AS SELECT terminal, t + {DELAY_US} AS t,
            row_number() OVER one AS n, sum(fraud::INTEGER) OVER one AS total
            FROM asked WINDOW one AS (PARTITION BY terminal ORDER BY t ROWS UNBOUNDED PRECEDING);
        COPY (
            SELECT asked.payment, asked.paid_at, asked.amount,
                customers.* EXCLUDE (payment), terminals.* EXCLUDE (payment),
                later.fraud AS label, later.t + {DELAY_US} AS label_time
            FROM asked
            JOIN ({_view("paid", "customer", ("payments", "amount"))}) customers USING (payment)
            JOIN ({_view("known", "terminal", ("known", "risk"))}) terminals USING (payment)
            LEFT JOIN asked later ON later.payment = asked.payment
            ORDER BY asked.t, asked.payment
        ) TO '{target}' (FORMAT parquet)
        """
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
