"""Pages for eyes from the templates beside this file, all on the layout of page.html."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2


def page(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template that escapes all it is given, and refuses a name that it was not given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
