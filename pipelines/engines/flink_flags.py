"""Whether Beam and its job server know a user's flags: Beam itself logs those that it ignores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from tidemill.features.errors import ClusterUnreachable, WrongBeamFlag, nearest

_ANSWER_S: Final = 30.0


def check_flags(job_server: str, flags: Sequence[str]) -> None:
    """Check that each flag is one of Beam's Python, or of the job server.

    Args:
        job_server: ``HOST:PORT`` of the job server, which is asked.
        flags: The flags, such as ``--object_reuse`` and ``--max_bundle_size=10``.

    Raises:
        WrongBeamFlag: Neither knows a flag.
        ClusterUnreachable: The job server does not answer.
    """
    if not flags:
        return
    known = {*flags_of_python(), *_of_server(job_server)}
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if name not in known:
            raise WrongBeamFlag(
                f"neither Beam nor its job server at {job_server} knows --{name}: "
                f"{nearest(name, known)}"
            )


def flags_of_python() -> set[str]:
    """Return the names of the flags that Beam's Python knows."""
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    return {word.removeprefix("--") for action in parser._actions for word in action.option_strings}


def _of_server(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        try:
            answer = service.DescribePipelineOptions(request, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            raise ClusterUnreachable(
                f"the job server at {address} does not say which flags it takes: {error}"
            ) from error
    return {option.name for option in answer.options}
