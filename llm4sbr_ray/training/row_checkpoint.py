"""The checkpoint of a training whose item table is spread over its workers: each writes the rows that it holds.

Beside `CHECKPOINT_FILE`, with everything that all workers have alike, stands a file a worker. Any number of workers can
go on from them: each reads the rows that it is to hold.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from llm4sbr_ray.training.checkpoint import CHECKPOINT_FILE, Checkpoint, Tensors, from_bytes, to_bytes

TABLE = "backbone.item_embedding.weight"
ROW_FILES = "items-{:05d}.safetensors"  # by rank: in the order of the rows


def write_checkpoint(checkpoint: Checkpoint, folder: Path, rank: int, sharded: bool) -> bool:
    """Write this worker's part into a folder; returns whether it had one.

    Parameters
    ----------
    checkpoint
        With this worker's rows where they are sharded.
    folder
        Exists.
    rank
        Of this worker.
    sharded
        Whether the workers hold different rows.
    """
    if not sharded:
        if rank == 0:
            (folder / CHECKPOINT_FILE).write_bytes(to_bytes(checkpoint))
        return rank == 0
    alike, rows = _split(checkpoint)
    (folder / ROW_FILES.format(rank)).write_bytes(to_bytes(rows))
    if rank == 0:
        (folder / CHECKPOINT_FILE).write_bytes(to_bytes(alike))
    return True


def read_checkpoint(folder: Path, own: slice | None = None) -> Checkpoint:
    """The reverse of `write_checkpoint` on all workers.

    Parameters
    ----------
    folder
        With the files of all workers, however many there were.
    own
        The rows of the item table to read; None: all.
    """
    found = from_bytes((folder / CHECKPOINT_FILE).read_bytes())
    groups = {"last": found.last, "best": found.best, "optimizer": found.optimizer}
    parts: dict[str, list[torch.Tensor]] = {}
    first = 0
    for path in sorted(folder.glob(ROW_FILES.replace("{:05d}", "*"))):
        with safe_open(path, framework="pt") as rows:
            keys = list(rows.keys())
            sizes = {rows.get_slice(key).get_shape()[0] for key in keys}
            (size,) = sizes
            begin, end = (0, size) if own is None else (max(0, own.start - first), min(size, own.stop - first))
            if begin < end:
                for key in keys:
                    parts.setdefault(key, []).append(rows.get_slice(key)[begin:end])
            first += size
    for key, tensors in parts.items():
        group, _, name = key.partition("/")
        groups[group][name] = torch.cat(tensors)
    return found


def _split(checkpoint: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """What all workers have alike, and the rows of this one."""
    alike, rows = (Checkpoint(checkpoint.counters, {}, {}, {}) for _ in range(2))
    for group in ("last", "best", "optimizer"):
        tensors: Tensors = getattr(checkpoint, group)
        for name, value in tensors.items():
            is_rows = name == TABLE or (name.startswith(f"{TABLE}.") and value.ndim)  # its optimizer counts steps too
            getattr(rows if is_rows else alike, group)[name] = value
    return alike, rows
