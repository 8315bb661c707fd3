"""What the pages tell a reader to type and to open is there: scripts, flags, settings, files, make targets, links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from llm4sbr_ray.config import RunConfig, load_config

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MINE = ("configs/mine.yaml", "configs/spaces/mean.yaml", "llm4sbr_ray/models/backbones/mean.py", "data/", "runs/")
SCRIPT = re.compile(r"python ((?:jobs|benchmarks|docs)/\S+?\.py)\b([^`\n]*)")
FOLDERS = "jobs|configs|serve_configs|benchmarks|grafana|docs|tests|notebooks|llm4sbr_ray"
FILE = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]+\.\w+|cluster[\w.]*\.yaml)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
OWN_FLAGS = {"jobs/infer.py": ("--plan", "--retry-errors"), "jobs/tune.py": ("--space",)}  # before the settings
FILE_ENDINGS = {"md", "json", "py", "yaml", "parquet", "safetensors", "html"}


def text(page: Path) -> str:
    """With commands that a backslash continues on one line."""
    return re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))


def code(page: Path) -> str:
    """Its code: blocks and spans, one a line."""
    whole = text(page)
    blocks = [*FENCE.findall(whole), *re.findall(r"^ {4}.*$", whole, re.MULTILINE)]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", FENCE.sub("", whole))])


def script_calls() -> Iterator[tuple[str, str, str]]:
    for page in PAGES:
        for script, arguments in SCRIPT.findall(text(page)):
            yield page.name, script, arguments


CALLS = sorted(set(script_calls()))


@pytest.mark.parametrize(("page", "script", "arguments"), CALLS, ids=[f"{p}: {s}{a}"[:90] for p, s, a in CALLS])
def test_a_script_takes_what_the_page_gives_it(page: str, script: str, arguments: str) -> None:
    source = ROOT / script
    assert source.exists()
    # "...", "[more]": what follows is up to the reader. A setting without its value: the span goes on in the next line.
    told = re.sub(r"(?: \[|\s--\S+\s+\.\.\.|\.\.\.).*|\s--\w+\.\S+$", "", arguments)
    words = ["configs/demo.yaml" if word in ("CONFIG", "FILE") or word.startswith(MINE) else word for word in
             shlex.split(told, comments=True)]  # fmt: skip
    if not script.startswith("jobs/") or script == "jobs/prepare.py":
        if script == "jobs/prepare.py":
            source = ROOT / "llm4sbr_ray" / "data" / "sources" / "prepare.py"
        taken = source.read_text() + ('"--config"' if "load_config(" in source.read_text() else "")
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in taken]
        if "parse_known_args(" in taken:  # the rest are settings of the configuration
            unknown = [word for word in unknown if not is_setting(word.removeprefix("--"))]
        assert unknown == []
        return
    own = [word for word in words if word in OWN_FLAGS.get(script, ())]
    assert all(f'"{flag}"' in source.read_text() for flag in own)
    settings = ["--tune.space" if word == "--space" else word for word in words if word not in own or word == "--space"]
    if settings and settings != ["--help"]:
        place = settings.index("--config") + 1
        settings[place] = str(ROOT / settings[place])
        assert load_config(settings).name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    named = {name for name in FILE.findall(code(page)) if not name.startswith(MINE) and "://" not in name}
    missing = [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", FENCE.sub("", text(page)))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_settings_exist(page: Path) -> None:
    sections = "|".join(
        name for name, field in RunConfig.model_fields.items() if "." not in name and nested(field.annotation)
    )
    named = re.findall(rf"(?<![\w./-])(?:--)?((?:{sections})(?:\.[a-z_]+)+)(?![\w./(-])", code(page))
    unknown = [name for name in named if name.rsplit(".", 1)[1] not in FILE_ENDINGS and not is_setting(name)]
    assert unknown == []


def nested(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_setting(name: str) -> bool:
    model: object = RunConfig
    for part in name.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return str(model).startswith("dict")  # of free keys
        if part not in model.model_fields:
            return False
        model = model.model_fields[part].annotation
    return True


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|[\s`])make ([a-z]+)(?=[\s`]|$)", code(page))}
    assert named - {"s"} <= targets


def test_results_page_is_made_from_the_figures() -> None:
    done = subprocess.run([sys.executable, "docs/results.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
