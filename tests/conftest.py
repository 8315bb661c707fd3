"""Fixtures that all tests share: one Ray for those that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm4sbr_ray.cluster import connect
from llm4sbr_ray.config import ClusterConfig


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A running local Ray, shared by all integration tests of the process."""
    import ray

    connect(ClusterConfig(local_cpus=8, object_store_mb=512))
    yield
    ray.shutdown()
