"""The result on the terminal: a table for each protocol, the comparisons, where the page is."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm4sbr_ray.evaluation.comparisons import sentence
from llm4sbr_ray.evaluation.protocol import PROTOCOLS

SHOWN = ("recall@20", "mrr@20", "ndcg@20")  # what fits a terminal of 80 columns


def print_result(metrics: dict[str, Any], report: str, console: Console) -> None:
    """Plain text where the console is no terminal.

    Parameters
    ----------
    metrics
        metrics.json.
    report
        Where the page is.
    """
    labels = {name: model["label"] for name, model in metrics["models"].items()}
    for protocol, meaning in PROTOCOLS.items():
        title = f"{metrics['dataset']}: {meaning} (%, mean ± std over seeds)"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("model")
        for metric in SHOWN:
            table.add_column(metric, justify="right", no_wrap=True)
        best = {metric: max(m[protocol][metric] for m in metrics["models"].values()) for metric in SHOWN}
        for model in metrics["models"].values():
            figures = model[protocol]
            cells = [
                Text(
                    _cell(figures, metric, model["seeds"]),
                    style="bold" if figures[metric] == best[metric] else "",
                )
                for metric in SHOWN
            ]
            table.add_row(Text(model["label"]), *cells)
        console.print(table)
    for comparison in metrics["comparisons"]:
        if comparison["protocol"] == "test":
            console.print(sentence(comparison, labels), markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)


def _cell(figures: dict[str, float], metric: str, seeds: list[int]) -> str:
    spread = f" ± {100 * figures[metric + '_std']:.2f}" if len(seeds) > 1 else ""
    return f"{100 * figures[metric]:.2f}{spread}"
