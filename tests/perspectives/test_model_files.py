"""A model's files, from where they lie to where they can be loaded."""

from __future__ import annotations

from pathlib import Path

from llm4sbr_ray.perspectives.model_files import local_model


def test_names_and_paths_stay_as_they_are(tmp_path: Path) -> None:
    assert local_model("Qwen/Qwen3-8B", str(tmp_path)) == "Qwen/Qwen3-8B"
    assert local_model("/models/qwen", str(tmp_path)) == "/models/qwen"
    assert list(tmp_path.iterdir()) == []


def test_what_a_uri_names_is_copied_with_and_without_weights(tmp_path: Path) -> None:
    there, here, small = tmp_path / "there", tmp_path / "here", tmp_path / "small"
    (there / "original").mkdir(parents=True)
    for name in ("config.json", "model-00001.safetensors", "original/params.json"):
        (there / name).write_text(name)
    assert local_model(f"file://{there}", str(here)) == str(here)
    assert {path.relative_to(here).as_posix(): path.read_text() for path in here.rglob("*") if path.is_file()} == {
        name: name for name in ("config.json", "model-00001.safetensors", "original/params.json")
    }
    local_model(f"file://{there}", str(small), weights=False)
    assert {path.name for path in small.rglob("*") if path.is_file()} == {"config.json", "params.json"}
