"""Ray Train for real: reproducible batches; a worker, a node and the driver killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.train
import torch
from planted_run import N_ITEMS, planted_config, planted_run
from ray.cluster_utils import Cluster
from safetensors.torch import load

from llm4sbr_ray.artifacts import Run, Stage
from llm4sbr_ray.errors import StorageError, UserError
from llm4sbr_ray.models.backbones.gcegnn import GCEGNN, global_graph
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.checkpoint import Checkpoint
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.group import train_on_workers
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import load_model
from llm4sbr_ray.training.trainer import train, train_here
from llm4sbr_ray.training.validation import validate

pytestmark = pytest.mark.integration

MODEL = "srgnn+llm4sbr"
FOLDER = f"train/{MODEL}/seed-0"
SESSIONS = 400
EVEN = 401  # sessions with an even number of samples: workers have as many each, and none is taken twice
KILL_AFTER = "epoch 2"
BIG_NODE = {"num_cpus": 6, "object_store_memory": 100 * 2**20}  # more CPUs than the other nodes have


def config_in(storage: Path, **train_settings: object):  # type: ignore[no-untyped-def]
    settings = {"models": (MODEL,), "workers": 2, "epochs": 5, "patience": 5, "learning_rate": 2e-3, **train_settings}
    return planted_config(str(storage), **settings)


@pytest.fixture(scope="module")
def unbroken(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What every other try must end with."""
    run = planted_run(config_in(tmp_path_factory.mktemp("unbroken")), SESSIONS)
    train(run)
    return run


def assert_same_model(run: Run, unbroken: Run) -> None:
    ours, theirs = (load(r.read_bytes(FOLDER, "model.safetensors")) for r in (run, unbroken))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    ours, theirs = (r.read_json(FOLDER, "history.json") for r in (run, unbroken))
    assert [(r["epoch"], r["loss"], r["valid_score"]) for r in ours] == [
        (r["epoch"], r["loss"], r["valid_score"]) for r in theirs
    ]


def test_two_workers_learn_from_all_samples(unbroken: Run) -> None:
    history = unbroken.read_json(FOLDER, "history.json")
    everything = read_samples(unbroken, source(unbroken, MODEL, "train"))
    assert history[-1]["samples"] == len(everything)
    assert history[-1]["valid_mrr@20"] > 1.5 * history[0]["valid_mrr@20"]
    best = max(history, key=lambda record: record["valid_score"])
    valid = read_samples(unbroken, source(unbroken, MODEL, "valid"))
    for metric, value in validate(load_model(unbroken, MODEL, 0), valid, 64, rank_seen=True).items():
        assert value == pytest.approx(best[metric], rel=1e-3), metric  # shards: other batches, other rounding
    assert sorted(Path(unbroken.path(FOLDER)).iterdir()) == [
        Path(unbroken.path(FOLDER, name)) for name in ("history.json", "model.json", "model.safetensors")
    ]
    assert not Path(unbroken.path(".partial")).exists() or not list(Path(unbroken.path(".partial")).iterdir())


def train_while_a_worker_dies(run: Run) -> None:
    """One is killed when the first checkpoint is there."""
    killed: list[int] = []
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.1):
            checkpoints = list(Path(run.path(".partial")).rglob("checkpoint_manager_snapshot.json"))
            # Only workers of this process's own Ray: others may run on the machine.
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in _title(p)]
            if checkpoints and workers:
                workers[-1].kill()
                killed.append(workers[-1].pid)
                return

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    train(run)
    stop.set()
    killer.join()
    assert killed


def test_a_killed_worker_is_replaced(unbroken: Run, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path), SESSIONS)
    train_while_a_worker_dies(run)
    assert_same_model(run, unbroken)


def test_workers_with_a_part_of_the_items_each_go_on_from_their_parts(unbroken: Run, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path, shard_items=True), SESSIONS)
    train_while_a_worker_dies(run)
    ours, theirs = (r.read_json(FOLDER, "history.json") for r in (run, unbroken))
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-3)  # rounding, for 5 epochs
    weights = load(run.read_bytes(FOLDER, "model.safetensors"))
    assert weights["backbone.item_embedding.weight"].shape == (N_ITEMS + 1, run.config.model.width)
    best = max(ours, key=lambda record: record["valid_score"])
    valid = read_samples(run, source(run, MODEL, "valid"))
    together = load_model(run, MODEL, 0)
    for metric, value in validate(together, valid, 64, rank_seen=True).items():
        assert value == pytest.approx(best[metric], rel=1e-3), metric


