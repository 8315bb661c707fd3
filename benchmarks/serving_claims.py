"""The service's way to an answer against two others: Python loops over the items, and an LLM in each request.

    python benchmarks/serving_claims.py runs/demo --json FILE

Three ways from the clicks of one session to its 20 best items with reasons, each in a process of its own, one session
at a time, without HTTP:

  service   as served: batched tensors, intents from the cache or predicted
  loops     the same model and the same answer, every score and every cosine a Python loop over the catalogue
  llm       a vLLM engine asked about the session first (the run's LLM or pocket LM), then as served

Latency is that of the wall clock, memory the peak of the process (Linux: resident), as both are with torch loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from llm4sbr_ray.models.base import SessionVectors
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.cache import prefix_keys, session_key
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.enrichment import Enrichment, reading
from llm4sbr_ray.serving.explain import intents, recommendations
from llm4sbr_ray.serving.graph import Fused, Wanted
from llm4sbr_ray.serving.reader import SessionReader

DEVICE = "cpu"  # of the engine, as all else here is on the CPU
WAYS, K, STALE_CLICKS = ("service", "loops", "llm"), 20, 3
Way = Callable[[list[int]], list[int]]


def service(bundle: Bundle, _: Path) -> Way:
    fused, catalogue = Fused(bundle, 100_000, STALE_CLICKS), bundle.catalogue()
    return lambda items: answer(fused, bundle, catalogue, items)


def answer(fused: Fused, bundle: Bundle, catalogue: Any, items: list[int]) -> list[int]:
    names = [perspective.name for perspective in bundle.manifest.perspectives]
    ranking = fused.rank_all([Wanted(items, sorted(set(items)), K)])[0].ranking
    intents(ranking, names, catalogue)
    recommendations(ranking, names, catalogue)
    return list(ranking.item_k.tolist())


def loops(bundle: Bundle, _: Path) -> Way:
    """Predicted intents alone: the sessions that it is asked are not in the cache."""
    model, encoder = bundle.model(), SessionEncoder(bundle.model(), bundle.manifest.n_items)
    R = bundle.manifest.localised_items
    with torch.inference_mode():
        item_VD: list[list[float]] = model.backbone.item_vectors().tolist()
        text_VD: list[list[float]] = model.item_intents().tolist()

    def product(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    @torch.inference_mode()
    def rank(items: list[int]) -> list[int]:
        vectors = SessionVectors(*(torch.from_numpy(part)[None] for part in encoder.encode([items])[0]))
        z_BPD = model.intent_vectors(vectors, None)
        fused = model.fuse(vectors, z_BPD)
        score_V = [product(fused.session_BD[0].tolist(), vector) for vector in item_VD]
        best = sorted((j for j in range(len(score_V)) if j not in items), key=lambda j: -score_V[j])[:K]
        for z_D, part_D in zip(z_BPD[0].tolist(), fused.part_BPD[0].tolist(), strict=True):  # the reasons
            nearest = [product(z_D, vector) for vector in text_VD]
            sorted(range(len(nearest)), key=lambda j: -nearest[j])[:R]
            [product(part_D, item_VD[j]) for j in best]
        return best

    return rank


def llm(bundle: Bundle, run: Path) -> Way:
    reader = SessionReader(*reading(Enrichment(run=str(run.absolute()), engine={"device": DEVICE}), bundle))
    fused, catalogue = Fused(bundle, 100_000, STALE_CLICKS), bundle.catalogue()

    def rank(items: list[int]) -> list[int]:
        (said,) = reader.read([items])
        if said is not None:
            fused._cache.put(session_key(items), said)
        return answer(fused, bundle, catalogue, items)

    return rank


def measure(way: str, run: Path, requests: int) -> dict[str, Any]:
    """Figures of this process."""
    bundle = Bundle(str(run.absolute() / "bundle"))
    known = {key for key, _ in bundle.intents()}
    rows = pq.read_table(run / "data" / "test", columns=["items"])["items"].to_pylist()
    rows += [items[::-1] for items in rows]  # of a small run all are known: other orders are not
    unread = (items for items in rows if len(items) > 2 and known.isdisjoint(prefix_keys(items)[-STALE_CLICKS - 1 :]))
    sessions = list(islice(unread, requests + 1))
    rank = {"service": service, "loops": loops, "llm": llm}[way](bundle, run)
    rank(sessions[0])
    times, found = [], []
    for items in sessions[1:]:
        began = time.perf_counter()
        found.append(rank(items))
        times.append(1000 * (time.perf_counter() - began))
    quantiles = {f"p{q}_ms": round(float(np.percentile(times, q)), 3) for q in (50, 90)}
    return {**quantiles, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "found": found[:10]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with its bundle, and its pocket-lm/ if it names no LLM")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--without", action="append", default=[], choices=WAYS)
    parser.add_argument("--way", choices=WAYS, help="measure this one, in this process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.run, arguments.requests)))
        return
    rows = {}
    for way in (way for way in WAYS if way not in arguments.without):
        command = [sys.executable, __file__, str(arguments.run), "--way", way, "--requests", str(arguments.requests)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[way] = json.loads(done.stdout.splitlines()[-1])
    if "loops" in rows:  # they give the same answers
        same = [a == b for a, b in zip(rows["service"]["found"], rows["loops"]["found"], strict=True)]
        assert all(same), f"{same.count(False)} of {len(same)} rankings differ"
    figures: dict[str, Any] = {}
    for way, row in rows.items():
        figures |= {f"claims_{way}_{name}": value for name, value in row.items() if name != "found"}
    for way in rows.keys() - {"service"}:
        for name in ("p50_ms", "p90_ms", "peak_mib"):
            figures[f"claims_{name}_below_{way}"] = round(1 - rows["service"][name] / rows[way][name], 4)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
