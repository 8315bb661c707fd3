"""Models of one run, each with its own settings."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from planted_run import planted_config, planted_run

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.training.space import apply_settings
from llm4sbr_ray.training.trainer import train
from llm4sbr_ray.training.tuned import run_for_model, run_to_search


def with_tuned(config: RunConfig, tuned: dict[str, dict[str, object]]) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(mode="json"), "tuned": tuned})


def test_each_model_has_its_own_settings_and_only_what_changed_is_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = planted_config(str(tmp_path), models=("srgnn", "sasrec", "rules", "srgnn+memory"), epochs=1)
    run = planted_run(config, sessions=40)
    train(run)
    capsys.readouterr()
    tuned = {"srgnn": {"model.width": 8}, "rules": {"neighbours.rules.reach": 7}}
    train(Run(with_tuned(config, tuned)))
    shown = capsys.readouterr().out
    assert "[train/sasrec/seed-0] done before, skipped" in shown
    described = {model: run.read_json("train", model, "seed-0", "model.json") for model in config.train.models}
    assert {name: d["model"]["width"] for name, d in described.items() if name != "rules"} == {
        "srgnn": 8,
        "sasrec": 16,
        "srgnn+memory": 8,
    }
    assert described["rules"]["neighbours"]["rules"]["reach"] == 7
    assert described["srgnn+memory"]["neighbours"]["rules"]["reach"] == 7
    recorded = run.manifest()["config"]
    assert recorded["model"]["width"] == 16
    assert recorded["tuned"] == tuned


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ({"srgn": {}}, "tuned: no model 'srgn'"),
        ({"srgnn": {"model.widht": 8}}, "tuned: srgnn: model.widht: no such setting"),
        ({"srgnn": {"model.width": 1}}, "tuned: srgnn: model.width: 1 is refused"),
        ({"srgnn": {"model.max_length": 9}}, "tuned: srgnn: model.max_length: not a setting of one model"),
        ({"srgnn": {"data.samples": "last"}}, "tuned: srgnn: data.samples: not a setting of one model"),
    ],
)
def test_refusals(tmp_path: Path, tuned: dict[str, dict[str, object]], message: str) -> None:
    run = planted_run(planted_config(str(tmp_path), models=("srgnn",)), sessions=5)
    with pytest.raises(UserError, match=message):
        train(Run(with_tuned(run.config, tuned)))


def test_a_search_begins_with_a_models_own_settings_and_is_not_undone_by_them(tmp_path: Path) -> None:
    tuned = {"srgnn": {"model.width": 8, "model.dropout": 0.5}, "rules": {"neighbours.rules.reach": 7}}
    run = Run(with_tuned(planted_config(str(tmp_path)), tuned))
    own = run_to_search(run, "srgnn")
    assert (own.config.model.width, own.config.model.dropout) == (8, 0.5)
    assert own.config.tuned == {"rules": {"neighbours.rules.reach": 7}}
    found = copy.copy(own)
    found.config = apply_settings(own.config, {"model.dropout": 0.1})
    assert run_for_model(found, "srgnn").config.model.dropout == 0.1
    assert run.config.tuned == tuned
