"""What a job prints, as JSON lines: for a log collector, where nobody watches.

    RAY_LOGGING_CONFIG_ENCODING=JSON python jobs/pipeline.py --config configs/demo.yaml

It is Ray's own switch: with it the logs of Ray's workers are JSON, too, with the same `job_id`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from io import TextIOBase
from typing import TextIO

import ray

SWITCH = "RAY_LOGGING_CONFIG_ENCODING"
STAGE = re.compile(r"\[([\w./+:-]+)\] ")  # how a line of a stage begins


@contextmanager
def json_lines(run: str) -> Iterator[TextIO | TextIOBase]:
    """Within it standard output is JSON lines if the environment asks for them.

    Parameters
    ----------
    run
        Location of the run: `run` of each line.

    Yields
    ------
    TextIO or TextIOBase
        Where to write what ends the job. (Other lines on standard error are those of libraries.)
    """
    if os.environ.get(SWITCH, "").upper() != "JSON":
        yield sys.stderr
        return
    with redirect_stdout(JsonLines(sys.stdout, run, "INFO")):
        yield JsonLines(sys.stderr, run, "ERROR")


class JsonLines(TextIOBase):
    """A text stream that writes each line as a record: time, level, run, job_id, stage (None: of no stage), message."""

    def __init__(self, target: TextIO, run: str, level: str) -> None:
        self.target, self.run, self.level = target, run, level
        self._begun = threading.local()  # `print` writes a line and its end apart, and several threads print

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, rest = (getattr(self._begun, "line", "") + text).split("\n")
        self._begun.line = rest
        for line in filter(str.strip, lines):
            self.target.write(json.dumps(self.record(line), ensure_ascii=False) + "\n")
        return len(text)

    def record(self, line: str) -> dict[str, str | None]:
        stage = STAGE.match(line)
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": self.level,
            "run": self.run,
            "job_id": ray.get_runtime_context().get_job_id() if ray.is_initialized() else None,
            "stage": stage[1] if stage else None,
            "message": line[stage.end() :] if stage else line.rstrip(),
        }

    def flush(self) -> None:
        self.target.flush()

    def isatty(self) -> bool:
        return False
