"""Search spaces: YAML files that name the settings to search and where.

    train.learning_rate: {loguniform: [1.0e-3, 1.0e-2]}
    train.batch_size: {choice: [128, 256, 512]}

| kind | values | drawn |
|---|---|---|
| uniform, loguniform | [low, high] | a real number |
| int, logint | [low, high], both included | a whole number |
| choice | any list | one of it |

What a trial may change is what training reads: everything before it (samples, answers, intents) is committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.errors import UserError

Kind = Literal["uniform", "loguniform", "int", "logint", "choice"]
Scalar = bool | int | float | str | None
Settings = dict[str, Scalar]  # dotted setting name -> value

# Sections that training doesn't read: the inputs of trials are committed, and what comes after has no say in them.
NOT_TRAINING = frozenset(
    {"name", "storage", "dataset", "seed", "data", "perspectives", "text", "evaluate", "export", "serving"}
    | {"cluster", "tune"}
)
# Settings of a training that aren't properties of a model.
NOT_SEARCHED = frozenset(
    f"train.{name}"
    for name in (
        "models",
        "seeds",
        "workers",
        "min_workers",
        "gpus_per_worker",
        "cpus_per_worker",
        "select_by",
        "rank_seen",
        "max_failures",
    )
)


@dataclass(frozen=True)
class Domain:
    """Where one setting is searched."""

    kind: Kind
    values: tuple[Scalar, ...]  # low and high; of a choice all of them

    def holds(self, value: Scalar) -> bool:
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        return isinstance(value, int | float) and low <= value <= high  # type: ignore[operator]  # two numbers

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in self.values)}"


Space = dict[str, Domain]  # dotted setting name -> domain


def read_space(path: Path, config: RunConfig) -> Space:
    """Read a search space and try its values on a config.

    Raises
    ------
    UserError
        No such file, no mapping, an unknown setting, a setting that trials can't change, a malformed domain, a value
        that the setting refuses: one line that names file and setting.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"search space not found: {path}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: a search space is a mapping of settings, as in configs/spaces/srgnn.yaml")
    space: Space = {}
    for name, entry in content.items():
        try:
            space[str(name)] = _domain(str(name), entry, config)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}") from error
    return space


def apply_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """The config with other values of these settings.

    Raises
    ------
    ValueError
        There is no such setting, or it refuses the value (pydantic's ValidationError).
    """
    values = config.model_dump()
    for name, value in settings.items():
        *sections, last = name.split(".")
        inner: Any = values
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise ValueError("no such setting")
        inner[last] = value
    return RunConfig.model_validate(values)


def read_setting(config: RunConfig, name: str) -> Any:
    """The value of a setting: a plain value, or a list or mapping.

    Raises
    ------
    ValueError
        There is no such setting.
    """
    value: Any = config.model_dump(mode="json")
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError("no such setting")
        value = value[part]
    return value


def _domain(name: str, entry: Any, config: RunConfig) -> Domain:
    if name.split(".")[0] in NOT_TRAINING or name in NOT_SEARCHED:
        raise ValueError("trials can't change this: search over what a model or its training reads (model.*, train.*)")
    if isinstance(read_setting(config, name), dict | list):
        raise ValueError("this is a section or a list: name one setting")
    if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in get_args(Kind):
        raise ValueError(f"give one of {', '.join(get_args(Kind))}, for instance {{uniform: [0.0, 0.5]}}")
    (kind, values) = next(iter(entry.items()))
    domain = Domain(kind, _choices(values) if kind == "choice" else _bounds(kind, values))
    for value in domain.values:
        try:
            apply_settings(config, {name: value})
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ValueError(f"{value!r} is refused: {message[0].lower()}{message[1:]}") from error
    return domain


def _choices(values: Any) -> tuple[Scalar, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(v, Scalar) for v in values):
        raise ValueError("choice takes a list of plain values")
    return tuple(values)


def _bounds(kind: Kind, values: Any) -> tuple[Scalar, ...]:
    number: Any = int if kind in ("int", "logint") else float
    adapter: TypeAdapter[tuple[float, float]] = TypeAdapter(tuple[number, number])
    try:  # pydantic also reads 1e-3, which YAML takes for a text
        low, high = adapter.validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{kind} takes [low, high], two {'whole ' * (number is int)}numbers") from error
    if low >= high:
        raise ValueError(f"{kind} takes [low, high] with low below high")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"{kind} takes bounds above 0")
    return low, high
