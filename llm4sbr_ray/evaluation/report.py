"""``report/index.html``: the evaluation for eyes. One file, no script, nothing loaded from a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from llm4sbr_ray.evaluation.breakdown import BREAKDOWN_METRICS
from llm4sbr_ray.evaluation.comparisons import sentence
from llm4sbr_ray.evaluation.metrics import METRICS
from llm4sbr_ray.evaluation.page import page
from llm4sbr_ray.evaluation.plots import Line, line_plot
from llm4sbr_ray.evaluation.protocol import PROTOCOLS
from llm4sbr_ray.evaluation.variants import LLM_FREE, LLM_FREE_LABEL
from llm4sbr_ray.models.build import has_memory, is_count_model

Curves = dict[str, dict[int, list[dict[str, Any]]]]  # model -> seed -> history


@dataclass(frozen=True)
class ReportData:
    """All that the page shows."""

    metrics: dict[str, Any]  # metrics.json
    curves: Curves
    select_by: str  # validation metric that picked the epoch
    refused: dict[str, int]  # quarantined rows by reason
    stages: dict[str, dict[str, Any]]  # the manifest's: rows and seconds
    examples: list[dict[str, Any]]  # of `examples.collect_examples`


def render_report(data: ReportData) -> str:
    """The page as HTML. Titles and answers are other people's text: all is escaped but our own plots."""
    metrics = data.metrics
    labels = {name: model["label"] for name, model in metrics["models"].items()}
    template = page("report.html", percent=percent, number=number, duration=duration, metric=metric_name)
    return template.render(
        data=data,
        m=metrics,
        labels=labels,
        metric_names=METRICS,
        protocols=PROTOCOLS,
        best={p: {k: max(round(m[p][k], 6) for m in metrics["models"].values()) for k in METRICS} for p in PROTOCOLS},
        comparisons={p: [_told(c, labels) for c in metrics["comparisons"] if c["protocol"] == p] for p in PROTOCOLS},
        curves=_curve_plots(data, labels),
        breakdowns=_breakdowns(metrics, labels),
        cost=data.stages.get("perspectives", {}).get("cost"),
        total_seconds=sum(stage["seconds"] for stage in data.stages.values()),
    )


def percent(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None) -> str:
    """Grouped; a decimal only where it matters."""
    if value is None:
        return "n/a"
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def metric_name(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{'Recall' if name == 'recall' else name.upper()}@{k}"


def _told(comparison: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    """A comparison with its sentence and the mood of its card."""
    significant = comparison["p_value"] < 0.05
    mood = ("better" if comparison["difference"] > 0 else "worse") if significant else "open"
    return comparison | {"sentence": sentence(comparison, labels), "mood": mood}


def _curve_plots(data: ReportData, labels: dict[str, str]) -> list[Markup]:
    loss, score = [], []
    trained = [model for model in data.curves if not (is_count_model(model) or has_memory(model))]
    for model in trained:
        # LLM4SBR has one training and up to two rows of results; its curve takes the colour of the first.
        n = next(n for n, name in enumerate(labels) if name.removesuffix(LLM_FREE) == model)
        label = list(labels.values())[n].removesuffix(LLM_FREE_LABEL)
        for history in data.curves[model].values():
            epochs = [record["epoch"] for record in history]
            loss.append(Line(n, label, epochs, [record["loss"] for record in history]))
            for dashed, (key, extra) in enumerate((("valid_", ""), ("valid_llm_free_", LLM_FREE_LABEL))):
                key += data.select_by
                if all(key in record for record in history):
                    score.append(Line(n, label + extra, epochs, [100 * record[key] for record in history], dashed))
    if not loss:
        return []
    return [
        Markup(line_plot(loss, "epoch", "training loss", "curve-loss")),
        Markup(line_plot(score, "epoch", f"validation {metric_name(data.select_by)}, %", "curve-score")),
    ]


def _breakdowns(metrics: dict[str, Any], labels: dict[str, str]) -> list[dict[str, Any]]:
    titles = {
        "session_length": "By clicks in the session so far",
        "target_popularity": "By popularity of the next item",
    }
    axes = {
        "session_length": "clicks in the session",
        "target_popularity": "training clicks on the next item",
    }
    result = []
    for kind, groups in metrics["breakdown"].items():
        ticks = [re.sub(r"( training)? clicks?|: 0", "", group["group"]) for group in groups]
        plots = {}
        for protocol in PROTOCOLS:
            lines = []
            for n, (name, label) in enumerate(labels.items()):
                recall = [100 * group["models"][name][protocol]["recall@20"] for group in groups]
                lines.append(Line(n, label, range(len(groups)), recall))
            id_prefix = f"{kind}-{protocol}".replace("_", "-")
            plots[protocol] = Markup(line_plot(lines, axes[kind], "Recall@20, %", id_prefix, ticks))
        result.append({"title": titles[kind], "groups": groups, "plots": plots, "metrics": BREAKDOWN_METRICS})
    return result
