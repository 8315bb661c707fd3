"""Progress lines of the LLM stage, from the blocks that are committed: true for any number of nodes."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store


class Progress:
    """Print every `every_s` seconds how many of `total` rows have their key under `done`."""

    def __init__(self, done: Store, total: int, label: str, every_s: float = 15.0) -> None:
        self.done, self.total, self.label, self.every_s = done, total, label, every_s
        self._rows: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def committed(self) -> int:
        """Rows whose block is written and committed."""
        for path in self.done.files(suffix=".parquet"):
            if path not in self._rows and "pending" not in path.rsplit("/", 1)[-1]:
                self._rows[path] = pq.read_metadata(path, filesystem=self.done.fs).num_rows
        return sum(self._rows.values())

    def _watch(self) -> None:
        began, first = time.monotonic(), self.committed()
        last = -1
        while not self._stop.wait(self.every_s):
            rows = self.committed()
            if rows != last:
                rate = (rows - first) / (time.monotonic() - began)
                print(f"[{self.label}] {rows:,} of {self.total:,} answered, {rate:,.0f} rows/s", flush=True)
            last = rows
