"""Items that nobody has clicked, taken up by their titles: how often they are found, against popularity.

    python benchmarks/cold_items.py runs/demo --json FILE

The catalogue's items without a click in training get the vectors that `new_items` of the service gives to new titles,
in place of their untrained ones. Asked are the test samples that end with one of them, and all others, LLM-free; items
of the session are left out of the ranking. Ties count against the model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llm4sbr_ray.config import Text
from llm4sbr_ray.models.base import SessionVectors
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.new_items import encode_titles, place

K = 20


@torch.inference_mode()
def cold_items(bundle: Bundle, text: Text, samples: list[dict[str, Any]]) -> dict[str, Any]:
    catalogue, model = bundle.catalogue(), bundle.model()
    (cold,) = np.nonzero(catalogue.train_count_V == 0)
    is_cold = set(cold.tolist())
    title_NE = encode_titles([catalogue.titles[j] or "" for j in cold], text)
    placed = place(title_NE, model, catalogue.train_count_V)
    warm = torch.tensor([j for j in range(len(catalogue)) if j not in is_cold])
    nearest = warm[(torch.from_numpy(title_NE) @ model.item_text_VE[warm].T).argmax(dim=1)].tolist()
    read_as = dict(zip(cold.tolist(), nearest, strict=True))

    before_VD = model.backbone.item_vectors()
    after_VD = before_VD.clone()
    after_VD[torch.from_numpy(cold)] = placed.vector_ND
    popular_V = torch.from_numpy(catalogue.train_count_V.astype(np.float32))
    figures: dict[str, Any] = {"new_items": len(cold)}
    for name, wanted in (("new_items", True), ("other_items", False)):
        asked = [row for row in samples if (row["target"] in is_cold) is wanted]
        session_BD = sessions(model, len(catalogue), [[read_as.get(j, j) for j in row["items"]] for row in asked])
        figures |= {
            f"{name}_samples": len(asked),
            f"{name}_recall@{K}": recall(session_BD @ after_VD.T, asked),
            f"{name}_recall@{K}_without_titles": recall(session_BD @ before_VD.T, asked),
            f"{name}_recall@{K}_popularity": recall(popular_V.expand(len(asked), -1).clone(), asked),
        }
    return figures


def sessions(model: LLM4SBR, n_items: int, items: list[list[int]]) -> Tensor:
    """B x D: fused vectors with predicted intents."""
    stacked = np.stack(SessionEncoder(model, n_items).encode(items))
    vectors = SessionVectors(*torch.from_numpy(stacked).unbind(1))
    return model.fuse(vectors, model.intent_vectors(vectors, None)).session_BD


def recall(scores_BV: Tensor, asked: list[dict[str, Any]]) -> float:
    hits = 0
    for scores_V, row in zip(scores_BV, asked, strict=True):
        scores_V[[j for j in row["items"] if j != row["target"]]] = -torch.inf
        hits += int((scores_V >= scores_V[row["target"]]).sum()) <= K
    return round(hits / max(1, len(asked)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--samples", type=int, default=4000, help="test samples asked at most")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.run / "data" / "test", columns=["items", "target"])
    text = Text.model_validate(json.loads((arguments.run / "run.json").read_text())["config"]["text"])
    figures = cold_items(Bundle(str(arguments.run / "bundle")), text, table.slice(0, arguments.samples).to_pylist())
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
