"""Export and the refusal of damaged bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from serving_run import MODEL, V, planted_model, planted_run, run_config, samples_table, text_table

from llm4sbr_ray.artifacts import Facts, Run, Stage
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import GraphBackbone, pad_sessions
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.serving import bundle as bundle_module
from llm4sbr_ray.serving.bundle import Bundle, export, load_bundle
from llm4sbr_ray.serving.cache import session_key
from llm4sbr_ray.training.load import save_model

FILES = ["model.safetensors", "item_text.safetensors", "items.parquet", "intents.parquet"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    assert export(run) is True
    return run


@pytest.fixture
def copy(exported: Run, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(exported.path("bundle"), tmp_path / "bundle"))


def test_the_model_comes_back(exported: Run) -> None:
    model, loaded = planted_model(exported.config), load_bundle(exported.uri("bundle")).model()
    assert torch.equal(loaded.item_text_VE, text_table())
    assert not loaded.training
    batch = pad_sessions([[1, 2, 3], [5]], V, 8)
    with torch.inference_mode():
        assert torch.equal(model.score(batch), loaded.score(batch))


@pytest.mark.parametrize("name", ["gcegnn+llm4sbr", "dhcn+llm4sbr"])
def test_a_graph_of_the_train_sessions_comes_back(tmp_path: Path, name: str) -> None:
    run = planted_run(tmp_path, train={"models": (name,), "seeds": (0,)})
    model = build_model(name, V, run.config.model, run.config.neighbours, ("global", "local"), text_table()).eval()
    assert isinstance(model, LLM4SBR)
    assert isinstance(model.backbone, GraphBackbone)
    model.backbone.fit_graph(torch.arange(V).repeat(2), torch.arange(0, 2 * V + 1, 5))
    folder = f"train/{name}/seed-0"

    def train(stage: Stage) -> Facts:
        save_model(stage.store, run.config, name, 0, V, model.state_dict(), [], best_epoch=1)
        return {"rows": 1}

    run.stage(folder, outputs=[folder], settings={}, body=train, after=["intents"])
    export(run)
    loaded = load_bundle(run.uri("bundle")).model()
    batch = pad_sessions([[1, 2, 3], [5]], V, 8)
    with torch.inference_mode():
        assert torch.equal(model.score(batch), loaded.score(batch))


def test_the_manifest(exported: Run) -> None:
    manifest = load_bundle(exported.path("bundle")).manifest
    assert (manifest.model, manifest.run, manifest.n_items, manifest.localised_items) == (
        MODEL,
        "planted",
        V,
        3,
    )
    assert [(p.name, p.anchor) for p in manifest.perspectives] == [
        ("long-term", "global"),
        ("short-term", "local"),
    ]
    assert sorted(manifest.files) == sorted(FILES)
    assert exported.manifest()["stages"]["export"]["version"] == manifest.version


def test_only_needed_files_are_there(exported: Run) -> None:
    found = sorted(path.name for path in Path(exported.path("bundle")).iterdir())
    assert found == sorted([*FILES, "bundle.json"])


def test_intents_are_those_of_the_grounded_samples(exported: Run) -> None:
    expected = {}
    for seed, rows in [(1, 40), (2, 20), (3, 60)]:
        for row in samples_table(seed, rows).to_pylist():
            if any(row["grounded"]):
                expected[session_key(row["items"])] = row
    found = load_bundle(exported.path("bundle")).intents()
    assert [key for key, _ in found[-3:]] == list(expected)[-3:]  # the most recent last
    assert {key for key, _ in found} == set(expected)
    for key, intents in found:
        assert intents.item_PR.ravel().tolist() == expected[key]["intent_items"]
        assert np.array_equal(intents.weight_PR.ravel(), np.float32(expected[key]["intent_weights"]))
        assert intents.grounded_P.tolist() == expected[key]["grounded"]


def test_intents_are_bounded_to_the_most_recent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_INTENTS", 25)
    run = planted_run(tmp_path)
    export(run)
    keys = [session_key(r["items"]) for r in samples_table(3, 60).to_pylist() if any(r["grounded"])]
    last = list(dict.fromkeys(reversed(keys[-25:])))[::-1]
    assert [key for key, _ in load_bundle(run.path("bundle")).intents()] == last


def test_export_again_is_skipped_and_the_version_is_of_the_content(exported: Run, tmp_path: Path) -> None:
    version = load_bundle(exported.path("bundle")).manifest.version
    assert export(exported) is False
    other = planted_run(tmp_path)
    export(other)
    assert load_bundle(other.path("bundle")).manifest.version == version
    with pytest.raises(UserError, match=r"holds version .* deploy it again"):
        Bundle(other.path("bundle"), version="0" * 16)


@pytest.mark.parametrize("name", FILES)
def test_truncated(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{name}: [\d,]+ bytes where [\d,]+ were exported") as caught:
        load_bundle(str(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: its content was changed"):
        load_bundle(str(copy))


@pytest.mark.parametrize("name", FILES)
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing from the bundle"):
        load_bundle(str(copy))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bundle.json: damaged"),
        (b'{"format": 1', "bundle.json: damaged"),
        (b"\xff\xfe", "bundle.json: damaged"),
        (b"[]", "bundle format None, this service reads 2"),
        (b'{"format": 1}', "bundle format 1, this service reads 2"),
        (b'{"format": 2}', "field 'version' is wrong or missing"),
    ],
)
def test_damaged_manifest(copy: Path, content: bytes, message: str) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_bundle(str(copy))


def test_edited_manifest(copy: Path) -> None:
    values = json.loads((copy / "bundle.json").read_text())
    values["settings"]["max_length"] = 3
    (copy / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="changed after the export"):
        load_bundle(str(copy))


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no bundle here"):
        load_bundle(str(tmp_path))


def test_which_model_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Run(run_config(tmp_path, train={"models": ("popularity", "srgnn")}))
    assert export(plain) is False
    assert "no bundle" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"export\.model: 'srgnn' cannot be served"):
        export(Run(run_config(tmp_path, export={"model": "srgnn"})))
    with pytest.raises(UserError, match="has not been run"):
        export(Run(run_config(tmp_path)))
