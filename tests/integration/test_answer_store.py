"""Never twice, with a real engine: a second run on the same storage asks what is new, a retry what failed."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from small_run import ROOT, SMALL

from llm4sbr_ray.artifacts import Run, Store
from llm4sbr_ray.config import Perspective, load_config
from llm4sbr_ray.perspectives import infer as stages
from llm4sbr_ray.perspectives.outputs import questions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
FORMED = ("category-need", "summary", "next-candidate")
OFFERED = 6  # candidates
ASKED = 60  # test samples: seven perspectives ask about each
USE = {"name": "use", "level": "item", "anchor": "global", "instruction": "What is it for? Only output that."}
TAGS = {"name": "tags", "level": "item", "anchor": "local", "from_field": "attributes"}
STEADY = {"name": "steady", "anchor": "global", "instruction": "Name an item like all of these. Only output its name."}


def second_run(pipeline_run: Run) -> Run:
    """A run beside the first with one more perspective, and the stages before the LLM as the first committed them."""
    config = load_config([*SMALL, "--storage", pipeline_run.config.storage, "--name", "second"])
    shipped = [yaml.safe_load((ROOT / f"configs/perspectives/{name}.yaml").read_text()) for name in FORMED]
    shipped[-1]["output"]["candidates"] = OFFERED  # all of 20 do not fit into the context of the pocket LM
    views = (*config.perspectives.views, *map(Perspective.model_validate, [STEADY, USE, TAGS, *shipped]))
    # The pocket LM was never taught JSON: what it does not finish within max_tokens is an error, as it should be.
    update = {"views": views, "splits": ("test",), "max_error_rate": 1.0, "retries": 0}
    perspectives = config.perspectives.model_copy(update=update)
    run = Run(config.model_copy(update={"perspectives": perspectives}))
    for name in ("data", "pocket-lm"):
        run.fs.create_dir(run.path(name))
        pa.fs.copy_files(pipeline_run.path(name), run.path(name))
    samples = run.read_table("data", "test")
    assert len(samples) > ASKED
    run.delete("data/test")
    run.write_table(samples.slice(0, ASKED), "data", "test", "part-00000.parquet")
    manifest = pipeline_run.manifest()
    manifest["stages"] = {name: manifest["stages"][name] for name in ("ingest", "pocket-lm")}
    run.write_json(manifest, "run.json")
    return run


def test_a_second_run_asks_only_what_is_new_and_a_retry_only_what_failed(pipeline_run: Run) -> None:
    run = second_run(pipeline_run)
    stages.infer(run)
    facts = run.manifest()["stages"]["perspectives"]
    keys = {}
    for view in ("long-term", "short-term", "steady"):
        keys[view] = set(run.read_table("perspectives", view)["prompt_key"].to_pylist())
    first = {}
    for view in ("long-term", "short-term"):
        first |= {row["prompt_key"]: row for row in pipeline_run.read_table("perspectives", view).to_pylist()}
    known = {key for key, row in first.items() if row["error"] is None}
    for view in ("long-term", "short-term"):
        assert facts["perspectives"][view]["from_store"] == len(keys[view] & known) > 0
        for row in run.read_table("perspectives", view).to_pylist():
            assert row["prompt_key"] not in known or row["answer"] == first[row["prompt_key"]]["answer"]
    assert facts["perspectives"]["steady"]["from_store"] == 0
    assert facts["perspectives"]["steady"]["prompts"] == len(keys["steady"]) > 0
    assert facts["calls_saved"] == facts["rows"] - facts["prompts"] + facts["from_store"]

    choices = questions(run.below("data"), run.config.perspectives)["category-need"].choices
    needs = [row for row in run.read_table("perspectives", "category-need").to_pylist() if row["error"] is None]
    assert {row["answer"] for row in needs} <= set(choices)
    assert needs
    for row in run.read_table("perspectives", "summary").to_pylist():
        assert row["error"] is not None or set(json.loads(row["answer"])) == {"sentence", "taste"}

    # Of candidates: each answer is one of its row's own, and the intent is that item alone.
    lines = questions(run.below("data"), run.config.perspectives)["next-candidate"].lines
    named = run.read_table("perspectives", "next-candidate").to_pylist()
    localised = run.read_table("intents", "next-candidate").to_pylist()
    assert facts["perspectives"]["next-candidate"]["errors"] == 0
    assert len({tuple(row["candidates"]) for row in named}) > 1
    for row, intent in zip(named, localised, strict=True):
        assert len(row["candidates"]) == OFFERED
        assert not row["shortened"]
        assert row["item"] in row["candidates"]
        assert lines[row["item"]] == row["answer"]
        assert intent["item_idx"][0] == row["item"]
        assert intent["weight"] == [1.0] + [0.0] * (run.config.text.localised_items - 1)
        assert len(set(intent["item_idx"])) == run.config.text.localised_items

    # Of level item: one call an item or none, and intents of every sample among the items, like all others.
    items, samples = run.read_table("data", "items.parquet"), run.read_table("data", "test")
    assert facts["perspectives"]["use"]["prompts"] == len(items)
    assert facts["perspectives"]["tags"]["prompts"] == 0
    last = [items["attributes"][prefix[-1]].as_py() for prefix in samples["items"].to_pylist()]
    assert run.read_table("perspectives", "tags")["answer"].to_pylist() == [" ".join(tags) for tags in last]
    for view in ("use", "tags"):
        assert len(run.read_table("item-answers", view)) == len(items)
        intents = run.read_table("intents", view)
        assert intents["sample_key"].to_pylist() == samples["sample_key"].to_pylist()
        assert any(intents["grounded"].to_pylist())
    joined = run.read_table("intents", "samples", "test")
    views = len(run.config.perspectives.views)
    assert {len(row) for row in joined["intent_items"].to_pylist()} == {views * run.config.text.localised_items}
    for figures in run.manifest()["stages"]["intents"]["perspectives"].values():
        if "answers" in figures:
            shares = figures["exact_title_rate"] + figures["near_rate"] + figures["far_rate"]
            assert shares == pytest.approx(1 if figures["answers"] else 0, abs=2e-4)

    # An error, as an engine would have left it: in the committed stage, and no answer in the store.
    table = run.read_table("perspectives", "steady")
    bad = pc.min(table.filter(pc.is_null(table["error"]))["prompt_key"]).as_py()
    hit = pc.equal(table["prompt_key"], bad)
    answer = pc.if_else(hit, "", table["answer"])
    error = pc.if_else(hit, "timed out", table["error"])
    table = table.set_column(table.schema.get_field_index("answer"), "answer", answer)
    table = table.set_column(table.schema.get_field_index("error"), "error", error)
    run.delete("perspectives/steady")
    run.write_table(table, "perspectives", "steady", "part-00000.parquet")
    manifest = run.manifest()
    manifest["stages"]["perspectives"]["perspectives"]["steady"]["errors"] = 1
    run.write_json(manifest, "run.json")
    for path in Store(run.config.storage).files("answers", suffix=".parquet"):
        stored = pq.read_table(path)
        pq.write_table(stored.filter(pc.not_equal(stored["prompt_key"], bad)), path)
    stages.infer(run)
    assert run.manifest()["stages"]["perspectives"]["finished_at"] == facts["finished_at"]  # done, so skipped
    intents = run.manifest()["stages"]["intents"]["finished_at"]
    stages.infer(run, retry_errors=True)
    again = run.manifest()["stages"]
    errors = 1 + sum(figures["errors"] for figures in facts["perspectives"].values())
    assert again["perspectives"]["prompts"] - again["perspectives"]["from_store"] == errors
    mended = {row["prompt_key"]: row["error"] for row in run.read_table("perspectives", "steady").to_pylist()}
    assert mended[bad] is None
    assert again["intents"]["finished_at"] != intents
