"""What LLM4SBR's gain comes from: the model with one part taken away at a time, beside its plain backbone.

    python benchmarks/ablations.py --config configs/demo.yaml [--backbone srgnn] [--json FILE] [--train.seeds 0,1,2]

It reads the samples, texts and intents of a run whose perspectives are done (jobs/infer.py), trains every variant in
this process with the run's settings, and compares validation metrics at the epoch that each would keep: test isn't
touched.
Rows named "control" must gain nothing. In the last one every item gets the text of another one and every session the
answers to another one. Each alone leaves something: answers are localised by the texts as they are, so with permuted
texts a perspective still names the right items; with other sessions' answers the items still start from their texts.
Rows named "simulated" ask how good an LLM has to be: no LLM gave these answers, and they know the target.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import RunConfig, load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import GraphBackbone, Intents
from llm4sbr_ray.models.build import LLM4SBR_SUFFIX, TEXT_SUFFIX, build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import count_items, read_item_text
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.space import Scalar, apply_settings
from llm4sbr_ray.training.start import give_texts, starting_model

METRICS = ("recall@20", "mrr@20", "ndcg@20")


@dataclass(frozen=True)
class Variant:
    """One row."""

    name: str
    suffix: str = LLM4SBR_SUFFIX
    settings: dict[str, Scalar] = field(default_factory=dict)
    text: Callable[[Tensor], Tensor] = lambda item_text_VE: item_text_VE
    intents: Callable[[Intents], Intents] = lambda intents: intents
    view: int | None = None  # the only perspective
    named: float = 0.0  # share of the samples whose answers are made to name the target: no LLM did this


def permuted(item_text_VE: Tensor) -> Tensor:
    """Each item with the text of another one; the same permutation in each run."""
    order_V = torch.randperm(len(item_text_VE), generator=torch.Generator().manual_seed(20))
    return item_text_VE[order_V]


def nearest_only(intents: Intents) -> Intents:
    """r = 1: the nearest item of each answer alone."""
    best_BP1 = intents.weight_BPR.argmax(dim=2, keepdim=True)
    return Intents(intents.item_BPR.gather(2, best_BP1), torch.ones_like(best_BP1.float()), intents.grounded_BP)


def random_items(intents: Intents) -> Intents:
    """Answers localised to other sessions' items: what they say has nothing to do with the session."""
    order_B = torch.randperm(len(intents.item_BPR), generator=torch.Generator().manual_seed(21))
    return Intents(intents.item_BPR[order_B], intents.weight_BPR[order_B], intents.grounded_BP[order_B])


def naming_targets(intents: Intents, target_B: Tensor, share: float) -> Intents:
    """As if the LLM's answers named the very item that comes next, in this share of the samples, drawn at random."""
    named_B11 = (torch.rand(len(target_B), generator=torch.Generator().manual_seed(22)) < share)[:, None, None]
    first_R = torch.zeros(intents.weight_BPR.shape[2])
    first_R[0] = 1
    return Intents(
        torch.where(named_B11, target_B[:, None, None].to(intents.item_BPR), intents.item_BPR),
        torch.where(named_B11, first_R, intents.weight_BPR),
        intents.grounded_BP | named_B11[..., 0],
    )


def variants(config: RunConfig) -> list[Variant]:
    """All rows; "one perspective only" once for each of the run's."""
    return [
        Variant("plain backbone", suffix=""),
        Variant("text start, no perspectives", suffix=TEXT_SUFFIX),
        Variant("permuted text start, no perspectives (control)", suffix=TEXT_SUFFIX, text=permuted),
        Variant("LLM4SBR"),
        Variant("without the text start", settings={"model.text_start": False}),
        Variant("text start as spread as the backbone's own", settings={"model.text_spread": 1.0}),
        Variant("without text smoothing", settings={"model.text_smoothing": 0.0}),
        Variant("text start alone as spread as the backbone's own", TEXT_SUFFIX, {"model.text_spread": 1.0}),
        Variant("text start without smoothing, no perspectives", TEXT_SUFFIX, {"model.text_smoothing": 0.0}),
        Variant("without alignment", settings={"model.alignment": 0.0}),
        Variant("without uniformity", settings={"model.uniformity": 0.0}),
        Variant("without alignment and uniformity", settings={"model.alignment": 0.0, "model.uniformity": 0.0}),
        Variant("fusion: average", settings={"model.fusion": "average"}),
        Variant("fusion: gate", settings={"model.fusion": "gate"}),
        Variant("nearest item only (r = 1)", intents=nearest_only),
        *(
            Variant(f"{view.name} only", view=p)
            for p, view in enumerate(config.perspectives.views)
            if len(config.perspectives.views) > 1
        ),
        Variant("permuted texts", text=permuted),
        Variant("other sessions' answers", intents=random_items),
        Variant("permuted texts and other sessions' answers (control)", text=permuted, intents=random_items),
        *(
            Variant(f"simulated: {share:.0%} of answers name the target", named=share)
            for share in (0.05, 0.1, 0.2, 0.4)
        ),
    ]


