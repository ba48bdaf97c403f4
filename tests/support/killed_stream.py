"""A program that continues the stream of a proof run, paced, until it is killed."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.proof_run import FakeScorer, configuration
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import infer
from tidemill.pipelines.stream_run import stream as module
from tidemill.pipelines.stream_run.stream import stream


def score_without_a_model() -> None:
    """Have the stream score without a model, in this process."""
    infer.Bundle.load = classmethod(lambda *_: None)  # type: ignore[assignment, method-assign]
    infer.shared_scorer = lambda _: FakeScorer()  # type: ignore[assignment, return-value]
    module.current_bundle = lambda _: Path("b1")


def main(folder: str, root: str, engine: str, resume: str, speed: str) -> None:
    """Run it.

    Args:
        folder: Where the sources are.
        root: The run's root.
        engine: ``fnapi`` or ``prism``.
        resume: ``resume`` to go on, anything else to start over.
        speed: How many times faster than real time.
    """
    score_without_a_model()
    config = configuration(Path(folder), Path(root))
    stream(
        config,
        QuietProgress(),
        engine=engine,
        speed=float(speed),
        resume=resume == "resume",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
