"""Settings as a user gives them: a YAML file and the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource
from pydantic_settings.exceptions import SettingsError

from llm4sbr_ray.config.run import RunConfig
from llm4sbr_ray.errors import UserError


def load_config(argv: Sequence[str] | None = None) -> RunConfig:
    """Read `--config FILE` and the overrides after it.

    Raises
    ------
    UserError
        A missing or malformed file, an unknown setting, a wrong type: one line per problem.
    SystemExit
        `--help`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config")
    known, overrides = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    wants_help = bool({"-h", "--help"} & set(overrides))
    if known.config is None and not wants_help:
        raise UserError("--config FILE is missing (configs/demo.yaml is a good first one)")
    values = {} if known.config is None else _read_yaml(Path(known.config))
    try:
        cli: CliSettingsSource[Any] = CliSettingsSource(
            RunConfig, cli_parse_args=list(overrides), cli_exit_on_error=False, cli_kebab_case=False
        )
        return RunConfig(_cli_settings_source=cli, **values)  # type: ignore[call-arg]  # an argument of BaseSettings
    except ValidationError as error:
        raise UserError(_one_line_each(error, known.config)) from error
    except SettingsError as error:
        raise UserError(f"command line: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file not found: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of settings, this file holds {type(values).__name__}")
    return values


def _one_line_each(error: ValidationError, path: str | None) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "no such setting"
        lines.append(f"{path}: {where}: {message}" if where else f"{path}: {message}")
    return "\n".join(lines)
