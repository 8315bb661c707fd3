"""Perspectives whose answers the catalogue has: intents without any LLM, the texts encoded by several actors."""

from __future__ import annotations

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
TAGS = Perspective(name="tags", level="item", anchor="local", from_field="attributes")


def test_no_model_is_trained_or_asked(
    pipeline_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intents, "BLOCK_ROWS", 50)  # so that two actors have something to share
    config = load_config([*SMALL, "--storage", pipeline_run.config.storage, "--name", "no-llm"])
    perspectives = config.perspectives.model_copy(update={"views": (TAGS,), "splits": ("test",)})
    text = config.text.model_copy(update={"actors": (2, 2)})
    run = Run(config.model_copy(update={"perspectives": perspectives, "text": text}))
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
    joined = run.read_table("intents", "samples", "test")
    assert joined["sample_key"].to_pylist() == samples["sample_key"].to_pylist()
    assert all(grounded == [True] for grounded in joined["grounded"].to_pylist())

    tags = run.read_table("data", "items.parquet")["attributes"].to_pylist()
    own_VE = TextEncoder(text).encode([" ".join(words) for words in tags])
    scores_VV = own_VE @ own_VE.T  # in the space of the answers
    for clicks, items in zip(samples["items"].to_pylist(), joined["intent_items"].to_pylist(), strict=True):
        near = scores_VV[clicks[-1]]
        np.testing.assert_allclose(np.sort(near[items]), np.sort(near)[-len(items) :], atol=2e-3)
