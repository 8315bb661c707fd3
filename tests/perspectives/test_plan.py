"""The cost of a plan: tokens over the pool's rate, on all its GPUs, at a price."""

import duckdb
import pytest

from llm4sbr_ray.config import Engine, Perspectives
from llm4sbr_ray.perspectives.cost import Cost
from llm4sbr_ray.perspectives.plan import SAMPLE, _sample


def test_cost_counts_every_gpu_of_the_pool() -> None:
    config = Perspectives(engine=Engine(actors=(1, 4), tensor_parallel_size=2), price_per_gpu_hour=2.5)
    cost = Cost.of(6_000_000, 1_200_000, 7_200_000 / 2000, config)
    assert cost.seconds == pytest.approx(3600)
    assert cost.gpu_hours == pytest.approx(8)
    assert cost.money == pytest.approx(20)


def test_without_a_rate_or_a_price_there_is_none() -> None:
    assert Cost.of(10, 10, None, Perspectives()).seconds is None
    assert Cost.of(10, 10, 5.0, Perspectives()).money is None


def test_the_sample_is_of_what_is_still_to_be_asked() -> None:
    database = duckdb.connect()
    database.execute(
        "CREATE TABLE prompts AS SELECT 'k' || i AS prompt_key, 'v' AS view, [i] AS items, NULL::INT[] AS candidates "
        "FROM range(9000) r(i)"
    )
    database.execute("CREATE TABLE asked AS SELECT 'k7' AS prompt_key, 'v' AS view")
    assert _sample(database, "v") == [([7], None)]
    database.execute("INSERT INTO asked SELECT prompt_key, view FROM prompts")
    assert len(_sample(database, "v")) == SAMPLE
