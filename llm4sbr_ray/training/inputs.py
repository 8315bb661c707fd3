"""Which samples a model learns from, and how they are read without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.build import is_llm4sbr, reads_texts
from llm4sbr_ray.training.batches import INTENT_COLUMNS, SAMPLE_COLUMNS, Samples, samples_from_table
from llm4sbr_ray.training.load import count_items
from llm4sbr_ray.training.mapped import map_samples

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Source:
    """The samples of one split as a model wants them."""

    folder: str  # relative to the run
    n_items: int
    max_length: int
    perspectives: int  # 0: without intents

    def columns(self) -> list[str]:
        return [*SAMPLE_COLUMNS, *(INTENT_COLUMNS if self.perspectives else [])]

    def samples(self, table: pa.Table) -> Samples:
        return samples_from_table(table, self.n_items, self.max_length, self.perspectives)


def stages_before(model: str) -> list[str]:
    """The stages whose results a model is trained from: "+text" needs the item texts, and no answer of an LLM."""
    if is_llm4sbr(model):
        return ["ingest", "intents"]
    return ["ingest", "text"] if reads_texts(model) else ["ingest"]


def source(run: Run, model: str, split: Split) -> Source:
    """Samples with intents for a "+llm4sbr" model where the LLM was asked about this split, plain ones else.

    Raises
    ------
    UserError
        A "+llm4sbr" model would have to be trained without intents.
    """
    config = run.config
    asked = split in config.perspectives.splits
    if is_llm4sbr(model) and split == "train" and not asked:
        raise UserError(f"perspectives.splits: {model!r} learns from LLM intents, so 'train' must be among them")
    with_intents = is_llm4sbr(model) and asked
    return Source(
        f"intents/samples/{split}" if with_intents else f"data/{split}",
        count_items(run),
        config.model.max_length,
        len(config.perspectives.views) if with_intents else 0,
    )


def read_samples(run: Run, source: Source) -> Samples:
    """All samples of a split, read file by file."""
    tables = (run.read_table(file, columns=source.columns()) for file in parquet_files(run, source.folder))
    return map_samples(source.samples(table) for table in tables)


def parquet_files(run: Run, folder: str) -> list[str]:
    """Paths relative to the run, in the order of the rows."""
    return [path.removeprefix(run.root + "/") for path in run.files(folder, suffix=".parquet")]


def require_samples(n_train: int, n_valid: int) -> None:
    """Refuse splits that are too small to train on.

    Raises
    ------
    UserError
        No validation sample, or no train sample.
    """
    if n_valid == 0:
        raise UserError("data/valid: no validation samples to pick the epoch by: raise data.split.valid_fraction")
    if n_train == 0:
        raise UserError("data/train: no train samples: lower data.split.valid_fraction or data.split.test_fraction")
