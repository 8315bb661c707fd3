"""Fixtures that all tests share: one Ray cluster of two nodes, and one run of the whole pipeline on it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_run import ROOT, SMALL

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # else vLLM on CPUs always has a worker process
os.environ.setdefault("RAY_AUTH_MODE", "token")  # read once, when Ray is imported: clients of a cluster need it

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import ClusterConfig, load_config

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A Ray cluster of two nodes on this machine, shared by all integration tests of the process."""
    import ray
    from ray.cluster_utils import Cluster

    # A new machine has no token yet; where there is one it stays.
    subprocess.run(
        [Path(sys.executable).with_name("ray"), "get-auth-token", "--generate"], check=True, capture_output=True
    )
    store = {"num_cpus": 4, "object_store_memory": 400 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=store)
    cluster.add_node(**store)
    connect(ClusterConfig(address=cluster.address))
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def pipeline_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small demo shop through all stages, with a real vLLM engine."""
    run = Run(load_config([*SMALL, "--storage", str(tmp_path_factory.mktemp("runs"))]))
    runpy.run_path(str(ROOT / "jobs" / "pipeline.py"))["pipeline"](run)
    return run
