"""The model that a training starts from."""

from __future__ import annotations

from torch import Tensor, nn

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.base import GraphBackbone
from llm4sbr_ray.models.build import reads_texts
from llm4sbr_ray.models.catalogue_loss import TextSmoothing
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.text_neighbours import text_neighbours
from llm4sbr_ray.models.text_space import start_from_text
from llm4sbr_ray.training.counts import train_sessions
from llm4sbr_ray.training.inputs import parquet_files
from llm4sbr_ray.training.load import new_model, read_item_text


def starting_model(run: Run, model: str) -> LLM4SBR | PlainRecommender:
    """An untrained neural model on the CPU, the graph of a `GraphBackbone` read from the train sessions.

    The graph follows from the data alone: every worker and every try finds the same one.
    """
    built = new_model(run, run.config, model)
    assert isinstance(built, LLM4SBR | PlainRecommender)
    if isinstance(built.backbone, GraphBackbone):
        tables = (
            run.read_table(file, columns=["items", "target", "is_last"]) for file in parquet_files(run, "data/train")
        )
        built.backbone.fit_graph(*train_sessions([table.filter(table["is_last"]) for table in tables]))
    if reads_texts(model):
        give_texts(built, run.config.model, read_item_text(run))
    return built


def give_texts(model: LLM4SBR | PlainRecommender, config: ModelConfig, item_text_VE: Tensor) -> None:
    """All that a model has from the item texts beside perspectives: its start and the smoothing of its targets.

    A plain model with them is what "+text" says.
    """
    if isinstance(model, PlainRecommender):  # `text_start` is what its name says
        unused = nn.Linear(item_text_VE.shape[1], config.width)
        start_from_text(model.backbone.item_embedding, unused, item_text_VE, config.text_spread)
    elif config.text_start:
        model.start_from_text()
    neighbours = text_neighbours(item_text_VE) if config.text_smoothing else None
    if neighbours is not None:
        model.text_smoothing = TextSmoothing(config.text_smoothing, neighbours)
