"""The cost of a plan: tokens over the pool's rate, on all its GPUs, at a price."""

import pytest

from llm4sbr_ray.config import Engine, Perspectives
from llm4sbr_ray.perspectives.plan import Cost


def test_cost_counts_every_gpu_of_the_pool() -> None:
    config = Perspectives(engine=Engine(actors=(1, 4), tensor_parallel_size=2), price_per_gpu_hour=2.5)
    cost = Cost.of(6_000_000, 1_200_000, 2000.0, config)
    assert cost.seconds == pytest.approx(3600)
    assert cost.gpu_hours == pytest.approx(8)
    assert cost.money == pytest.approx(20)


def test_without_a_rate_or_a_price_there_is_none() -> None:
    assert Cost.of(10, 10, None, Perspectives()).seconds is None
    assert Cost.of(10, 10, 5.0, Perspectives()).money is None
