"""kill -9 of driver, engine and node within the LLM stage: nothing answered is lost or asked again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster
from small_run import ROOT, SLOW, SMALL

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
NODE = {"num_cpus": 4, "object_store_memory": 150 * 2**20}


@pytest.fixture
def cluster(ray_cluster: None) -> Iterator[Cluster]:
    """A cluster of this test alone: a head without work and two nodes, of which one is to die."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    for _ in range(2):
        made.add_node(**NODE)
    yield made
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    made.shutdown()
    for process in left:  # workers of the killed node
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def start(storage: Path, cluster: Cluster) -> subprocess.Popen[bytes]:
    """`jobs/infer.py` as a user starts it."""
    settings = [*SMALL, *SLOW, "--storage", str(storage), "--cluster.address", cluster.address]
    return subprocess.Popen([sys.executable, "jobs/infer.py", *settings], cwd=ROOT, start_new_session=True)


def engine_of(cluster: Cluster) -> tuple[Any, psutil.Process] | None:
    """The node that an engine actor runs on, and the actor's process."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "vLLMEngine" in " ".join(process.cmdline()):
                    return node, process
    return None


def committed(run: Run) -> set[str]:
    """Keys of the blocks that Ray Data has recorded as written."""
    done = run.below(".partial/perspectives/out/work/done/round-0")
    return set().union(*(keys_in(path) for path in done.files(suffix=".parquet") if "pending" not in path))


@cache  # a block is asked for many times a second, beside the engine, and never changes
def keys_in(path: str) -> frozenset[str]:
    return frozenset(pq.read_table(path)["prompt_key"].to_pylist())


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str) -> Any:
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert process.poll() is None, f"the job ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def test_a_killed_llm_stage_goes_on(pipeline_run: Run, tmp_path: Path, cluster: Cluster) -> None:
    run = Run(load_config([*SMALL, "--storage", str(tmp_path)]))
    for name in ("data", "pocket-lm"):  # the stages before it, as the undisturbed run committed them
        run.fs.create_dir(run.path(name))
        pa.fs.copy_files(pipeline_run.path(name), run.path(name))
    manifest = pipeline_run.manifest()
    manifest["stages"] = {name: manifest["stages"][name] for name in ("ingest", "pocket-lm")}
    run.write_json(manifest, "run.json")

    driver = start(tmp_path, cluster)
    wait_for(lambda: committed(run), driver, "a block was written")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    work = run.below(".partial/perspectives/out/work")
    before = committed(run)
    asked = work.read_table("asked", "round-0")["prompt_key"].to_pylist()
    assert 0 < len(before) < len(asked)
    kept = {row["prompt_key"]: row["answer"] for row in work.read_table("answers", "round-0").to_pylist()}

    driver = start(tmp_path, cluster)
    wait_for(lambda: committed(run) - before, driver, "another block was written")
    found = engine_of(cluster)
    assert found is not None
    os.kill(found[1].pid, signal.SIGKILL)
    seen = committed(run)
    node, _ = wait_for(lambda: committed(run) - seen and engine_of(cluster), driver, "another engine had answered")
    assert len(committed(run)) < len(asked)
    cluster.remove_node(node, allow_graceful=False)
    assert driver.wait(timeout=400) == 0

    figures = run.manifest()["stages"]["perspectives"]
    assert figures["prompts"] == len(asked)
    equal = total = 0
    for view in ("long-term", "short-term"):
        assert figures["perspectives"][view]["errors"] == 0
        ours = run.read_table("perspectives", view).to_pylist()
        undisturbed = pipeline_run.read_table("perspectives", view).to_pylist()
        assert [row["sample_key"] for row in ours] == [row["sample_key"] for row in undisturbed]
        for row in ours:
            if row["prompt_key"] in before:
                assert row["answer"] == kept[row["prompt_key"]]
        equal += sum(a["answer"] == b["answer"] for a, b in zip(ours, undisturbed, strict=True))
        total += len(ours)
    # The engine's sums depend in their last bits on which prompts share a batch, which can turn a near tie.
    assert equal >= 0.99 * total
