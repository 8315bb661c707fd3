"""The application as an object, for `serve build`, which takes no builder with arguments:

    LLM4SBR_SERVE='{"bundle": "runs/demo/bundle", "graph": "fused"}' \\
        serve build llm4sbr_ray.serving.from_environment:app -o serve.yaml

The variable holds the arguments of `app.ServeArgs` as JSON; it has to be set where the written file is deployed, too.
Files with `args` (serve_configs/) need neither.
"""

from __future__ import annotations

import os

from pydantic import ValidationError
from ray.serve import Application

from llm4sbr_ray.errors import UserError
from llm4sbr_ray.serving.app import ServeArgs, build_app

ARGUMENTS = "LLM4SBR_SERVE"


def __getattr__(name: str) -> Application:
    """`app`, built when it is asked for: importing this module reads nothing."""
    if name != "app":
        raise AttributeError(name)
    try:
        return build_app(ServeArgs.model_validate_json(os.environ.get(ARGUMENTS, "{}")))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise UserError(f"{ARGUMENTS}: {field + ': ' if field else ''}{problem['msg']}") from error
