"""Kill the processes of a live stream on Flink, one after the other, just before it is still.

    python -m benchmarks.flink_faults                         # 20 faults, parallelism 1
    python -m benchmarks.flink_faults --parallelism 2 --count 20

Before each fault the producer stops, so that the last requests are among those that the stream
answers after it. The table says how long that took; the last line, what `verify` has proven, and
what a reader of committed messages has seen. The exit status is 1 if a value differs, a prediction
was lost or doubled, or if the stream ended by itself.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import said
from tests.support.fault_run import KILL, PAUSE, RATE, STREAM, Fault, FaultRun
from tests.support.flink_cluster import (
    JOB_MANAGER,
    JOB_SERVER,
    TASK_MANAGER,
    WORKER,
    WORKER_POOL,
    TestCluster,
)

_HEAD = "fault  victim       requests  last one answered (s)  later ones (s)"
VICTIMS = {
    "worker": WORKER,
    "taskmanager": TASK_MANAGER,
    "jobmanager": JOB_MANAGER,
    "program": STREAM,
    "pool": WORKER_POOL,
    "jobserver": JOB_SERVER,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults, and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flink_faults", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="how many faults")
    parser.add_argument("--parallelism", type=int, default=1, help="how many workers")
    parser.add_argument("--rate", type=float, default=RATE, help="messages a second")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of SIGSTOP instead")
    parser.add_argument(
        "--victims", nargs="+", choices=list(VICTIMS), default=["worker", "taskmanager", "program",
        "jobmanager"], help="in turn",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidemill-flink-") as place:
        folder = Path(place)
        cluster = TestCluster(folder / "cluster")
        try:
            cluster.start()
            run = FaultRun(folder / "run", print, given.rate, cluster, given.parallelism)
            with run.running():
                print(
                    "fault  victim       requests  last one answered (s)  later ones (s)",
                    flush=True,
                )
                victims = itertools.islice(itertools.cycle(given.victims), given.count)
                for number, victim in enumerate(victims, 1):
                    how = PAUSE if given.pause else KILL
                    fault = Fault(VICTIMS[victim], how, given.pause, after_s=3.0)
                    last, later = run.suffer_at_the_end(fault)
                    asked = run.producer.requests
                    shown = f"{number:>5}  {victim:<11}  {asked:>8,}  {last:>21.1f}  {later:>14.1f}"
                    print(shown, flush=True)
                verdict = run.finish()
        finally:
            cluster.close()
    print(said(verdict, given.count, (time.monotonic() - began) / 60, 0))
    return int(bool(verdict.lost or verdict.doubled or verdict.ended_by_itself))


if __name__ == "__main__":
    sys.exit(main())
