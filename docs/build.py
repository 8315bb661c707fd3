"""The documentation as HTML, in docs/_build: the pages of this folder, all settings, and the API from the docstrings.

make docs
"""

from __future__ import annotations

import html
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import markdown2
import pdoc
import pdoc.render
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from llm4sbr_ray.config import RunConfig

HERE = Path(__file__).parent
BUILD = HERE / "_build"
FIRST = ["quickstart", "data", "architecture", "training", "serving", "operations", "security", "faq"]
FIELD = re.compile(r"^    (\w+): .*?#\s*(.*)$", re.MULTILINE)  # a field of a class, and the comment beside it
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title} - llm4sbr_ray</title><style>
:root {{ color-scheme: light dark; --line: #ccc; --soft: #f4f4f4 }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #555; --soft: #2a2a2a }} }}
body {{ max-width: 58rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }}
pre, code {{ background: var(--soft); font-size: .82rem }} pre {{ padding: .8rem; overflow-x: auto }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }} img {{ max-width: 100% }}
td, th {{ border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top }}
nav a {{ margin-right: 1rem; white-space: nowrap; display: inline-block }} nav b a {{ text-decoration: none }}
</style></head><body><nav>{links}</nav>{body}</body></html>"""


def pages() -> list[Path]:
    """Markdown files of this folder, the reader's way through them first."""
    found = sorted(HERE.glob("*.md"), key=lambda path: path.stem)
    return sorted(found, key=lambda path: FIRST.index(path.stem) if path.stem in FIRST else len(FIRST))


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Rows of a Markdown table: name, default, the comment beside the field in llm4sbr_ray/config."""
    said = dict(FIELD.findall(inspect.getsource(model)))
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "required" if default is PydanticUndefined else f"`{_short(default)}`"
        yield f"| `{prefix}{name}` | {shown} | {said.get(name, '').replace('|', ', ')} |"


def _short(value: object) -> str:
    """A default as it is written in YAML; of a list of sections, their names."""
    if isinstance(value, tuple) and any(isinstance(part, BaseModel) for part in value):
        return json.dumps([getattr(part, "name", None) for part in value])
    return value if isinstance(value, str) and value else json.dumps(value)


def settings_page() -> str:
    head = "# Settings\n\nEach is `--name value` on the command line of a job, and a key of its YAML file. "
    head += "How they are written: `llm4sbr_ray/config/`.\n\n| setting | default | |\n|---|---|---|\n"
    return head + "\n".join(settings(RunConfig)) + "\n"


def navigation(names: list[str], here: str) -> str:
    linked = {name: f'<a href="{name}.html">{html.escape(name)}</a>' for name in names}
    linked[here] = f"<b>{linked[here]}</b>"
    return "".join(linked.values()) + '<a href="api/llm4sbr_ray.html">API</a>'


def build() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    pdoc.render.configure(docformat="numpy")
    pdoc.pdoc("llm4sbr_ray", output_directory=BUILD / "api")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in pages()} | {"settings": settings_page()}
    for name, text in texts.items():
        linked = re.sub(r"\]\(([\w-]+)\.md", r"](\1.html", text)
        body = markdown2.markdown(linked, extras=["tables", "fenced-code-blocks", "header-ids"])
        page = PAGE.format(title=name, links=navigation(list(texts), name), body=body)
        (BUILD / f"{name}.html").write_text(page, encoding="utf-8")
    for picture in HERE.glob("*.svg"):
        shutil.copy(picture, BUILD)
    shutil.copy(BUILD / "quickstart.html", BUILD / "index.html")
    print(f"{BUILD / 'index.html'}")


if __name__ == "__main__":
    build()
