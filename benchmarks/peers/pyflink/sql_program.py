"""The job in PyFlink's Table API: three windows over each card's rows, all of it in Java.

Requests are rows without an amount, which are told apart when all windows are computed. Flink
computes one window in a query, so there are three, one within the other. ``CURRENT ROW`` includes
what has the same time, so a request's time is moved back by a millisecond.
"""

from __future__ import annotations

from flink_settings import settings
from point_in_time import DISORDER_MS, WINDOWS_MS, job
from pyflink.table import EnvironmentSettings, TableEnvironment

JOB = job()


def table(name: str, columns: str, topic: str) -> str:
    """Return the statement that makes a table of a topic."""
    return f"""
        CREATE TABLE {name} ({columns}) WITH (
            'connector' = 'kafka', 'topic' = '{topic}', 'format' = 'json',
            'properties.bootstrap.servers' = '{JOB.bootstrap}',
            'properties.group.id' = 'flink-{topic}', 'scan.startup.mode' = 'earliest-offset',
            'json.timestamp-format.standard' = 'ISO-8601', 'properties.linger.ms' = '2'
        )"""


def clock(millis: int) -> str:
    """Write a length of time of less than a day: ``00:09:59.999``."""
    minutes, rest = divmod(millis, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1_000:02}.{rest % 1_000:03}"


def main() -> None:
    """Run the job in Flink's local cluster."""
    env = TableEnvironment.create(
        EnvironmentSettings.new_instance()
        .in_streaming_mode()
        .with_configuration(settings(JOB, {"parallelism.default": str(JOB.parallelism)}))
        .build()
    )
    late = f"INTERVAL '{DISORDER_MS // 1_000}' SECOND"
    time = "TIMESTAMP_LTZ(3)"
    env.execute_sql(
        table(
            "payments",
            f"card STRING, amount DOUBLE, paid_at {time}, "
            f"WATERMARK FOR paid_at AS paid_at - {late}",
            JOB.payments,
        )
    )
    env.execute_sql(
        table(
            "requests",
            f"request STRING, card STRING, asked_at {time}, "
            "before AS asked_at - INTERVAL '0.001' SECOND, "
            f"WATERMARK FOR before AS before - {late}",
            JOB.requests,
        )
    )
    kinds = {"count": "BIGINT", "sum": "DOUBLE", "mean": "DOUBLE", "max": "DOUBLE"}
    names = [f"{what}_{window}" for window in WINDOWS_MS for what in kinds]
    columns = ", ".join(f"{name} {kinds[name.split('_')[0]]}" for name in names)
    env.execute_sql(table("answers", f"request STRING, {columns}", JOB.answers))
    query = """
        SELECT CAST(NULL AS STRING) AS request, card, amount, paid_at AS moment FROM payments
        UNION ALL SELECT request, card, CAST(NULL AS DOUBLE), before FROM requests"""
    for name, millis in WINDOWS_MS.items():
        length = f"INTERVAL '{clock(millis - 1)}' HOUR TO SECOND(3)"
        query = f"""
            SELECT *, COUNT(amount) OVER w AS count_{name}, SUM(amount) OVER w AS sum_{name},
                AVG(amount) OVER w AS mean_{name}, MAX(amount) OVER w AS max_{name}
            FROM ({query}) WINDOW w AS (
                PARTITION BY card ORDER BY moment
                RANGE BETWEEN {length} PRECEDING AND CURRENT ROW)"""
    env.execute_sql(
        f"INSERT INTO answers SELECT request, {', '.join(names)} FROM ({query}) "
        "WHERE request IS NOT NULL"
    ).wait()


if __name__ == "__main__":
    main()
