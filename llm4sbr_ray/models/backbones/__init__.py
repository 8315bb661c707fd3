"""The session recommenders that LLM4SBR can wrap: one file and one line here a backbone."""

from __future__ import annotations

from collections.abc import Callable

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.dhcn import DHCN
from llm4sbr_ray.models.backbones.gcegnn import GCEGNN
from llm4sbr_ray.models.backbones.gru4rec import GRU4Rec
from llm4sbr_ray.models.backbones.hstu import HSTU
from llm4sbr_ray.models.backbones.narm import NARM
from llm4sbr_ray.models.backbones.sasrec import SASRec
from llm4sbr_ray.models.backbones.srgnn import SRGNN
from llm4sbr_ray.models.backbones.stamp import STAMP
from llm4sbr_ray.models.base import Backbone

BACKBONES: dict[str, Callable[[int, ModelConfig], Backbone]] = {  # name -> constructor(n_items, config)
    "srgnn": SRGNN,
    "narm": NARM,
    "stamp": STAMP,
    "gcegnn": GCEGNN,
    "dhcn": DHCN,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "hstu": HSTU,
}
