"""Lines from a worker to the terminal of whoever started the run."""

from __future__ import annotations

import threading
from types import TracebackType

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Relay:
    """Prints what workers put on `queue`, while the driver waits for them.

    Ray's own forwarding of worker output is all or nothing, and most of it is not ours.
    """

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # lost with no other machine
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.queue.put("")  # the end: everything put before it gets printed
        self._thread.join()
        self.queue.shutdown()

    def _print(self) -> None:
        while line := self.queue.get():
            print(line, flush=True)
