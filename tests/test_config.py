"""Settings from a file and the command line; what is wrong is named."""

from pathlib import Path

import pytest

from llm4sbr_ray.config import load_config
from llm4sbr_ray.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(["--config", str(path)]).name == path.stem


def test_the_command_line_wins_and_the_rest_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\ndata: {source: demo, demo: {items: 77}}\ntrain: {epochs: 4, patience: 2}\n")
    config = load_config(
        ["--config", path, "--train.epochs", "3", "--train.seeds", "4,5", "--perspectives.model", "Qwen/Qwen3-8B"]
    )
    assert (config.train.epochs, config.train.patience, config.train.seeds) == (3, 2, (4, 5))
    assert config.data.demo.items == 77
    assert config.perspectives.model == "Qwen/Qwen3-8B"


def test_the_environment_never_sets_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "other")
    assert load_config(["--config", write(tmp_path, "name: a\ndata: {source: demo}")]).name == "a"


@pytest.mark.parametrize(
    ("text", "arguments", "named"),
    [
        ("name: a\ndata: {source: demo}\ntrain: {lr: 1}", [], "train.lr: no such setting"),
        ("name: a\ndata: {source: demo}", ["--train.epochs", "x"], "train.epochs"),
        ("name: a\ndata: {source: demo}", ["--train.epoch", "3"], "--train.epoch"),
        ("name: a\ndata: {source: tables}", [], "data.sessions is missing"),
        ("name: ../a\ndata: {source: demo}", [], "name"),
        (
            "name: a\ndata: {source: demo}",
            ["--text.actors", "[4,2]"],
            "text.actors: the least, 4, is more than the most, 2",
        ),
        ("name: a\ndata: {source: demo}", ["--perspectives.engine.actors", "[0,2]"], "perspectives.engine.actors.0"),
        ("name: a\ndata: {source: demo}", ["--perspectives.lora", "x"], "lora: an adapter is one over `model`"),
        ("- a", [], "a config is a mapping"),
        ("a: [", [], "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        load_config(["--config", write(tmp_path, text), *arguments])


@pytest.mark.parametrize(
    ("said", "meant"), [("false", False), ("False", False), ("true", True), ("s3://b/x", "s3://b/x")]
)
def test_the_answer_store_is_switched_off_on_the_command_line(said: str, meant: bool | str) -> None:
    config = load_config(["--config", str(CONFIGS[0]), "--perspectives.store", said])
    assert config.perspectives.store == meant


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"config file not found: nowhere\.yaml"):
        load_config(["--config", "nowhere.yaml"])
