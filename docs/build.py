"""The documentation as HTML, in docs/_build: the pages of this folder, and the API reference from the docstrings.

make docs
"""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import markdown2
import pdoc
import pdoc.render

HERE = Path(__file__).parent
BUILD = HERE / "_build"
FIRST = ["quickstart", "data", "architecture", "training", "serving", "operations", "security", "faq"]
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222 }}
pre, code {{ background: #f4f4f4; font-size: .9em }} pre {{ padding: .8rem; overflow-x: auto }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ border: 1px solid #ccc; padding: .3rem .6rem }}
nav a {{ margin-right: 1rem }}
</style></head><body><nav>{links}</nav>{body}</body></html>"""


def pages() -> list[Path]:
    """Markdown files of this folder, the reader's way through them first."""
    found = sorted(HERE.glob("*.md"), key=lambda path: path.stem)
    return sorted(found, key=lambda path: FIRST.index(path.stem) if path.stem in FIRST else len(FIRST))


def build() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    links = "".join(f'<a href="{path.stem}.html">{html.escape(path.stem)}</a>' for path in pages())
    links += '<a href="api/llm4sbr_ray.html">API</a>'
    pdoc.render.configure(docformat="numpy")
    pdoc.pdoc("llm4sbr_ray", output_directory=BUILD / "api")
    for path in pages():
        text = re.sub(r"\]\(([\w-]+)\.md", r"](\1.html", path.read_text(encoding="utf-8"))
        body = markdown2.markdown(text, extras=["tables", "fenced-code-blocks", "header-ids"])
        page = PAGE.format(title=path.stem, links=links, body=body)
        (BUILD / f"{path.stem}.html").write_text(page, encoding="utf-8")
    shutil.copy(BUILD / "quickstart.html", BUILD / "index.html")
    print(f"{BUILD / 'index.html'}")


if __name__ == "__main__":
    build()
