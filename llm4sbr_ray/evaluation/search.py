"""A search for eyes: the best trials on the console, and ``tune/<model>/index.html``. Validation data alone."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.evaluation.page import page
from llm4sbr_ray.evaluation.plots import Line, line_plot, point_plot
from llm4sbr_ray.evaluation.report import duration, metric_name, percent
from llm4sbr_ray.training.tune import tune_folder

SHOWN_TRIALS = 8  # on the console
CURVES = 12  # lines of the plot of epochs: more would hide each other


def show_search(run: Run, model: str) -> None:
    """Print the best trials of a search, and write its page."""
    folder = tune_folder(model)
    details = run.read_json(folder, "trials.json")
    run.write_bytes(render_search(details, run.config.dataset or run.config.name).encode(), folder, "index.html")
    print_search(details, Console())
    print(f"page: {run.uri(folder, 'index.html')}", flush=True)
    print(f"config of the best trial: {run.uri(folder, 'best.yaml')}", flush=True)


def print_search(details: dict[str, Any], console: Console) -> None:
    """The best trials as a table; plain text where the console is no terminal.

    Parameters
    ----------
    details
        trials.json.
    console
        Where to.
    """
    title = f"{details['model']}: the best of {len(details['trials'])} trials, validation {details['metric']} in %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("trial", "score", "epochs", "status"):
        table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for name in details["space"]:
        table.add_column(Text(name.split(".")[-1].replace("_", " ")), justify="right")
    for trial in _ranked(details)[:SHOWN_TRIALS]:
        values = [Text(shown(trial["settings"][name])) for name in details["space"]]
        fixed = (str(trial["trial"]), percent(trial["valid_score"]), str(trial["epochs"]), trial["status"])
        table.add_row(*fixed, *values, style="bold" if trial["trial"] == details["best_trial"] else "")
    console.print(table)


def render_search(details: dict[str, Any], dataset: str) -> str:
    """The page as HTML: one file, no script, nothing loaded from a network."""
    ranked = _ranked(details)
    plots = [_history_plot(details), *([_epoch_plot(details, ranked)] if len(ranked[0]["history"]) > 1 else [])]
    template = page("search.html", percent=percent, duration=duration, metric=metric_name, shown=shown)
    return template.render(
        d=details,
        dataset=dataset,
        trials=[*ranked, *(trial for trial in details["trials"] if trial["valid_score"] is None)],
        seconds=sum(trial["seconds"] for trial in details["trials"]),
        plots=plots,
        scatters=[_scatter(details, name, n) for n, name in enumerate(details["space"])],
    )


def shown(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ranked(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that have a score, best first."""
    scored = [trial for trial in details["trials"] if trial["valid_score"] is not None]
    return sorted(scored, key=lambda trial: (-trial["valid_score"], trial["trial"]))


def _axis(details: dict[str, Any]) -> str:
    return f"validation {metric_name(details['metric'])}, %"


def _history_plot(details: dict[str, Any]) -> Markup:
    scored = [trial for trial in details["trials"] if trial["valid_score"] is not None]
    numbers = [trial["trial"] for trial in scored]
    scores = [100 * trial["valid_score"] for trial in scored]
    lines = [Line(0, "a trial", numbers, scores, 2), Line(1, "the best so far", numbers, list(accumulate(scores, max)))]
    return Markup(line_plot(lines, "trial", _axis(details), "history"))


def _epoch_plot(details: dict[str, Any], ranked: list[dict[str, Any]]) -> Markup:
    lines = [
        Line(
            1 if trial["trial"] == details["best_trial"] else 0,
            "the best trial" if trial["trial"] == details["best_trial"] else "others",
            [record["epoch"] for record in trial["history"]],
            [100 * record["valid_score"] for record in trial["history"]],
        )
        for trial in reversed(ranked[:CURVES])  # the best one last, so that it lies on top
    ]
    return Markup(line_plot(lines, "epoch", _axis(details), "epochs"))


def _scatter(details: dict[str, Any], name: str, number: int) -> Markup:
    domain = details["space"][name]
    scored = [trial for trial in details["trials"] if trial["valid_score"] is not None]
    if domain["kind"] == "choice":
        scored.sort(key=lambda trial: domain["values"].index(trial["settings"][name]))
        points = [(str(trial["settings"][name]), 100 * trial["valid_score"]) for trial in scored]
    else:
        points = [(trial["settings"][name], 100 * trial["valid_score"]) for trial in scored]
    best = [trial["trial"] for trial in scored].index(details["best_trial"])
    log = domain["kind"].startswith("log")
    return Markup(point_plot(points, best, name, _axis(details), f"setting-{number}", log))
