"""The sawtooth features in polars: joins as of, prefix sums, and range maxima by doubling.

Events are sorted once by (card, time, id), so that a window is a run of rows. Joining as of the
request time and as of each window's tail finds the ends of the run; counts and sums are
differences of prefix sums within the card, the last value is carried forward, and extremes come
from maxima over 1, 2, 4, ... rows, of which any run is the union of two. Nothing depends on how
many events a window holds. Quantiles and distinct counts cannot be had that way: they list the
rows of each window.

What differs from the kernel: float sums are rounded at each step (within 1e-9 here); the quantile
is exact, not sketched.
"""

from __future__ import annotations

import warnings
from typing import Final

import polars as pl
import pyarrow as pa

from benchmarks.workload import HOP_US, LARGE, QUANTILE
from tidemill.features.contract import DAY, HOUR

_AMOUNT: Final = pl.col("amount")
_TIME: Final = pl.col("t")


class PolarsBackfill:
    """Events and requests as polars sees them, without copying."""

    def __init__(self, events: pa.Table, requests: pa.Table) -> None:
        warnings.filterwarnings("ignore", message="Sortedness of columns cannot be checked")
        self._events = pl.DataFrame(events)
        self._requests = pl.DataFrame(requests)

    def five(self) -> pa.Table:
        """Return the features of `workload.FIVE`, and ``request``: the row of each."""
        events, requests = self._sorted()
        heads = self._heads(events, requests)
        greatest = _Extremes(events["amount"])
        out = requests.select("request")
        for over, window_us in (("1h", HOUR), ("1d", DAY)):
            window = self._window(events, heads, window_us)
            out = out.with_columns(
                window["count"].alias(f"count_{over}"),
                window["sum"].alias(f"sum_{over}"),
                (window["sum"] / window["values"]).fill_nan(None).alias(f"mean_{over}"),
                greatest.over(window).alias(f"max_{over}"),
                window["last"].alias(f"last_{over}"),
            )
        return out.to_arrow()

    def twelve(self) -> pa.Table:
        """Return the features of `workload.TWELVE`, and ``request``: the row of each."""
        events, requests = self._sorted()
        present = _AMOUNT.is_not_null()
        # Squares of what is left of the amounts when the card's mean is taken out: the variance
        # is then no small difference of large numbers.
        centred = _AMOUNT - _AMOUNT.mean().over("card")
        events = events.with_columns(
            centred=centred.fill_null(0.0).cum_sum().over("card"),
            squares=(centred**2).fill_null(0.0).cum_sum().over("card"),
            n_large=(present & (_AMOUNT > LARGE)).cast(pl.Int64).cum_sum().over("card"),
        )
        heads = self._heads(events, requests)
        hour = self._window(events, heads, HOUR)
        six = self._window(events, heads, 6 * HOUR, "n_large")
        day = self._window(events, heads, DAY, "centred", "squares")
        n = day["values"]
        spread = day["squares"] - day["centred"] ** 2 / n
        negated = _Extremes(-events["amount"])
        listed = self._listed(events, day)
        out = requests.select("request").with_columns(
            hour["count"].alias("count_1h"),
            day["count"].alias("count_1d"),
            six["sum"].alias("sum_6h"),
            (hour["sum"] / hour["values"]).fill_nan(None).alias("mean_1h"),
            (day["sum"] / n).fill_nan(None).alias("mean_1d"),
            (spread / (n - 1)).set(n < 2, None).alias("variance_1d"),
            (-negated.over(six)).alias("min_6h"),
            _Extremes(events["amount"]).over(day).alias("max_1d"),
            day["last"].alias("last_1d"),
            (six["n_large"] / six["values"]).fill_nan(None).alias("rate_6h"),
        )
        out = out.join(listed, on="request", how="left")
        return out.with_columns(pl.col("distinct_1d").fill_null(0)).to_arrow()

    def _sorted(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return events with their running values per card, and requests; both sorted."""
        # Both sides' cards as numbers: text is compared once.
        card = pl.col("card").cast(pl.Categorical)
        events = self._events.select(
            "payment_id", card, pl.col("paid_at").cast(pl.Int64).alias("t"), "amount", "shop"
        ).sort("card", "t", "payment_id")
        present = _AMOUNT.is_not_null()
        events = events.with_columns(
            row=pl.int_range(pl.len()),
            n=pl.int_range(1, pl.len() + 1).over("card"),
            n_values=present.cast(pl.Int64).cum_sum().over("card"),
            sums=_AMOUNT.fill_null(0.0).cum_sum().over("card"),
            last_value=_AMOUNT.forward_fill().over("card"),
            last_time=pl.when(present).then(_TIME).forward_fill().over("card"),
        )
        requests = (
            self._requests.select(card, pl.col("asked_at").cast(pl.Int64).alias("t"))
            .with_row_index("request")
            .sort("card", "t")
        )
        return events, requests

    @staticmethod
    def _heads(events: pl.DataFrame, requests: pl.DataFrame) -> pl.DataFrame:
        """Join to each request the last event before it."""
        return requests.join_asof(
            events.drop("payment_id", "shop", "amount"),
            on="t",
            by="card",
            strategy="backward",
            allow_exact_matches=False,
        )

    @staticmethod
    def _window(
        events: pl.DataFrame, heads: pl.DataFrame, window_us: int, *more: str
    ) -> pl.DataFrame:
        """Return per request what lies in its window: values, and the run of rows.

        Args:
            events: From `_sorted`.
            heads: From `_heads`.
            window_us: The window.
            more: Further running columns to take the difference of.
        """
        running = ("n", "n_values", "sums", *more)
        tails = heads.with_columns(tail=(_TIME - window_us) // HOP_US * HOP_US).join_asof(
            events.select("card", "t", *running),
            left_on="tail",
            right_on="t",
            by="card",
            strategy="backward",
            allow_exact_matches=False,
            suffix="_before",
        )

        def within(name: str) -> pl.Expr:
            return pl.col(name).fill_null(0) - pl.col(f"{name}_before").fill_null(0)

        values = within("n_values")
        return tails.select(
            "request",
            "row",
            count=within("n"),
            values=values,
            # A difference of running sums is not quite 0 where nothing lies between them.
            sum=pl.when(values > 0).then(within("sums")).otherwise(0.0),
            last=pl.when(pl.col("last_time") >= pl.col("tail")).then("last_value"),
            **{name: within(name) for name in more},
        )

    @staticmethod
    def _listed(events: pl.DataFrame, window: pl.DataFrame) -> pl.DataFrame:
        """Return quantile and distinct count, from the list of each window's rows."""
        rows = (
            window.filter(pl.col("count") > 0)
            .select(
                "request",
                row=pl.int_ranges(pl.col("row") - pl.col("count") + 1, pl.col("row") + 1),
            )
            .explode("row")
        )
        shops = events["shop"].cast(pl.Categorical).to_physical()
        rows = rows.select(
            "request",
            amount=events["amount"].gather(rows["row"]),
            shop=shops.gather(rows["row"]),
        )
        return rows.group_by("request").agg(
            quantile_1d=_AMOUNT.quantile(QUANTILE, interpolation="lower"),
            distinct_1d=pl.col("shop").n_unique().cast(pl.Int64),
        )


class _Extremes:
    """Maxima over runs of rows: level k holds the maximum over the 2**k rows up to each row."""

    def __init__(self, values: pl.Series) -> None:
        self._levels = [values]

    def over(self, window: pl.DataFrame) -> pl.Series:
        """Return the maximum over each window's run; null where it holds no value."""
        longest = int(window["count"].max() or 0)  # type: ignore[arg-type]
        while 1 << len(self._levels) <= longest:
            last = self._levels[-1]
            shifted = last.shift(1 << (len(self._levels) - 1))
            self._levels.append(_greater(last, shifted))
        flat = pl.concat(self._levels)
        # The greatest power of two in the count; counts are far too small for the log to err by
        # more than the added epsilon.
        level = (window["count"].cast(pl.Float64).log(2.0) + 1e-9).floor()
        level = level.set(window["count"] == 0, None).cast(pl.Int64)
        newest = level * len(self._levels[0]) + window["row"]
        span = pl.Series([1 << k for k in range(len(self._levels))], dtype=pl.Int64).gather(level)
        return _greater(flat.gather(newest), flat.gather(newest - window["count"] + span))


def _greater(a: pl.Series, b: pl.Series) -> pl.Series:
    return pl.select(pl.max_horizontal(a, b)).to_series()
