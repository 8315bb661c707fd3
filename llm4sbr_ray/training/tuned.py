"""Settings of single models: the section `tuned` of a config, so that one run holds models tuned each for itself.

tuned:
  sasrec: {model.dropout: 0.4, train.learning_rate: 1.0e-3}
  sasrec+llm4sbr: {model.dropout: 0.4, train.learning_rate: 1.0e-3}
  rules: {neighbours.rules.reach: 10}

A "+memory" model has the settings of its network and of its parts. What jobs/tune.py finds (best.yaml) goes here.
"""

from __future__ import annotations

import copy

from pydantic import ValidationError

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.build import has_memory, require_known, without_memory
from llm4sbr_ray.training.space import NOT_SEARCHED, NOT_TRAINING, Settings, apply_settings

SHARED = frozenset({"model.max_length"})  # of all models of a run: sessions are cut once for an evaluation


def run_for_model(run: Run, model: str) -> Run:
    """The same run with this model's own settings; its manifest still records the whole config.

    Raises
    ------
    UserError
        A name or value in `tuned` that doesn't exist or is refused, or a setting that isn't a model's own.
    """
    own = copy.copy(run)
    for owner, settings in _settings(run, model):
        for name, value in settings.items():
            if name.split(".")[0] in NOT_TRAINING or name in NOT_SEARCHED | SHARED:
                raise UserError(f"tuned: {owner}: {name}: not a setting of one model (those are model.*, train.*, ...)")
            try:
                own.config = apply_settings(own.config, {name: value})
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise UserError(f"tuned: {owner}: {name}: {value!r} is refused: {message}") from error
            except ValueError as error:
                raise UserError(f"tuned: {owner}: {name}: {error}") from error
    return own


def run_to_search(run: Run, model: str) -> Run:
    """The same run with this model's own settings as everyone's, and none left that would undo what a search finds.

    Raises
    ------
    UserError
        As `run_for_model`.
    """
    own, taken = run_for_model(run, model), {owner for owner, _ in _settings(run, model)}
    left = {owner: settings for owner, settings in run.config.tuned.items() if owner not in taken}
    own.config = own.config.model_copy(update={"tuned": left})
    return own


def require_known_owners(run: Run) -> None:
    """Check the names of models in `tuned`.

    Raises
    ------
    UserError
        There is no such model.
    """
    for name in run.config.tuned:
        require_known(name, "tuned")


def _settings(run: Run, model: str) -> list[tuple[str, Settings]]:
    """Later ones win."""
    parts = run.config.memory.parts if has_memory(model) else ()
    owners = dict.fromkeys([*parts, without_memory(model), model])
    return [(owner, run.config.tuned[owner]) for owner in owners if owner in run.config.tuned]
