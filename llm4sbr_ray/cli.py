"""What every file in jobs/ does around its one call: read the config, connect, report errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from llm4sbr_ray import tracking
from llm4sbr_ray.artifacts import Facts, Run
from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.lock import exclusive
from llm4sbr_ray.logs import json_lines
from llm4sbr_ray.metrics import count_stage


def main(body: Callable[[Run], object], argv: Sequence[str] | None = None, writes: bool = True) -> int:
    """Run `body` on the run that the command line names.

    Parameters
    ----------
    body
        Does the work.
    argv
        Command line; None: this process's.
    writes
        Whether `body` writes to the run: then it is refused while another driver does.

    Returns
    -------
    int
        Exit status: 0; 2 with one clear line on stderr for a bad config or bad input.
    """
    try:
        run = Run(load_config(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    with json_lines(run.uri()) as errors:
        try:
            print(f"run: {run.uri()}", flush=True)
            with exclusive(run) if writes else nullcontext():
                _work(run, body)
        except UserError as error:
            print(f"error: {error}", file=errors, flush=True)
            return 2
    return 0


def _work(run: Run, body: Callable[[Run], object]) -> None:
    tracked = run.config.tracking.mlflow
    if tracked:
        tracking.require_mlflow()
    connect(run.config.cluster)

    def on_commit(stage: str, entry: Facts) -> None:
        count_stage(stage, entry["rows"], entry["seconds"])
        if tracked:
            tracking.send(run)

    run.on_commit = on_commit
    if tracked:
        tracking.send(run)  # what an earlier call has committed
    body(run)
