"""Settings of training, search, evaluation and export."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm4sbr_ray.config.section import Section


class TrainConfig(Section):
    models: tuple[str, ...] = ("popularity", "sknn", "srgnn", "srgnn+llm4sbr")
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = Field(default=2, ge=0)  # Ray Train workers; 0 runs the loop in this process
    min_workers: int | None = Field(default=None, ge=1)  # elastic: as many as fit, at least these; None: all of them
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, ge=0)
    shard_items: bool = False  # each worker holds a part of the items' vectors and texts, not all of them
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=3, ge=1)  # epochs without a better validation score before stopping
    batch_size: int = Field(default=512, ge=1)  # over all workers
    accumulate: int = Field(default=1, ge=1)  # parts that a worker computes its share of a batch in: less memory
    random_prefixes: float = Field(default=0.0, ge=0, le=1)  # share of an epoch's samples read to a random click only
    learning_rate: float = Field(default=2e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # the last two end at 0, after `epochs`
    warm_up: float = Field(default=0.0, ge=0, lt=1)  # share of all updates in which the learning rate climbs
    weight_decay: float = Field(default=1e-5, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network's products; scores and losses: float32
    loss: Literal["auto", "full", "sampled", "gbce"] = "auto"  # softmax over all items, over a sample; or binary
    sampled_above: int = Field(default=200_000, ge=0)  # auto: full softmax up to so many items, sampled above
    negatives: int = Field(default=4096, ge=1)  # items drawn for a batch, when not full
    negatives_by: Literal["uniform", "popularity"] = "uniform"
    gbce_t: float = Field(default=0.75, ge=0, le=1)  # calibration of gbce: 0 is plain binary cross-entropy
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # of full softmax
    select_by: Literal["recall@20", "mrr@20", "ndcg@20"] = "mrr@20"  # validation metric that picks the epoch
    rank_seen: bool = True  # validate with the session's own items in the ranking; false: without, as served by default
    max_failures: int = Field(default=2, ge=0)

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("name at least one seed")
        return seeds

    @model_validator(mode="after")
    def _workers_agree(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}: workers is the most")
        if self.shard_items and self.accumulate > 1:
            raise ValueError("shard_items needs all workers in every part of a batch: leave accumulate at 1")
        if self.shard_items and not self.rank_seen:
            raise ValueError("shard_items validates with all items ranked: leave rank_seen at true")
        return self

    @model_validator(mode="after")
    def _loss_settings_agree(self) -> TrainConfig:
        if self.loss == "gbce" and self.negatives_by == "popularity":
            raise ValueError("loss gbce draws negatives uniformly: leave negatives_by at uniform")
        if self.loss in ("sampled", "gbce") and self.label_smoothing:
            raise ValueError(f"label_smoothing is for full softmax, not for loss {self.loss}")
        return self


class TuneConfig(Section):
    """A search over settings (jobs/tune.py); it maximises `train.select_by` on validation data, for the first seed."""

    space: str | None = None  # YAML file of a search space, or a folder of them: <model or backbone>.yaml
    models: tuple[str, ...] = ()  # each gets the same budget; (): those of train.models that the space is for
    trials: int = Field(default=20, ge=1)
    concurrent: int = Field(default=2, ge=1)  # trials at a time; they share the cores of a machine
    workers: int = Field(default=0, ge=0)  # Ray Train workers of a trial; 0: in the trial's own process, no start-up
    grace_epochs: int = Field(default=3, ge=1)  # ASHA stops no trial before
    reduction_factor: int = Field(default=3, ge=2)  # ASHA lets one trial of so many go on
    max_minutes: float | None = Field(default=None, gt=0)  # of one model's search: what runs then is stopped


class EvaluateConfig(Section):
    batch_size: int = Field(default=512, ge=1)
    example_sessions: int = Field(default=6, ge=0)  # shown in the report


class ExportConfig(Section):
    model: str | None = None  # None: the first model with "+llm4sbr", by its first seed
