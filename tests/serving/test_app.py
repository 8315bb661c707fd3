"""Deployments without Serve: what they load, refuse and notice."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from serving_run import items_table, planted_run, samples_table

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.serving import from_environment
from llm4sbr_ray.serving.app import BehaviourEncoder, EmbeddingCache, FusionRanker, ServeArgs, build_app
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.graph import OtherVersion
from llm4sbr_ray.serving.ranker import RankQuery

SERVE_CONFIGS = Path(__file__).parents[2] / "serve_configs"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    export(run)
    return run


def place(run: Run) -> tuple[str, str]:
    return run.uri("bundle"), Bundle(run.uri("bundle")).manifest.version


@pytest.mark.parametrize(
    ("graph", "parts"),
    [("fused", ["Ingress"]), ("composed", ["BehaviourEncoder", "EmbeddingCache", "FusionRanker", "Ingress"])],
)
def test_serve_build_writes_a_config_of_every_deployment(
    run: Run, tmp_path: Path, graph: str, parts: list[str]
) -> None:
    written = tmp_path / "serve.yaml"
    command = [Path(sys.executable).with_name("serve"), "build", f"{from_environment.__name__}:app", "-o", written]
    arguments = json.dumps({"bundle": run.uri("bundle"), "graph": graph})
    subprocess.run(command, check=True, env=os.environ | {from_environment.ARGUMENTS: arguments}, capture_output=True)
    (application,) = yaml.safe_load(written.read_text())["applications"]
    assert application["import_path"] == f"{from_environment.__name__}:app"
    assert sorted(deployment["name"] for deployment in application["deployments"]) == parts


def test_arguments_in_the_environment_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(from_environment.ARGUMENTS, '{"graph": "round"}')
    with pytest.raises(UserError, match=r"LLM4SBR_SERVE: graph: .*'composed' or 'fused'"):
        from_environment.app  # noqa: B018


def first_known(seed: int, rows: int) -> list[int]:
    known = next(row for row in samples_table(seed, rows).to_pylist() if any(row["grounded"]))
    return list(known["items"])


def test_a_damaged_bundle_is_refused_before_anything_starts(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    weights = Path(run.path("bundle", "model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors: [\d,]+ bytes where"):
        build_app(ServeArgs(bundle=run.uri("bundle")))


def test_health_checks_notice_broken_parts(run: Run) -> None:
    threads = torch.get_num_threads()
    encoder, ranker = BehaviourEncoder(*place(run)), FusionRanker(*place(run))
    torch.set_num_threads(threads)
    cache = EmbeddingCache(*place(run), 100, 3)
    for part in (encoder, ranker, cache):
        part.check_health()
    with torch.no_grad():
        for core in (encoder._encoder, ranker._ranker):
            core._model.backbone.item_embedding.weight.fill_(float("nan"))
    cache._cache.capacity = 1
    for part in (encoder, ranker, cache):
        with pytest.raises(RuntimeError, match=r"encoder|ranker|cache"):
            part.check_health()


def test_a_later_export_refreshes_the_cache(run: Run, tmp_path: Path) -> None:
    later = planted_run(tmp_path)
    newcomer = samples_table(99, 5)
    later.write_table(newcomer, "intents/samples/test/part-2.parquet")
    export(later)
    session = np.array(first_known(99, 5), np.int32)
    cache, version = EmbeddingCache(*place(run), 1000, 0), place(run)[1]
    assert asyncio.run(cache.lookup(session, version)) is None
    cache.reconfigure({"newer_bundle": later.uri("bundle")})
    assert asyncio.run(cache.lookup(session, version)) is not None


def test_parts_refuse_an_ingress_of_another_version(run: Run) -> None:
    threads = torch.get_num_threads()
    encoder, ranker = BehaviourEncoder(*place(run)), FusionRanker(*place(run))
    torch.set_num_threads(threads)
    session, query = np.array([1, 2], np.int32), RankQuery(np.zeros((3, 16), np.float32), None, [], 1)
    for asked in (
        encoder.encode(session, "another"),
        EmbeddingCache(*place(run), 100, 3).lookup(session, "another"),
        ranker.rank(query, "another"),
    ):
        with pytest.raises(OtherVersion, match="the ingress another"):
            asyncio.run(asked)


def test_intents_of_another_catalogue_are_refused(run: Run, tmp_path: Path) -> None:
    other = planted_run(tmp_path)
    renamed = items_table().set_column(1, "item_id", [[f"other-{j}" for j in range(60)]])
    other.write_table(renamed, "data/items.parquet")
    export(other)
    with pytest.raises(ValueError, match="another catalogue"):
        EmbeddingCache(*place(run), 1000, 0).reconfigure({"newer_bundle": other.uri("bundle")})


def test_serve_can_see_the_type_of_the_arguments() -> None:
    assert inspect.signature(build_app).parameters["args"].annotation is ServeArgs


def test_arguments() -> None:
    assert ServeArgs().bundle == "runs/demo/bundle"
    for wrong in ({"bundel": "x"}, {"cache_capacity": 0}, {"stale_clicks": -1}):
        with pytest.raises(ValidationError):
            ServeArgs.model_validate(wrong)


@pytest.mark.parametrize("name", ["local.yaml", "production.yaml"])
def test_serve_configs_fit_the_application(name: str, run: Run) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((SERVE_CONFIGS / name).read_text()))
    (application,) = config.applications
    args = ServeArgs.model_validate(application.args)
    assert application.import_path == "llm4sbr_ray.serving.app:build_app"
    ours = {"Ingress", "BehaviourEncoder", "EmbeddingCache", "FusionRanker"}
    assert {d.name for d in application.deployments} == (ours if args.graph == "composed" else {"Ingress"})
