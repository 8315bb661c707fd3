"""The actors that encode texts: what each takes."""

from typing import Any

import pytest

from llm4sbr_ray.config import Text
from llm4sbr_ray.perspectives.intents import encoder_pool

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("device", "gpus"), [("auto", 0), ("cpu", 0), ("gpu", 1)])
def test_an_actor_takes_a_gpu_where_it_should(ray_cluster: None, device: Any, gpus: int) -> None:
    assert encoder_pool(Text(device=device))["num_gpus"] == gpus  # this cluster has none
