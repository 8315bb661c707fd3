"""The training loop: plain torch, the same code alone and on each worker of a group.

    best = train_model(model, train, valid, config.train, seed=0).best

All workers shuffle all samples alike, by seed and epoch, and each takes its share of every batch: the batches are the
same for any number of workers, which may change between two tries. Dropout follows from seed, epoch and rank, so a
training that goes on from a checkpoint ends with the same weights as one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from llm4sbr_ray.config import TrainConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.checkpoint import Checkpoint, Counters, Record
from llm4sbr_ray.training.loss import set_loss
from llm4sbr_ray.training.optimizer import AdamOfBoth
from llm4sbr_ray.training.precision import set_precision
from llm4sbr_ray.training.prefixes import random_prefixes
from llm4sbr_ray.training.schedule import learning_rate
from llm4sbr_ray.training.validation import valid_score, validate
from llm4sbr_ray.training.workers import gather_text, own_share, rank, sum_over_workers, world_size

SHOWN_KEYS = 3
NON_FINITE = "non-finite.json"  # the sample keys of the batch that a training ended with, beside its checkpoints


class NonFiniteLossError(UserError):
    """The loss or its gradient is NaN or infinite. Raised by all workers in the same step.

    `keys` are the samples of this worker's batch; none where another worker's loss is to blame.
    """

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class TrainingStep(nn.Module):
    """A module whose forward is the loss: what DistributedDataParallel wraps."""

    def __init__(self, model: LLM4SBR | PlainRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: SessionBatch, target_B: Tensor) -> dict[str, Tensor]:
        return self.model.loss(batch, target_B)


def train_model(
    model: LLM4SBR | PlainRecommender,
    train: Samples,
    valid: Samples,
    config: TrainConfig,
    seed: int,
    *,
    resume: Checkpoint | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    on_epoch: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Checkpoint:
    """Adam on the model's loss, until `config.epochs` or `config.patience` epochs without a better score.

    The score is the validation metric `config.select_by`; of LLM4SBR the mean of the metric with LLM intents
    and LLM-free.

    Parameters
    ----------
    model
        On the device of the samples. Trained in place.
    train, valid
        All samples, the same on every worker.
    config
        `batch_size` is over all workers.
    seed
        Of the order and of dropout. The initial weights are the caller's.
    resume
        Go on from here.
    wrap
        Makes the loss module distributed.
    on_epoch
        Called on every worker after each epoch, with tensors that the next epoch overwrites.

    Returns
    -------
    Checkpoint
        `best` holds the weights to keep, `counters.history` a record an epoch.

    Raises
    ------
    NonFiniteLossError
        Names the epoch and the first sample keys of the batch.
    """
    set_loss(model, config, train.n_items, train.target_N)
    set_precision(model, config.precision)
    step_module = wrap(TrainingStep(model))
    optimizer = AdamOfBoth(model, config)
    counters, best = Counters(), _weights(model)
    if resume is not None:
        counters, best = resume.counters, resume.best
        model.load_state_dict(resume.last)
        optimizer.restore(resume.optimizer)
    while counters.epoch < config.epochs and counters.stale() < config.patience:
        epoch = counters.epoch + 1
        record: Record = {"epoch": epoch, **_train_epoch(step_module, optimizer, train, config, seed, epoch)}
        began = time.perf_counter()
        record |= validate(model, valid, config.batch_size, config.rank_seen)
        record["valid_score"] = valid_score(record, config.select_by)
        record["valid_seconds"] = round(time.perf_counter() - began, 3)
        counters.epoch = epoch
        counters.history.append(record)
        if record["valid_score"] > counters.best_score:
            counters.best_epoch, counters.best_score = epoch, record["valid_score"]
            best = _weights(model)
        on_epoch(Checkpoint(counters, model.state_dict(), best, optimizer.tensors()))
    return Checkpoint(counters, model.state_dict(), best, optimizer.tensors())


def _train_epoch(
    step_module: nn.Module,
    optimizer: AdamOfBoth,
    samples: Samples,
    config: TrainConfig,
    seed: int,
    epoch: int,
) -> Record:
    """One pass over the samples: mean loss parts, "samples", "workers", "seconds", "samples_per_second"."""
    began = time.perf_counter()
    batches = epoch_order(len(samples), seed, epoch).to(samples.target_N.device).split(config.batch_size)
    share = config.random_prefixes
    clicks_N = random_prefixes(samples, share, _mix(seed, epoch, 0)) if share else None
    step_module.train()
    sums: dict[str, Tensor] = {}
    for number, all_rows_B in enumerate(batches, start=(epoch - 1) * len(batches)):
        optimizer.zero_grad()
        rows_B, weight = _own_rows(all_rows_B)
        losses = _gradients(step_module, samples, rows_B, config.accumulate, weight, clicks_N)
        norm = optimizer.clip()
        if not torch.isfinite(norm):  # gradients are averaged over workers: all of them see it in the same step
            raise _non_finite(samples, rows_B, losses["total"], epoch)
        optimizer.step(learning_rate(config, number, config.epochs * len(batches)))
        for name, value in losses.items():
            sums[name] = sums[name] + value if name in sums else value
    means = sum_over_workers(torch.stack(list(sums.values()))) / (len(batches) * world_size())
    seconds = time.perf_counter() - began
    return {
        **{"loss" if name == "total" else name: float(mean) for name, mean in zip(sums, means, strict=True)},
        "samples": len(samples),
        "workers": world_size(),
        "seconds": round(seconds, 3),
        "samples_per_second": round(len(samples) / seconds, 1),
    }


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in an epoch, the same on every worker; seeds dropout, different on every worker."""
    torch.manual_seed(_mix(seed, epoch, 0))
    order_N = torch.randperm(n)
    if rank() > 0:
        torch.manual_seed(_mix(seed, epoch, rank()))
    return order_N


