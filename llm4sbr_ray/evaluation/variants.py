"""What is evaluated: every trained model, and LLM4SBR twice, with the LLM's answers and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm4sbr_ray.models.build import LLM4SBR_SUFFIX, is_count_model, is_llm4sbr

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
        backbone = self.model.removesuffix(LLM4SBR_SUFFIX)
        label = LABELS.get(backbone, backbone)
        if is_llm4sbr(self.model):
            label += " + LLM4SBR" + ("" if self.llm_answers else LLM_FREE_LABEL)
        return label

    @property
    def backbone(self) -> str | None:
        """The model that LLM4SBR must beat first: its own backbone. None for all others."""
        return self.model.removesuffix(LLM4SBR_SUFFIX) if is_llm4sbr(self.model) else None


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
