"""Connecting to Ray: the cluster the user names, the one a job runs on, or a fresh local one."""

from __future__ import annotations

import logging
import os
import sys

import ray
import ray.data

from llm4sbr_ray.config import ClusterConfig
from llm4sbr_ray.errors import UserError


def connect(cluster: ClusterConfig) -> None:
    """Connect this process to Ray, once.

    A local Ray gets `cluster.local_cpus` logical CPUs whatever the machine has: the stages of a Ray Data pipeline
    hold one each and wait for each other, so with fewer than eight a pipeline may never start.
    """
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    ray_data = ray.data.DataContext.get_current()
    ray_data.enable_progress_bars = sys.stderr.isatty()
    ray_data.print_on_execution_start = False
    # The newer Parquet reader packs small files into one block, so that nothing downstream could run in parallel or
    # be committed before the whole is done, and starts up to 32 actors to read footers.
    ray_data.use_datasource_v2 = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    options = {"log_to_driver": cluster.worker_logs, "logging_level": logging.WARNING}
    if address:
        ray.init(address=address, **options)
    else:
        ray.init(
            address="local",
            num_cpus=cluster.local_cpus,
            object_store_memory=cluster.object_store_mb * 2**20,
            include_dashboard=False,
            **options,
        )


def require(bundles: list[dict[str, float]], purpose: str, timeout_s: float) -> None:
    """Refuse in time what the cluster cannot hold.

    Asks Ray's own scheduler for the bundles (so that an autoscaler may bring nodes), waits, and gives them back.

    Raises
    ------
    UserError
        Not all bundles could be placed within `timeout_s` seconds: says what was asked and what there is.
    """
    group = ray.util.placement_group(bundles, strategy="PACK")
    try:
        if not group.wait(timeout_seconds=timeout_s):
            there = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
            raise UserError(
                f"the cluster cannot schedule {purpose} within {timeout_s:.0f} s: asked {_total(bundles)} in "
                f"{len(bundles)} bundles, the cluster has {_show(there)} of which {_show(free)} is free. Ask for less "
                "(perspectives.engine.*, train.workers) or add nodes"
            )
    finally:
        ray.util.remove_placement_group(group)


def _total(bundles: list[dict[str, float]]) -> str:
    return _show({key: sum(bundle.get(key, 0) for bundle in bundles) for key in sorted(set().union(*bundles))})


def _show(resources: dict[str, float]) -> str:
    return " and ".join(f"{value:g} {key}" for key, value in sorted(resources.items()) if value) or "nothing"
