"""A program that runs an endless step on Prism, prints Prism's process id, and ends as asked."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from tidemill.pipelines.engines.choosing import find_prism
from tidemill.pipelines.engines.prism import OwnedPrismRunner


def go_on(sign: str) -> None:
    Path(sign).touch()
    while True:
        time.sleep(0.1)


def main(ending: str, sign: str) -> None:
    """Run until a signal comes or, where the program ends itself, a line on its standard input.

    Args:
        ending: ``os._exit``, ``sys.exit``, or anything else to wait for a signal.
        sign: A file that the step creates when it runs. A Prism whose program dies before that
            panics by itself; the one that outlives its program is the one with a running job.
    """
    # A shell's background job ignores SIGINT, and so would the processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pipeline = beam.Pipeline(runner=OwnedPrismRunner(find_prism()), options=PipelineOptions([]))
    pipeline | beam.Create([sign]) | beam.Map(go_on)
    result = pipeline.run()
    while not Path(sign).exists():
        time.sleep(0.02)
    print(result.prism_pid, flush=True)
    if ending in ("os._exit", "sys.exit"):
        sys.stdin.readline()
    if ending == "os._exit":
        os._exit(1)
    if ending == "sys.exit":
        sys.exit(1)
    result.wait_until_finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