def train_while_a_node_dies(cluster: Cluster, run: Run, replaced: bool) -> None:
    """Two workers, each on a node of its own; one node is killed when the first checkpoint is there."""
    nodes = [cluster.add_node(**BIG_NODE) for _ in range(2)]
    with ThreadPoolExecutor(1) as thread:  # Ray adds nodes from the main thread alone
        training = thread.submit(train, run)
        while not list(Path(run.path(".partial")).rglob("checkpoint_manager_snapshot.json")):
            assert not training.done(), training.exception()
            time.sleep(0.1)
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        if replaced:
            nodes.append(cluster.add_node(**BIG_NODE))
        training.result()
    for node in nodes:
        cluster.remove_node(node)


def test_a_killed_node_is_replaced(ray_cluster: Cluster, unbroken: Run, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path, cpus_per_worker=6), SESSIONS)
    train_while_a_node_dies(ray_cluster, run, replaced=True)
    assert_same_model(run, unbroken)


def test_an_elastic_group_goes_on_without_a_killed_node(
    ray_cluster: Cluster, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")  # for the lost node, which is not to come back
    for attempt in range(3):
        storage = tmp_path / str(attempt)
        storage.mkdir()
        run = planted_run(config_in(storage, cpus_per_worker=6, min_workers=1), SESSIONS)
        train_while_a_node_dies(ray_cluster, run, replaced=False)
        ours, theirs = (r.read_json(FOLDER, "history.json") for r in (run, unbroken))
        # Ray may not know yet that both nodes are there and free. A group that starts on one of them is another case.
        if ours[0]["workers"] == 2:
            break
    assert [record["workers"] for record in ours][:: len(ours) - 1] == [2, 1]
    assert [record["samples"] for record in ours] == [record["samples"] for record in theirs]
    assert max(r["valid_score"] for r in ours) == pytest.approx(max(r["valid_score"] for r in theirs), rel=0.15)


def test_workers_train_with_the_graph_of_all_train_sessions(ray_cluster: None, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path, models=("gcegnn",), epochs=1), SESSIONS)
    train(run)
    model = load_model(run, "gcegnn", 0)
    assert isinstance(model, PlainRecommender)
    assert isinstance(model.backbone, GCEGNN)
    items_N, offsets_S1 = train_sessions([run.read_table("data", "train")])
    neighbour_VK, count_VK = global_graph(items_N, offsets_S1, N_ITEMS, model.backbone.reach, 12)
    assert torch.equal(model.backbone.neighbour_VK, neighbour_VK.int())
    assert torch.equal(model.backbone.count_VK, count_VK.int())


def test_one_worker_learns_as_this_process_does(ray_cluster: None, tmp_path: Path) -> None:
    histories = []
    for workers in (0, 1):
        config = config_in(tmp_path / str(workers), models=("srgnn",), workers=workers, epochs=2)
        run = planted_run(config, SESSIONS)
        train(run)
        histories.append(run.read_json("train/srgnn/seed-0", "history.json"))
    here, group = histories
    assert [r["samples"] for r in group] == [r["samples"] for r in here]
    assert [r["loss"] for r in group] == pytest.approx([r["loss"] for r in here], rel=1e-4)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it ended meanwhile


def test_a_loss_that_is_not_finite_ends_without_another_try(ray_cluster: None, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path, models=("srgnn",), learning_rate=1e30, max_failures=9))
    with pytest.raises(UserError, match=r"train/srgnn/seed-0: epoch \d+: .* begins with samples train\d+:\d+") as error:
        train(run)
    keys = json.loads(Path(str(error.value).rsplit(" ", 1)[1]).read_text())
    assert len(keys) == run.config.train.batch_size // 2
    assert set(keys) <= set(run.read_table("data", "train")["sample_key"].to_pylist())
    assert ", ".join(keys[:3]) in str(error.value)


