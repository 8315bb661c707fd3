"""The actors that encode texts: how many, on what, and that their number changes nothing."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4sbr_ray.config import Text
from llm4sbr_ray.perspectives import intents
from llm4sbr_ray.perspectives.item_level import embeddings
from llm4sbr_ray.perspectives.text_encoder import TextEncoder

pytestmark = pytest.mark.integration


def test_several_actors_encode_as_one_encoder_does(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intents, "BLOCK_ROWS", 50)  # so that there is something to share
    texts = [f"lamp number {number} of series {number % 7}" for number in range(180)]
    text = Text(actors=(2, 2))
    encoded = intents.encode(pa.table({"item_idx": pa.array(range(180), pa.int32()), "text": texts}), text)
    assert encoded["item_idx"].to_pylist() == list(range(180))
    np.testing.assert_allclose(embeddings(encoded), TextEncoder(text).encode(texts), atol=1e-5)


@pytest.mark.parametrize(("device", "gpus"), [("auto", 0), ("cpu", 0), ("gpu", 1)])
def test_an_actor_takes_a_gpu_where_it_should(ray_cluster: None, device: Any, gpus: int) -> None:
    assert intents.encoder_pool(Text(device=device))["num_gpus"] == gpus  # this cluster has none
