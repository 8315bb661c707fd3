"""RecBole's SR-GNN (recbole 1.2.1), a training step at a line of standard input: started by benchmarks/training.py.

Runs in an interpreter of its own, so it imports nothing of llm4sbr_ray. A step is forward, backward and RecBole's
optimiser (plain Adam), without clipping: less work than ours. Sessions are padded to the full length, as by RecBole.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from recbole.model.sequential_recommender.srgnn import SRGNN


class Items:
    """What the model asks of a data set: how many items, padding included."""

    def __init__(self, n: int) -> None:
        self.n = n

    def num(self, field: str) -> int:
        return self.n


def answer(value: Any) -> None:
    print("answer " + json.dumps(value), flush=True)


def main() -> None:
    task = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[task["clock"]]
    V, L = task["n_items"], task["max_length"]
    config = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": L,
        "device": "cpu",
        "embedding_size": task["width"],
        "step": 1,
        "loss_type": "CE",
    }
    model = SRGNN(config, Items(V + 1)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = []
    for items, length, target in task["batches"]:
        padded = torch.zeros(len(items), L, dtype=torch.int64)  # RecBole's padding is item 0
        items_BL = torch.tensor(items)
        padded[:, : items_BL.shape[1]] = torch.where(items_BL < V, items_BL + 1, 0)
        batches.append({"item_list": padded, "length": torch.tensor(length), "item": torch.tensor(target) + 1})
    answer("ready")
    for turn, _ in enumerate(sys.stdin):
        began = clock()
        optimizer.zero_grad()
        model.calculate_loss(batches[turn % len(batches)]).backward()
        optimizer.step()
        answer(clock() - began)


if __name__ == "__main__":
    main()