def _own_rows(rows_B: Tensor) -> tuple[Tensor, float]:
    """This worker's share of a batch, and what its mean loss counts, so that the mean over workers is the batch's.

    A worker without a share computes a loss that counts nothing: gradients are averaged over all workers.
    """
    own_B = own_share(rows_B)
    return (own_B, len(own_B) * world_size() / len(rows_B)) if len(own_B) else (rows_B[:1], 0.0)


def _gradients(
    step_module: Any,
    samples: Samples,
    rows_B: Tensor,
    parts: int,
    weight: float = 1.0,
    clicks_N: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients of the weighted mean loss of rows, computed in parts; returns that loss and what it is made of.

    Of sample i the first `clicks_N[i]` clicks are read. Workers average their gradients once a batch, with its last
    part.
    """
    losses: dict[str, Tensor] = {}
    *first, last = rows_B.chunk(parts)
    for rows_b in (*first, last):
        batch, target_b = samples.batch(rows_b, None if clicks_N is None else clicks_N[rows_b])
        alone = rows_b is not last and hasattr(step_module, "no_sync")
        with step_module.no_sync() if alone else nullcontext():
            share = weight * len(rows_b) / len(rows_B)
            found = {name: value * share for name, value in step_module(batch, target_b).items()}
            found["total"].backward()
        for name, value in found.items():
            losses[name] = losses[name] + value.detach() if name in losses else value.detach()
    return losses


def _mix(seed: int, epoch: int, worker: int) -> int:
    """One seed for torch from three small numbers, no two alike."""
    return (seed * 1_000_003 + epoch) * 10_007 + worker


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _non_finite(samples: Samples, rows_B: Tensor, loss: Tensor, epoch: int) -> NonFiniteLossError:
    keys = ", ".join(samples.keys(rows_B[:SHOWN_KEYS].tolist()))
    own = f"loss {loss.item():g} on the batch that begins with samples {keys}"
    everyone = gather_text("" if torch.isfinite(loss) else own, loss.device)
    # Where every loss is finite and a gradient is not, nobody knows whose: the first worker names its samples.
    culprit = next((worker for worker, text in enumerate(everyone) if text), 0)
    if not everyone[culprit]:
        everyone = gather_text(own, loss.device)
    return NonFiniteLossError(
        f"epoch {epoch}: the loss or its gradient is not finite ({everyone[culprit]}); "
        "try a lower train.learning_rate or train.clip_norm",
        samples.keys(rows_B.tolist()) if rank() == culprit else [],
    )
