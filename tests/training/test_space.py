"""Search spaces: what is read, and what is refused, with the file and the setting named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from planted_run import planted_config

from llm4sbr_ray.config import RunConfig, load_config
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.build import known_models
from llm4sbr_ray.training.space import apply_settings, read_setting, read_space

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return planted_config(str(tmp_path))


def test_all_kinds_are_read(tmp_path: Path, config: RunConfig) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "train.learning_rate: {loguniform: [1e-4, 0.01]}\n"  # YAML takes 1e-4 for a text
        "model.dropout: {uniform: [0, 0.5]}\n"
        "train.batch_size: {int: [16, 64]}\n"
        "model.width: {logint: [8, 64]}\n"
        "model.fusion: {choice: [gate, average]}\n"
    )
    space = read_space(path, config)
    assert {name: (domain.kind, domain.values) for name, domain in space.items()} == {
        "train.learning_rate": ("loguniform", (1e-4, 0.01)),
        "model.dropout": ("uniform", (0.0, 0.5)),
        "train.batch_size": ("int", (16, 64)),
        "model.width": ("logint", (8, 64)),
        "model.fusion": ("choice", ("gate", "average")),
    }
    assert space["model.dropout"].holds(0.5)
    assert not space["model.dropout"].holds(0.6)
    assert not space["model.fusion"].holds("residual")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.widht: {int: [8, 16]}", "model.widht: no such setting"),
        ("models.width: {int: [8, 16]}", "models.width: no such setting"),
        ("model.width.x: {int: [8, 16]}", "model.width.x: no such setting"),
        ("model: {int: [8, 16]}", "model: this is a section or a list: name one setting"),
        ("data.samples: {choice: [last-item]}", "data.samples: trials can't change this"),
        ("train.select_by: {choice: [mrr@20]}", "train.select_by: trials can't change this"),
        ("model.width: 16", "model.width: give one of uniform, loguniform, int, logint, choice"),
        ("model.width: {normal: [8, 16]}", "model.width: give one of uniform"),
        ("model.width: {int: [8, 16], choice: [8]}", "model.width: give one of uniform"),
        ("model.width: {int: [8.5, 16]}", r"model.width: int takes \[low, high\], two whole numbers"),
        ("model.width: {int: [8]}", r"model.width: int takes \[low, high\]"),
        ("model.dropout: {uniform: [0.5, 0.1]}", r"model.dropout: uniform takes \[low, high\] with low below high"),
        ("model.dropout: {loguniform: [0, 0.1]}", "model.dropout: loguniform takes bounds above 0"),
        ("model.dropout: {uniform: [0.5, 1.5]}", "model.dropout: 1.5 is refused: input should be less than 1"),
        ("model.fusion: {choice: [gates]}", "model.fusion: 'gates' is refused: input should be 'average', 'gate'"),
        ("model.fusion: {choice: []}", "model.fusion: choice takes a list of plain values"),
        ("model.fusion: {choice: [[gate]]}", "model.fusion: choice takes a list of plain values"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, config: RunConfig, line: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(line)
    with pytest.raises(UserError, match=f"^{path}: {message}") as error:
        read_space(path, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "search space not found: "),
        ("a: [", "not valid YAML"),
        ("- a", "a search space is a mapping"),
        ("", "a search space is a mapping"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, config: RunConfig, content: str | None, message: str) -> None:
    path = tmp_path / "space.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_space(path, config)


def test_settings_are_applied_and_read_back(config: RunConfig) -> None:
    changed = apply_settings(config, {"model.dropout": 0.3, "train.batch_size": 8})
    assert (read_setting(changed, "model.dropout"), read_setting(changed, "train.batch_size")) == (0.3, 8)
    assert apply_settings(changed, {"model.dropout": 0.1, "train.batch_size": 32}) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_that_ship_are_whole(path: Path) -> None:
    config = load_config(["--config", str(ROOT / "configs" / "demo.yaml")])
    assert path.stem in known_models()
    assert set(read_space(path, config)) == set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "spaces").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_of_several_models_are_whole(path: Path) -> None:
    config = load_config(["--config", str(ROOT / "configs" / "demo.yaml")])
    assert set(read_space(path, config)) == set(yaml.safe_load(path.read_text()))
