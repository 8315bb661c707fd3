"""Runs without any LLM: perspectives whose answers the catalogue has, models that read the item texts alone."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_run import SMALL

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import Perspective, load_config
from llm4sbr_ray.perspectives import intents
from llm4sbr_ray.perspectives.infer import infer, plan_inference
from llm4sbr_ray.perspectives.text_encoder import TextEncoder

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parent.parent.parent
TAGS = Perspective(name="tags", level="item", anchor="local", from_field="attributes")


def test_a_text_start_asks_nothing(pipeline_run: Run) -> None:
    arguments = ["--storage", pipeline_run.config.storage, "--name", "text-start"]
    config = load_config([*SMALL, *arguments, "--train.models", "srgnn+text", "--train.workers", "0"])
    run = Run(config)
    copy_stages(pipeline_run, run, {"ingest": "data"})
    runpy.run_path(str(ROOT / "jobs" / "pipeline.py"))["pipeline"](run)
    assert set(run.manifest()["stages"]) == {"ingest", "text", "train/srgnn+text/seed-0", "evaluate"}
    assert run.read_json("report", "metrics.json")["models"]["srgnn+text"]["test"]["recall@20"] > 0


def copy_stages(source: Run, target: Run, folder_of: dict[str, str]) -> None:
    """Put these stages of a run into a new one."""
    for folder in folder_of.values():
        target.fs.create_dir(target.path(folder))
        pa.fs.copy_files(source.path(folder), target.path(folder))
    manifest = source.manifest()
    target.write_json({**manifest, "stages": {name: manifest["stages"][name] for name in folder_of}}, "run.json")


def test_no_model_is_trained_or_asked(
    pipeline_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intents, "BLOCK_ROWS", 50)  # so that two actors have something to share
    config = load_config([*SMALL, "--storage", pipeline_run.config.storage, "--name", "no-llm"])
    perspectives = config.perspectives.model_copy(update={"views": (TAGS,), "splits": ("test",)})
    text = config.text.model_copy(update={"actors": (2, 2)})
    run = Run(config.model_copy(update={"perspectives": perspectives, "text": text}))
    copy_stages(pipeline_run, run, {"ingest": "data", "text": "text"})

    plan_inference(run)
    assert "[plan] nothing would be asked" in capsys.readouterr().out
    infer(run)
    samples = run.read_table("data", "test")
    assert set(run.manifest()["stages"]) == {"ingest", "text", "perspectives", "intents"}
    facts = run.manifest()["stages"]["perspectives"]
    assert (facts["prompts"], facts["rows"], facts["calls_saved"]) == (0, len(samples), len(samples))
    joined = run.read_table("intents", "samples", "test")
    assert joined["sample_key"].to_pylist() == samples["sample_key"].to_pylist()
    assert all(grounded == [True] for grounded in joined["grounded"].to_pylist())

    tags = run.read_table("data", "items.parquet")["attributes"].to_pylist()
    own_VE = TextEncoder(text).encode([" ".join(words) for words in tags])
    scores_VV = own_VE @ own_VE.T  # in the space of the answers
    for clicks, items in zip(samples["items"].to_pylist(), joined["intent_items"].to_pylist(), strict=True):
        near = scores_VV[clicks[-1]]
        np.testing.assert_allclose(np.sort(near[items]), np.sort(near)[-len(items) :], atol=2e-3)
