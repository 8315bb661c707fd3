"""An adapter over the model: the answers are those of a model that has it merged into its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from small_run import SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import load_config
from llm4sbr_ray.perspectives import engine

pytestmark = pytest.mark.integration
RANK, ALPHA = 8, 16
PROMPTS = 48


def write_adapter(model: PreTrainedModel, folder: Path) -> None:
    """A random adapter in PEFT's files, merged into `model`."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith(("q_proj", "o_proj", "down_proj")):
            weight = layer.weight.data
            a = torch.randn(RANK, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            b = torch.randn(weight.shape[0], RANK, generator=generator) * weight.std()
            weight += (ALPHA / RANK) * b @ a
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = ["q_proj", "o_proj", "down_proj"]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": modules}))


def test_answers_are_those_of_the_merged_weights(pipeline_run: Run, tmp_path: Path) -> None:
    where = pipeline_run.path("pocket-lm")
    adapter = tmp_path / "adapter"
    merged = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    write_adapter(merged, adapter)
    words = ["--perspectives.model", where, "--perspectives.lora", str(adapter)]
    config = load_config([*SMALL, *words]).perspectives
    data, work = pipeline_run.below("data"), Store(str(tmp_path))
    asked, answers, done = (work.below(name) for name in ("asked", "answers", "done"))
    plain = [row for row in pipeline_run.read_table("perspectives", "short-term").to_pylist() if row["error"] is None]
    items = dict(zip(*(data.read_table("test")[name].to_pylist() for name in ("sample_key", "items")), strict=True))
    rows = {row["prompt_key"]: row for row in plain if row["sample_key"] in items}
    rows = dict(sorted(rows.items())[:PROMPTS])
    prompts = [
        {"prompt_key": key, "view": "short-term", "items": items[row["sample_key"]][-config.max_items :]}
        for key, row in rows.items()
    ]
    asked.write_table(pa.Table.from_pylist(prompts).append_column("candidates", pa.nulls(PROMPTS)), "part-0.parquet")

    engine.ask(asked, answers, done, where, data.uri(), config)
    found = {row["prompt_key"]: row["answer"] for row in answers.read_table("").to_pylist()}
    assert found.keys() == rows.keys()

    tokenise, tokenizer = engine.Tokenise(where, data.uri(), config), AutoTokenizer.from_pretrained(where)
    expected = {}
    for prompt in prompts:
        ids = torch.tensor([tokenise.tokens("short-term", prompt["items"])[0]])
        longest = config.sampling.max_tokens
        out = merged.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        expected[prompt["prompt_key"]] = " ".join(text.split())
    assert sum(found[key] == text for key, text in expected.items()) >= 0.9 * PROMPTS  # near ties may turn
    assert sum(found[key] == rows[key]["answer"] for key in rows) < 0.5 * PROMPTS  # the adapter says something else
