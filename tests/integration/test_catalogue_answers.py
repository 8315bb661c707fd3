"""Perspectives whose answers the catalogue has: intents without any LLM."""

from __future__ import annotations

import pyarrow as pa
import pytest
from small_run import SMALL

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import Perspective, load_config
from llm4sbr_ray.perspectives.infer import infer, plan_inference

pytestmark = pytest.mark.integration
TAGS = Perspective(name="tags", level="item", anchor="local", from_field="attributes")


def test_no_model_is_trained_or_asked(pipeline_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config([*SMALL, "--storage", pipeline_run.config.storage, "--name", "no-llm"])
    perspectives = config.perspectives.model_copy(update={"views": (TAGS,), "splits": ("test",)})
    run = Run(config.model_copy(update={"perspectives": perspectives}))
    for name in ("data", "text"):
        run.fs.create_dir(run.path(name))
        pa.fs.copy_files(pipeline_run.path(name), run.path(name))
    manifest = pipeline_run.manifest()
    manifest["stages"] = {name: manifest["stages"][name] for name in ("ingest", "text")}
    run.write_json(manifest, "run.json")

    plan_inference(run)
    assert "[plan] nothing would be asked" in capsys.readouterr().out
    infer(run)
    samples = run.read_table("data", "test")
    assert set(run.manifest()["stages"]) == {"ingest", "text", "perspectives", "intents"}
    facts = run.manifest()["stages"]["perspectives"]
    assert (facts["prompts"], facts["rows"], facts["calls_saved"]) == (0, len(samples), len(samples))
    intents = run.read_table("intents", "samples", "test")
    assert intents["sample_key"].to_pylist() == samples["sample_key"].to_pylist()
    assert all(grounded == [True] for grounded in intents["grounded"].to_pylist())