def with_intents(samples: Samples, variant: Variant) -> Samples:
    """The samples as this variant sees them."""
    if samples.intents is None:
        return samples
    views = slice(None) if variant.view is None else slice(variant.view, variant.view + 1)
    kept = Intents(*(getattr(samples.intents, f.name)[:, views] for f in dataclasses.fields(Intents)))
    changed = naming_targets(variant.intents(kept), samples.target_N, variant.named)
    return replace(samples, intents=changed)


def train_variant(run: Run, backbone: str, variant: Variant, seed: int) -> dict[str, float]:
    """Validation metrics at the best epoch."""
    config = apply_settings(run.config, variant.settings)
    name = backbone + variant.suffix
    torch.manual_seed(seed)
    model: LLM4SBR | PlainRecommender
    if variant.suffix:
        anchors = [view.anchor for p, view in enumerate(config.perspectives.views) if variant.view in (None, p)]
        text_VE = variant.text(read_item_text(run))
        built = build_model(name, count_items(run), config.model, config.neighbours, anchors, text_VE)
        assert isinstance(built, LLM4SBR | PlainRecommender)
        if isinstance(built.backbone, GraphBackbone):
            raise UserError(f"--backbone: {backbone!r} reads a graph first: not built here")
        give_texts(built, config.model, text_VE)
        model = built
    else:
        model = starting_model(Run(config), name)
    parts = (with_intents(read_samples(run, source(run, name, split)), variant) for split in ("train", "valid"))
    done = train_model(model, *parts, config.train, seed)
    best = done.counters.history[done.counters.best_epoch - 1]
    return {key: float(value) for key, value in best.items() if key.startswith("valid_")}


def measure(run: Run, backbone: str, chosen: list[Variant]) -> list[dict[str, Any]]:
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("ablations", total=len(chosen) * len(run.config.train.seeds))
        for variant in chosen:
            found = []
            for seed in run.config.train.seeds:
                progress.update(task, description=f"{variant.name}, seed {seed}")
                found.append(train_variant(run, backbone, variant, seed))
                progress.advance(task)
            rows.append({"variant": variant.name, "per_seed": found})
            print(f"[ablations] {variant.name}: {_text(found, 'valid_mrr@20')} mrr@20", file=sys.stderr, flush=True)
    return rows


def _text(found: list[dict[str, float]], key: str) -> str:
    values = [100 * each[key] for each in found if key in each]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    for way in ("", ", LLM-free"):
        for metric in METRICS[:2]:
            table.add_column(metric + way, justify="right")
    for row in rows:
        cells = [_text(row["per_seed"], f"valid_{way}{metric}") for way in ("", "llm_free_") for metric in METRICS[:2]]
        table.add_row(row["variant"], *cells)
    Console(width=120).print(table)


def ablate(run: Run, backbone: str, only: list[str], target: str | None) -> None:
    if backbone not in BACKBONES:
        raise UserError(f"--backbone: no backbone {backbone!r}; known are {', '.join(BACKBONES)}")
    known = {v.name: v for v in variants(run.config)}
    chosen = [v for v in known.values() if not only or any(v.name == o if o in known else o in v.name for o in only)]
    if not chosen:
        raise UserError(f"--only: no variant has {' or '.join(map(repr, only))} in its name")
    rows = measure(run, backbone, chosen)
    config = run.config
    title = f"{backbone} on {config.dataset or config.name}, validation, in %, seeds {list(config.train.seeds)}"
    show(rows, title)
    if target:
        content = {"run": config.name, "backbone": backbone, "config": config.model_dump(mode="json"), "rows": rows}
        Path(target).write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--backbone", default="srgnn")
    parser.add_argument("--only", action="append", default=[], help="a name, or a part of names; may be repeated")
    parser.add_argument("--json")
    own, rest = parser.parse_known_args()
    try:
        ablate(Run(load_config(rest)), own.backbone, own.only, own.json)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
