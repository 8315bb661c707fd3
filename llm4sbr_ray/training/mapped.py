"""Samples on the local disk, mapped into memory: a process holds what its batches read, however many samples there are.

The files have no name once they are mapped: the system frees them when the process ends, however it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from llm4sbr_ray.errors import StorageError
from llm4sbr_ray.models.base import Intents
from llm4sbr_ray.training.batches import Samples


def map_samples(parts: Iterable[Samples]) -> Samples:
    """`join_samples` of parts that come one by one and are kept in files of the temporary folder; at least one part.

    Raises
    ------
    StorageError
        The temporary folder refuses them.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="llm4sbr-samples-") as folder:
            return _through_files(parts, Path(folder))
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError.of(f"the folder for temporary files (TMPDIR), {tempfile.gettempdir()},", error) from error


class _Rows:
    """A tensor that grows by rows, in a file."""

    def __init__(self, path: Path, like: Tensor) -> None:
        self._path, self._like, self._values = path, like, 0
        self._file = path.open("wb")

    def append(self, rows: Tensor) -> None:
        self._values += rows.numel()
        rows.numpy().tofile(self._file)

    def map(self) -> Tensor:
        self._file.close()
        values = torch.from_file(str(self._path), shared=False, size=self._values, dtype=self._like.dtype)
        return values.view(-1, *self._like.shape[1:])


def _through_files(parts: Iterable[Samples], folder: Path) -> Samples:
    parts = iter(parts)
    first = next(parts)
    for part in parts:
        if len(first):
            parts = chain([part], parts)
            break
        first = part  # an empty part does not know how many items an answer was localised to
    if not len(first):
        return first
    rows = {name: _Rows(folder / name, value) for name, value in _tensors(first).items()}
    key_file, clicks = folder / "keys", 0
    rows["offset"].append(torch.zeros(1, dtype=torch.int64))
    with pa.OSFile(str(key_file), "wb") as sink, pa.ipc.new_stream(sink, pa.schema({"key": pa.string()})) as keys:
        for part in chain([first], parts):
            for name, value in _tensors(part).items():
                rows[name].append(value[1:] + clicks if name == "offset" else value)
            keys.write_table(pa.Table.from_arrays([part.keys_N], ["key"]))
            clicks += len(part.items_C)
    mapped = {name: file.map() for name, file in rows.items()}
    intents = None
    if first.intents is not None:
        intents = Intents(mapped["intent_item"], mapped["intent_weight"], mapped["grounded"])
    return replace(
        first,
        items_C=mapped["items"],
        offset_N1=mapped["offset"],
        target_N=mapped["target"],
        keys_N=pa.ipc.open_stream(pa.memory_map(str(key_file))).read_all()["key"],
        intents=intents,
    )


def _tensors(samples: Samples) -> dict[str, Tensor]:
    tensors = {"items": samples.items_C, "offset": samples.offset_N1, "target": samples.target_N}
    if samples.intents is not None:
        tensors["intent_item"] = samples.intents.item_BPR
        tensors["intent_weight"] = samples.intents.weight_BPR
        tensors["grounded"] = samples.intents.grounded_BP
    return tensors
