"""The driver with `train.workers` 0: stages, files, resume and refusals. Ray Train: tests/integration."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from planted_run import N_ITEMS, TEXT_WIDTH, planted_config, planted_run
from safetensors.torch import load

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import GraphBackbone
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.neighbours import SessionKNN
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.popularity import Popularity
from llm4sbr_ray.training import trainer
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import load_model
from llm4sbr_ray.training.trainer import train

ALL = ("popularity", "sknn", "srgnn", "srgnn+llm4sbr")


def test_every_model_is_written_and_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = planted_run(planted_config(str(tmp_path), models=ALL, seeds=(3, 4), epochs=2))
    train(run)
    files = [path.removeprefix(run.path("train") + "/") for path in run.files("train")]
    folders = ["popularity/seed-3", "sknn/seed-3"] + [f"{m}/seed-{s}" for m in ALL[2:] for s in (3, 4)]
    names = ("history.json", "model.json", "model.safetensors")
    assert sorted(files) == sorted(f"{folder}/{name}" for folder in folders for name in names)
    assert not run.exists(".partial/train-srgnn-seed-3")

    test = read_samples(run, source(run, "srgnn+llm4sbr", "test"))
    batch, _ = test.batch(torch.arange(9))
    for name in ALL:
        model = load_model(run, name, 3)
        assert not model.training
        with torch.inference_mode():
            assert model.score(batch).shape == (9, N_ITEMS)
        description = run.read_json("train", name, "seed-3", "model.json")
        assert (description["name"], description["n_items"]) == (name, N_ITEMS)
    assert description["text_width"] == TEXT_WIDTH
    assert description["perspectives"] == [
        {"name": "long-term", "anchor": "global"},
        {"name": "short-term", "anchor": "local"},
    ]
    assert not any("item_text" in name for name in load(run.read_bytes("train/srgnn+llm4sbr/seed-3/model.safetensors")))
    history = run.read_json("train/srgnn+llm4sbr/seed-3/history.json")
    assert {"epoch", "loss", "valid_mrr@20", "valid_llm_free_mrr@20", "seconds", "samples_per_second"} <= set(
        history[0]
    )
    facts = run.manifest()["stages"]["train/srgnn/seed-3"]
    assert (facts["rows"], facts["epochs"]) == (history[0]["samples"], 2)
    assert "epoch 2: loss " in capsys.readouterr().out

    train(run)
    assert capsys.readouterr().out.count("done before, skipped") == len(folders)


def test_a_setting_of_the_other_models_does_not_train_again(tmp_path: Path) -> None:
    config = planted_config(str(tmp_path), models=("srgnn",), epochs=1)
    run = planted_run(config)
    train(run)
    fused = config.model_copy(update={"model": config.model.model_copy(update={"fusion": "average"})})
    wider = config.model_copy(update={"model": config.model.model_copy(update={"width": 12})})
    for changed, skipped in ((fused, True), (wider, False)):
        before = run.read_bytes("train/srgnn/seed-0/model.safetensors")
        train(Run(changed))
        assert (run.read_bytes("train/srgnn/seed-0/model.safetensors") == before) is skipped


def test_a_killed_try_goes_on_from_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = planted_run(planted_config(str(tmp_path / "whole"), models=("srgnn",)))
    train(whole)
    killed = planted_run(planted_config(str(tmp_path / "killed"), models=("srgnn",)))
    line = trainer.epoch_line

    def kill_after_two(stage: str, counters: object) -> str:
        shown = line(stage, counters)  # type: ignore[arg-type]
        if "epoch 2" in shown:
            raise KeyboardInterrupt
        return shown

    monkeypatch.setattr(trainer, "epoch_line", kill_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    monkeypatch.undo()
    train(killed)
    file = "train/srgnn/seed-0/model.safetensors"
    assert killed.read_bytes(file) == whole.read_bytes(file)
    assert len(killed.read_json("train/srgnn/seed-0/history.json")) == 3


def test_whole_sessions_for_count_models(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("popularity", "sknn")))
    train(run)
    table = run.read_table("data", "train")
    sessions: dict[str, list[int]] = {}
    for row in table.to_pylist():
        if len(row["items"]) + 1 > len(sessions.get(row["session_id"], [])):
            sessions[row["session_id"]] = [*row["items"], row["target"]]
    items_N, offsets_S1 = train_sessions([table.slice(0, 100), table.slice(100)])
    found = [items_N[a:b].tolist() for a, b in pairwise(offsets_S1)]
    assert found == list(sessions.values())
    popularity, sknn = load_model(run, "popularity", 0), load_model(run, "sknn", 0)
    assert isinstance(popularity, Popularity)
    assert isinstance(sknn, SessionKNN)
    assert int(popularity.count_V.sum()) == sum(map(len, sessions.values()))
    assert len(sknn.session_offset) == len(sessions) + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("sr-gnn",)}, "no model 'sr-gnn'; known are popularity"),
        ({"models": ("srgnn",), "learning_rate": 1e30}, "train/srgnn/seed-0: epoch .* not finite"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(planted_run(planted_config(str(tmp_path), **settings)))


def test_too_few_validation_samples_are_refused(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn",)))
    empty = run.read_table("data", "valid").slice(0, 0)
    run.delete("data/valid")
    run.write_table(empty, "data", "valid", "part-00000.parquet")
    with pytest.raises(UserError, match=r"raise data\.split\.valid_fraction"):
        train(run)


def test_llm4sbr_needs_intents_for_its_training_samples(tmp_path: Path) -> None:
    config = planted_config(str(tmp_path), models=("srgnn+llm4sbr",))
    asked = config.perspectives.model_copy(update={"splits": ("test",)})
    planted_run(config)
    with pytest.raises(UserError, match=r"perspectives\.splits"):
        train(Run(config.model_copy(update={"perspectives": asked})))


def test_without_intents_for_validation_llm4sbr_is_validated_llm_free(tmp_path: Path) -> None:
    config = planted_config(str(tmp_path), models=("srgnn+llm4sbr",), epochs=1)
    planted_run(config)
    asked = config.perspectives.model_copy(update={"splits": ("train", "test")})
    run = Run(config.model_copy(update={"perspectives": asked}))
    train(run)
    record = run.read_json("train/srgnn+llm4sbr/seed-0/history.json")[0]
    assert record["valid_score"] == record["valid_mrr@20"]
    assert "valid_llm_free_mrr@20" not in record


def test_a_model_that_was_not_trained_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained model there"):
        load_model(Run(planted_config(str(tmp_path))), "srgnn", 0)


def test_another_text_encoder_is_noticed(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn+llm4sbr",), epochs=1))
    train(run)
    table = run.read_table("text", "items.parquet")
    narrower = [row[:-1] for row in table["embedding"].to_pylist()]
    run.write_table(table.set_column(1, "embedding", [narrower]), "text", "items.parquet")
    with pytest.raises(UserError, match=f"embeddings of width {TEXT_WIDTH - 1}"):
        load_model(run, "srgnn+llm4sbr", 0)


@pytest.mark.parametrize("name", ["gcegnn", "gcegnn+llm4sbr", "dhcn"])
def test_a_graph_of_the_train_sessions_is_kept_with_the_model(tmp_path: Path, name: str) -> None:
    run = planted_run(planted_config(str(tmp_path), models=(name,), epochs=1))
    train(run)
    loaded = load_model(run, name, 0)
    assert isinstance(loaded, LLM4SBR | PlainRecommender)
    fresh = build_model(name, N_ITEMS, run.config.model, run.config.neighbours, ("global", "local"), torch.ones(1, 1))
    assert isinstance(fresh, LLM4SBR | PlainRecommender)
    assert isinstance(fresh.backbone, GraphBackbone)
    fresh.backbone.fit_graph(*train_sessions([run.read_table("data", "train")]))  # not those of valid and test
    kept = dict(loaded.backbone.named_buffers())
    assert all(torch.equal(kept[buffer], value) for buffer, value in fresh.backbone.named_buffers())
    assert any(value.any() for value in kept.values())
