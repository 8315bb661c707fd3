"""docs/results.md from docs/results.json: everything between the markers of results.md is written by this script.

    python docs/results.py              write results.md anew; the prose around the markers stays
    python docs/results.py --check      say whether it is up to date
    python docs/results.py --add accuracy.tables.beauty runs/beauty/report/metrics.json --command '...'
    python docs/results.py --add training FILE --command '...'      what `benchmarks/training.py --json FILE` wrote

results.json: {"accuracy": {NAME: FIGURE, "tables": {NAME: FIGURE}}, "inference": {NAME: FIGURE}, "training": ...,
"serving": ..., "operations": ...}. A FIGURE is

    {"value": number, text or table, "command": what gives it, "commit": short hash, "date": YYYY-MM-DD, ...}

and what else it is about ("dataset", "machine", ...) stands in further keys. A table's value is {MODEL: {"test":
{"recall@5": fraction, "recall@5_std": .., ...}, "test_unseen_only": {...}, "seeds": [...]}}, MODEL named as in
metrics.json; protocols and metrics that were not kept may be missing.

results.md: a line `<!-- table NAME PROTOCOL METRIC ... -->` or `<!-- figures SECTION -->`, then a line `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from llm4sbr_ray.evaluation.variants import LLM_FREE, Variant

HERE = Path(__file__).parent
JSON, PAGE = HERE / "results.json", HERE / "results.md"
BLOCK = re.compile(r"(<!-- (table|figures) ([^>]*?) -->\n).*?(<!-- end -->\n)", re.DOTALL)
PROTOCOLS = ("test", "test_unseen_only")
SAID = {"value", "command", "commit", "date"}  # keys of a figure that have columns of their own


def render(page: str, results: dict[str, Any]) -> str:
    """The page with every marked block written anew."""

    def block(found: re.Match[str]) -> str:
        make = {"table": table, "figures": figures}[found[2]]
        return f"{found[1]}\n{make(results, *found[3].split())}\n{found[4]}"

    return BLOCK.sub(block, page)


def table(results: dict[str, Any], name: str, protocol: str, *metrics: str) -> str:
    """One row a model; the best mean of each column in bold; the spread over seeds where there are several."""
    figure = results["accuracy"]["tables"][name]
    rows = {model: entry[protocol] for model, entry in figure["value"].items() if protocol in entry}
    best = {metric: max(entry[metric] for entry in rows.values()) for metric in metrics}
    lines = [f"| model | {' | '.join(map(_heading, metrics))} |"]
    lines.append("|---|" + "---|" * len(metrics))
    for model, entry in rows.items():
        several = len(figure["value"][model]["seeds"]) > 1
        cells = []
        for metric in metrics:
            cell = _fraction(entry[metric]) + (f" ± {_fraction(entry[f'{metric}_std'])}" if several else "")
            cells.append(f"**{cell}**" if entry[metric] == best[metric] else cell)
        lines.append(f"| {label(model)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(figure)]) + "\n"


def figures(results: dict[str, Any], section: str) -> str:
    """One table for all figures that one command gave."""
    rows = {name: figure for name, figure in results[section].items() if name != "tables"}
    if not rows:
        return "Nothing measured yet.\n"
    lines: list[str] = []
    for from_where, group in groupby(rows.items(), lambda row: source(row[1])):
        members = dict(group)
        about = {name: {key: figure[key] for key in figure if key not in SAID} for name, figure in members.items()}
        first, *others = about.values()
        shared = {key: value for key, value in first.items() if all(o.get(key) == value for o in others)}
        own = {name: {k: v for k, v in said.items() if k not in shared} for name, said in about.items()}
        third = any(own.values())
        lines += [f"{from_where}{': ' if shared else ''}{_listed(shared)}", ""]
        lines += ["| figure | value | of |", "|---|---|---|"] if third else ["| figure | value |", "|---|---|"]
        for name, figure in members.items():
            lines.append(f"| {name} | {_shown(figure['value'])} |{f' {_listed(own[name])} |' if third else ''}")
        lines.append("")
    return "\n".join(lines)


def _listed(about: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {json.dumps(value).strip(chr(34))}" for key, value in about.items())


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def source(figure: dict[str, Any]) -> str:
    return f"`{figure['command']}`, commit {figure['commit']}, {figure['date']}"


def label(model: str) -> str:
    """A model of metrics.json as people read it."""
    return Variant(model.removesuffix(LLM_FREE), (), not model.endswith(LLM_FREE)).label


def _heading(metric: str) -> str:
    name, k = metric.split("@")
    return f"{'Recall' if name == 'recall' else name.upper()}@{k}"


def _fraction(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def added(
    results: dict[str, Any], place: str, measured: dict[str, Any], command: str, prefix: str = "", **about: str
) -> None:
    """Put the models of a metrics.json, or the figures of a benchmark, into `results`."""
    section, *path = place.split(".")
    if "models" in measured:
        kept = ("seeds", *PROTOCOLS)
        table = {model: {key: entry[key] for key in kept} for model, entry in measured["models"].items()}
        results[section]["tables"][path[-1]] = {"value": table, "command": command, **about}
    else:
        for name, value in measured["figures"].items():
            results[section][prefix + name] = {"value": value, "command": command, **about}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--add", nargs=2, metavar=("PLACE", "FILE"))
    parser.add_argument("--command", help="of --add: what gave FILE")
    parser.add_argument("--dataset", help="of --add: what the figures are about")
    parser.add_argument("--machine", help="of --add: where they were measured")
    parser.add_argument("--prefix", default="", help="of --add: before the figures' names, where a benchmark ran twice")
    arguments = parser.parse_args()
    results = json.loads(JSON.read_text(encoding="utf-8"))
    if arguments.add:
        if not arguments.command:
            parser.error("--add needs --command: a figure without its command is worth nothing")
        place, file = arguments.add
        git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
        about = {"commit": commit, "date": datetime.now(UTC).date().isoformat()}
        about |= {name: value for name in ("dataset", "machine") if (value := getattr(arguments, name))}
        added(results, place, json.loads(Path(file).read_text()), arguments.command, arguments.prefix, **about)
        JSON.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    made = render(page, results)
    if arguments.check:
        if made != page:
            print("docs/results.md is not what docs/results.json says: python docs/results.py", file=sys.stderr)
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
