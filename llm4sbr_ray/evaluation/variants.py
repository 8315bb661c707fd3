"""What is evaluated: every trained model, and LLM4SBR twice, with the LLM's answers and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm4sbr_ray.models.build import (
    LLM4SBR_SUFFIX,
    MEMORY_SUFFIX,
    backbone_of,
    has_memory,
    is_count_model,
    is_llm4sbr,
    reads_texts,
)

LLM_FREE = ":llm-free"
LLM_FREE_LABEL = " (LLM-free)"


@dataclass(frozen=True)
class Variant:
    """One row of the report."""

    model: str  # as in config.train.models
    seeds: tuple[int, ...]
    llm_answers: bool  # scored with the LLM's answers for the test sessions

    @property
    def name(self) -> str:
        """As in metrics.json."""
        return self.model + (LLM_FREE if is_llm4sbr(self.model) and not self.llm_answers else "")

    @property
    def label(self) -> str:
        """As people read it."""
        backbone = backbone_of(self.model)
        label = LABELS.get(backbone, backbone)
        if is_llm4sbr(self.model):
            label += " + LLM4SBR"
        elif reads_texts(self.model):
            label += " + text start"
        if has_memory(self.model):
            label += " + memory"
        return label + (LLM_FREE_LABEL if is_llm4sbr(self.model) and not self.llm_answers else "")

    @property
    def backbone(self) -> str | None:
        """The model that LLM4SBR or a memory must beat first: its own backbone. None for all others."""
        return backbone_of(self.model) if is_llm4sbr(self.model) or has_memory(self.model) else None

    @property
    def without_llm4sbr(self) -> str | None:
        """For LLM4SBR with a memory: the backbone with the same memory. None for all others."""
        both = is_llm4sbr(self.model) and has_memory(self.model)
        return self.model.replace(LLM4SBR_SUFFIX + MEMORY_SUFFIX, MEMORY_SUFFIX) if both else None


LABELS = {
    "popularity": "Popularity",
    "itemknn": "Item-kNN",
    "rules": "Sequential rules",
    "sknn": "Session-kNN",
    "stan": "STAN",
    "vmis": "VMIS-kNN",
    "srgnn": "SR-GNN",
    "narm": "NARM",
    "stamp": "STAMP",
    "gcegnn": "GCE-GNN",
    "dhcn": "S2-DHCN",
    "gru4rec": "GRU4Rec",
    "sasrec": "SASRec",
    "hstu": "HSTU",
}  # a model that is not listed is shown by its name


def variants(models: Sequence[str], seeds: Sequence[int], test_answers: bool) -> list[Variant]:
    """All variants in the order of `models`.

    Parameters
    ----------
    models
        config.train.models.
    seeds
        config.train.seeds; models that count are fitted for the first alone.
    test_answers
        Whether the LLM was asked about test sessions.
    """
    result = []
    for model in models:
        own_seeds = tuple(seeds[:1] if is_count_model(model) else seeds)
        if is_llm4sbr(model) and test_answers:
            result.append(Variant(model, own_seeds, llm_answers=True))
        result.append(Variant(model, own_seeds, llm_answers=False))
    return result


def path_name(name: str) -> str:
    """A variant's name in a path: ":" becomes "-"."""
    return name.replace(":", "-")
