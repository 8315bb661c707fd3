"""What every file in jobs/ does around its one call: read the config, connect, report errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import load_config
from llm4sbr_ray.errors import UserError


def main(body: Callable[[Run], object], argv: Sequence[str] | None = None) -> int:
    """Run `body` on the run that the command line names.

    Returns
    -------
    int
        Exit status: 0; 2 with one clear line on stderr for a bad config or bad input.
    """
    try:
        config = load_config(argv)
        run = Run(config)
        print(f"run: {run.uri()}", flush=True)
        connect(config.cluster)
        body(run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0
