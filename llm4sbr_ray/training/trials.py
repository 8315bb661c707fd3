"""The result of a search on disk: all trials as a table, with their epochs, and the config of the best one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import yaml

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.training.checkpoint import Record
from llm4sbr_ray.training.space import Settings, Space, apply_settings, read_setting

TABLE, DETAILS, BEST = "trials.parquet", "trials.json", "best.yaml"


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended, of its own, by ASHA, or by an error."""

    number: int  # from 1, in the order of their start
    settings: Settings
    history: list[Record]  # a record an epoch; [] where none was finished
    error: str = ""

    def best_record(self) -> Record | None:
        """The epoch with the best score, the first of equals."""
        return max(self.history, key=lambda record: record["valid_score"], default=None)

    def score(self) -> float:
        record = self.best_record()
        return float("-inf") if record is None else float(record["valid_score"])

    def status(self, config: RunConfig) -> str:
        """ "finished", "stopped" (by ASHA or the time limit) or "failed"."""
        if self.error:
            return "failed"
        best = self.best_record()
        if best is None:
            return "stopped"
        train = apply_settings(config, self.settings).train
        epoch = self.history[-1]["epoch"]
        counted = "loss" not in best  # a count model has no epochs
        return "finished" if counted or epoch >= train.epochs or epoch - best["epoch"] >= train.patience else "stopped"


def best_trial(results: list[TrialResult]) -> TrialResult:
    """The one with the best score, the first of equals."""
    return max(results, key=TrialResult.score)


def write_trials(store: Store, config: RunConfig, model: str, space: Space, results: list[TrialResult]) -> None:
    """Write the three files of a search.

    Parameters
    ----------
    store
        The folder for them.
    config
        What the search began with.
    model, space
        What was tuned, and where.
    results
        All trials.
    """
    best = best_trial(results)
    rows = [_row(result, config) for result in results]
    details = {
        "model": model,
        "metric": config.train.select_by,
        "rank_seen": config.train.rank_seen,
        "seed": config.train.seeds[0],
        "space": {name: asdict(domain) for name, domain in space.items()},
        "current": {name: read_setting(config, name) for name in space},
        "best_trial": best.number,
        "trials": [
            {**row, "settings": result.settings, "history": result.history}
            for row, result in zip(rows, results, strict=True)
        ],
    }
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name in space:
        values = [result.settings[name] for result in results]
        mixed = len({type(value) for value in values}) > 1
        columns[name] = [str(value) for value in values] if mixed else values
    store.write_table(pa.table(columns), TABLE)
    store.write_json(details, DETAILS)
    store.write_bytes(best_config(config, model, best).encode(), BEST)


def _row(result: TrialResult, config: RunConfig) -> dict[str, Any]:
    best = result.best_record() or {}
    metrics = ("valid_recall@20", "valid_mrr@20", "valid_ndcg@20")
    return {
        "trial": result.number,
        "status": result.status(config),
        "valid_score": best.get("valid_score"),
        "best_epoch": best.get("epoch"),
        "epochs": len(result.history),
        "seconds": round(sum(record["seconds"] for record in result.history), 3),
        **{name: best.get(name) for name in metrics},
        "error": result.error,
    }


def best_config(config: RunConfig, model: str, best: TrialResult) -> str:
    """A whole config file, of the same run, that trains this model with the settings of its best trial."""
    tuned = apply_settings(config, best.settings)
    values = tuned.model_dump(mode="json")
    values["train"]["models"] = [model]
    changed = "\n".join(f"#   {name}: {value}" for name, value in best.settings.items())
    day = datetime.now(UTC).date().isoformat()
    head = (
        f"# {model}: trial {best.number} of a search on {day}, validation {config.train.select_by} {best.score():.4f}\n"
        f"{changed}\n"
        "# python jobs/pipeline.py --config THIS-FILE trains and evaluates it in the same run.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
