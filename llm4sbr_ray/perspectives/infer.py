"""Sessions -> intent vectors: the stages "pocket-lm", "perspectives", "text" and "intents" in their order."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
import torch

from llm4sbr_ray.artifacts import Facts, Run, Stage
from llm4sbr_ray.config import Perspectives
from llm4sbr_ray.perspectives.ask import ask_perspectives
from llm4sbr_ray.perspectives.intents import encode_items, localise_answers
from llm4sbr_ray.perspectives.outputs import shown_titles
from llm4sbr_ray.perspectives.plan import plan
from llm4sbr_ray.perspectives.pocket_lm import folder_bytes, pocket_views, train_pocket_lm


def infer(run: Run, retry_errors: bool = False) -> None:
    """Everything between the samples and the training of the models.

    Parameters
    ----------
    retry_errors
        Ask again what the committed LLM stage has an error for.
    """
    model, identity, after = language_model(run)
    ask_perspectives(run, model, identity, after, retry_errors)
    encode_items(run)
    localise_answers(run)


def plan_inference(run: Run) -> None:
    """Print what `infer` would ask and what it would cost; asks nothing. Trains the pocket LM if that is to be used."""
    if not run.config.perspectives.asking().views:
        print("[plan] nothing would be asked: all perspectives take their answers from the catalogue", flush=True)
        return
    model, identity, _ = language_model(run)
    plan(run, model, identity)


def language_model(run: Run) -> tuple[str, str, list[str]]:
    """What vLLM loads (nothing, if nothing is asked), what stands for it in keys, and the stages before the asking."""
    if not run.config.perspectives.asking().views:
        return "", "none", ["ingest"]
    model = run.config.perspectives.model
    if model is not None:
        adapter = run.config.perspectives.lora
        over = f" with lora {model_identity(adapter)}" if adapter else ""
        return model, model_identity(model) + over, ["ingest"]
    build_pocket_lm(run)
    digest = hashlib.sha256(run.read_bytes("pocket-lm", "model.safetensors")).hexdigest()[:16]
    return run.uri("pocket-lm"), f"pocket-lm:{digest}", ["ingest", "pocket-lm"]


def model_identity(model: str) -> str:
    """A Hugging Face name as it is; a local folder with its files' sizes and times, as it may be retrained."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(path for path in folder.iterdir() if path.is_file())
    described = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{model}:{hashlib.sha256(repr(described).encode()).hexdigest()[:16]}"


def build_pocket_lm(run: Run) -> bool:
    """Stage "pocket-lm": train the small decoder on the train sessions; ``pocket-lm/`` is a Hugging Face checkpoint."""
    config = run.config.perspectives

    def body(stage: Stage) -> Facts:
        sessions = train_sessions(run)
        titles = shown_titles(run.below("data"), config)
        task = ray.remote(num_cpus=1)(_train_remotely)
        for item in map(ray.get, task.remote(titles, sessions, config, run.config.seed)):
            if isinstance(item, str):
                print(f"[pocket-lm] {item}", flush=True)
            else:
                files, facts = item
        # Ray keeps copies of models from buckets by the name that this file holds: another training, another name.
        files["hash"] = hashlib.sha256(files["model.safetensors"]).hexdigest().encode()
        for name, content in files.items():
            stage.store.write_bytes(content, "pocket-lm", name)
        return {"rows": len(sessions), **facts}

    used = config.model_dump(mode="json", include={"max_items", "max_title_chars", "pocket"})
    used["views"] = [view.model_dump(include={"name", "instruction", "anchor"}) for view in pocket_views(config)]
    settings = [used, run.config.seed]
    return run.stage("pocket-lm", outputs=["pocket-lm"], settings=settings, after=["ingest"], body=body)


def train_sessions(run: Run) -> list[list[int]]:
    """Whole train sessions: the longest prefix of each with its target. Never validation, never test."""
    samples = run.read_table("data", "train", columns=["items", "target", "is_last"])
    whole = samples.filter(pc.field("is_last"))
    prefixes: list[Any] = whole["items"].to_pylist()
    targets: list[Any] = whole["target"].to_pylist()
    pairs = zip(prefixes, targets, strict=True)
    return [[*items, target] for items, target in pairs]


def _train_remotely(
    titles: list[str], sessions: list[list[int]], config: Perspectives, seed: int
) -> Iterator[str | tuple[dict[str, bytes], Facts]]:
    """Lines of progress, then the files and the facts."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        facts = yield from train_pocket_lm(titles, sessions, config, seed, Path(folder))
        yield folder_bytes(Path(folder)), facts
