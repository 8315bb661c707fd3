"""Worker processes of plain torch.distributed that leave as cleanly as they came."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


@contextmanager
def gloo_group(number: int, size: int, folder: Path) -> Iterator[None]:
    """This process as worker `number` of a group of `size` that meets in `folder`."""
    meeting = f"file://{folder}/rendezvous-{size}"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=size)
    yield
    dist.barrier()  # none closes its connections while another still reads from them
    dist.destroy_process_group()


def run_workers(worker: Callable[..., None], args: tuple[Any, ...], size: int) -> None:
    """worker(number, *args) in `size` new processes; an exception in one of them is raised here."""
    mp.spawn(_until_done, (worker, args), nprocs=size)


def _until_done(number: int, worker: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    worker(number, *args)
    sys.stdout.flush()
    sys.stderr.flush()
    # DistributedDataParallel keeps its group's threads alive after destroy_process_group. One that lets go of a tensor
    # while the interpreter is shut down ends the process with SIGABRT (pytorch/pytorch pull request 179291).
    os._exit(0)
