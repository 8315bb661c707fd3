"""All settings of one run."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from llm4sbr_ray.config.data import DataConfig
from llm4sbr_ray.config.models import MemoryConfig, ModelConfig, Neighbours, Text
from llm4sbr_ray.config.perspectives import Perspectives
from llm4sbr_ray.config.section import NAME_PATTERN, Section
from llm4sbr_ray.config.training import EvaluateConfig, ExportConfig, TrainConfig, TuneConfig


class ClusterConfig(Section):
    address: str | None = None  # None: RAY_ADDRESS if set, else a fresh local Ray; "auto": the cluster running here
    local_cpus: int = Field(default=8, ge=1)  # logical CPUs of a fresh local Ray: stages wait for each other below 8
    object_store_mb: int = Field(default=1024, ge=128)  # of a fresh local Ray
    worker_logs: bool = False  # print what workers print (vLLM says a lot); Ray keeps it in its log folder anyway


class TrackingConfig(Section):
    mlflow: bool = False  # send settings and figures to MLflow; MLFLOW_TRACKING_URI in the environment says where
    experiment: str = "llm4sbr_ray"  # of MLflow


class RunConfig(BaseSettings):
    """All settings of one run; `name` and `storage` place it: ``<storage>/<name>/``."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, cli_prog_name="llm4sbr_ray")

    name: str = Field(pattern=NAME_PATTERN)
    storage: str = "runs"  # local path or URI (s3://, gs://)
    dataset: str = ""  # shown in reports; empty: the run's name
    seed: int = 0
    data: DataConfig
    perspectives: Perspectives = Perspectives()
    text: Text = Text()
    model: ModelConfig = ModelConfig()
    neighbours: Neighbours = Neighbours()
    memory: MemoryConfig = MemoryConfig()
    train: TrainConfig = TrainConfig()
    tuned: dict[str, dict[str, bool | int | float | str | None]] = {}  # model -> its own settings (training/tuned.py)
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # never the environment: a variable called NAME must not rename a run