def one_update(storage: Path, workers: int, **settings: Any) -> Checkpoint:
    """SR-GNN after its first update, on all samples at once."""
    config = planted_config(str(storage), models=("srgnn",), workers=workers, epochs=1, batch_size=4096, **settings)
    still = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.0})})
    run = planted_run(still, EVEN)
    stage = Stage("train/srgnn/seed-0", run, run.below("here"))
    done = train_on_workers(stage, "srgnn", 0) if workers else train_here(stage, "srgnn", 0)
    assert done.counters.history[0]["samples"] == len(read_samples(run, source(run, "srgnn", "train")))
    return done


@pytest.mark.parametrize("settings", [{}, {"loss": "sampled", "negatives": N_ITEMS, "accumulate": 2}])
def test_two_workers_with_half_a_batch_each_take_the_step_of_one(
    ray_cluster: None, tmp_path: Path, settings: dict[str, Any]
) -> None:
    alone, group = (one_update(tmp_path / str(workers), workers, **settings) for workers in (0, 2))
    assert alone.counters.history[0]["samples"] % 2 == 0
    moments = [name for name in alone.optimizer if "exp_avg" in name]  # after one update: the gradient and its square
    assert len(moments) == 2 * len(alone.last)
    for name in moments:
        value = alone.optimizer[name]
        torch.testing.assert_close(
            group.optimizer[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name
        )
    for name, value in alone.last.items():
        certain = alone.optimizer[f"{name}.exp_avg"].abs() > 1e-6  # Adam's first step is the sign of the gradient
        torch.testing.assert_close(group.last[name][certain], value[certain], rtol=0, atol=2e-5, msg=name)


def test_storage_that_refuses_amid_training_is_one_clear_error(ray_cluster: None, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path, models=("srgnn",), max_failures=0))
    stage = Stage("train/srgnn/seed-0", run, run.below("here"))
    folder = stage.store.path("ray-train", "srgnn-seed-0")

    class Seize(ray.train.UserCallback):  # local, so that it travels by value: Ray's processes know no test files
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if os.path.isdir(folder):  # the first checkpoint is there; a file takes the place of all
                shutil.rmtree(folder)
                with open(folder, "wb"):
                    pass

    with pytest.raises(StorageError, match=r"here/ray-train cannot be written: .*run the same command again"):
        train_on_workers(stage, "srgnn", 0, [Seize()])


def test_more_workers_than_the_cluster_has(ray_cluster: None, tmp_path: Path) -> None:
    config = config_in(tmp_path, workers=500)
    hasty = config.perspectives.model_copy(update={"schedule_timeout_s": 1.0})
    run = planted_run(config)
    with pytest.raises(UserError, match="cannot schedule 500 training workers"):
        train(Run(run.config.model_copy(update={"perspectives": hasty})))


def test_a_killed_driver_goes_on_from_the_last_epoch(unbroken: Run, tmp_path: Path) -> None:
    run = planted_run(config_in(tmp_path), SESSIONS)
    root, tests = Path(__file__).parents[2], Path(__file__).parents[1]
    script = tmp_path / "driver.py"
    script.write_text(
        "from llm4sbr_ray.artifacts import Run\n"
        "from llm4sbr_ray.cluster import connect\n"
        "from llm4sbr_ray.config import ClusterConfig, RunConfig\n"
        "from llm4sbr_ray.training.trainer import train\n"
        f"config = RunConfig.model_validate_json({run.config.model_dump_json()!r})\n"
        f"connect(ClusterConfig(address={ray.get_runtime_context().gcs_address!r}))\n"
        "train(Run(config))\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(tests)])}
    driver = subprocess.Popen(
        [sys.executable, script], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    lines = []
    for line in driver.stdout:
        lines.append(line)
        if KILL_AFTER in line:
            break
    assert KILL_AFTER in lines[-1], lines
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not run.exists(FOLDER)
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "epoch 1:" not in done.stdout
    assert "epoch 5:" in done.stdout
    assert_same_model(run, unbroken)
