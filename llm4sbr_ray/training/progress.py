"""What is shown of a training, one line an epoch."""

from __future__ import annotations

from llm4sbr_ray.training.checkpoint import Counters


def epoch_line(stage: str, counters: Counters) -> str:
    """What is shown of the last epoch."""
    record = counters.history[-1]
    loss, rate = record["loss"], record["samples_per_second"]
    metrics = ", ".join(
        f"{name.removeprefix('valid_').replace('llm_free_', 'LLM-free ')} {value:.4f}"
        for name, value in record.items()
        if name.startswith("valid_") and "@" in name and "ndcg" not in name
    )
    best = ", best so far" if counters.best_epoch == counters.epoch else ""
    return f"[{stage}] epoch {counters.epoch}: loss {loss:.4f}, valid {metrics}, {rate:,.0f} samples/s{best}"
