"""What every file in jobs/ does around its one call: read the config, connect, report errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.lock import exclusive


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
        config = load_config(argv)
        run = Run(config)
        print(f"run: {run.uri()}", flush=True)
        with exclusive(run) if writes else nullcontext():
            connect(config.cluster)
            body(run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0
