"""Kill and pause stream, broker and Redis at random, and prove what comes out.

    make faults                              # 30 faults, at most 20 minutes
    make faults ARGS="--count 5 --seed 7"    # the faults of a seed again
    make faults ARGS="--rate 800 --predictions 200000"    # and more until there are so many

The last line says what `verify` has proven and what a reader of committed messages has seen. The
exit status is 1 if a value differs, a prediction was lost or doubled, or if the stream ended by
itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.fault_run import RATE, FaultRun, Verdict, random_faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults, and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="how many faults")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no fault begins")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds of the longest pause")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--rate", type=float, default=RATE, help="messages a second")
    parser.add_argument(
        "--predictions", type=int, default=0, help="faults go on until so many are asked for"
    )
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}", flush=True)
    began, done = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-faults-") as folder,
        FaultRun(Path(folder), lambda text: print(text, flush=True), given.rate).running() as run,
    ):
        for fault in random_faults(seed=given.seed, longest_s=given.longest):
            if done >= given.count and run.producer.requests >= given.predictions:
                break
            if time.monotonic() - began > given.minutes * 60:
                print(f"{given.minutes:g} minutes are over", flush=True)
                break
            run.suffer(fault)
            done += 1
        verdict = run.finish()
    minutes = (time.monotonic() - began) / 60
    print(said(verdict, done, minutes, given.seed))
    return int(bool(verdict.lost or verdict.doubled or verdict.ended_by_itself))


def said(verdict: Verdict, faults: int, minutes: float, seed: int) -> str:
    """Return what was proven, as lines."""
    lines = [f"--- the stream ended by itself ---\n{log}" for log in verdict.ended_by_itself]
    if verdict.noticed_s:
        shown = ", ".join(f"{seconds:.2f}" for seconds in sorted(verdict.noticed_s))
        lines.append(f"a broker that came back was noticed after (seconds): {shown}")
    lines.append(
        f"{faults} faults in {minutes:.1f} minutes, seed {seed}: 0 mismatches in "
        f"{verdict.values:,} values; of {verdict.requests:,} requests {verdict.rejected:,} "
        f"rejected, {verdict.lost} lost, {verdict.doubled} doubled; the stream ended "
        f"{len(verdict.ended_by_itself)} times by itself"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
