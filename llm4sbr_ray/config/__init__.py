"""Every setting of a run: one model a stage, one `RunConfig`, read from a YAML file and the command line.

    config = load_config(["--config", "configs/demo.yaml", "--train.epochs", "3"])

Field docs stand beside the fields. A value given on the command line (``--stage.name value``) wins over the file.
"""

from llm4sbr_ray.config.data import Columns, DataConfig, DemoShop, Split
from llm4sbr_ray.config.load import load_config
from llm4sbr_ray.config.models import ItemKNN, MemoryConfig, ModelConfig, Neighbours, Rules, Stan, Text, Vmis
from llm4sbr_ray.config.perspectives import (
    LONG_TERM,
    SHORT_TERM,
    Budget,
    Candidates,
    Choice,
    Engine,
    JsonOutput,
    OwnSampling,
    Perspective,
    Perspectives,
    PocketLM,
    Sampling,
)
from llm4sbr_ray.config.run import ClusterConfig, RunConfig, TrackingConfig
from llm4sbr_ray.config.section import NAME_PATTERN, Bounds, Section
from llm4sbr_ray.config.training import EvaluateConfig, ExportConfig, TrainConfig, TuneConfig

__all__ = [
    "LONG_TERM",
    "NAME_PATTERN",
    "SHORT_TERM",
    "Bounds",
    "Budget",
    "Candidates",
    "Choice",
    "ClusterConfig",
    "Columns",
    "DataConfig",
    "DemoShop",
    "Engine",
    "EvaluateConfig",
    "ExportConfig",
    "ItemKNN",
    "JsonOutput",
    "MemoryConfig",
    "ModelConfig",
    "Neighbours",
    "OwnSampling",
    "Perspective",
    "Perspectives",
    "PocketLM",
    "Rules",
    "RunConfig",
    "Sampling",
    "Section",
    "Split",
    "Stan",
    "Text",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "Vmis",
    "load_config",
]
