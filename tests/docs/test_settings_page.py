"""The page of all settings, made from llm4sbr_ray/config, leaves none out."""

from __future__ import annotations

import runpy
from pathlib import Path

from llm4sbr_ray.config import RunConfig

BUILD = Path(__file__).parent.parent.parent / "docs" / "build.py"


def test_every_setting_has_a_row_with_its_default_and_what_is_said_of_it() -> None:
    page = runpy.run_path(str(BUILD))["settings_page"]()
    rows = {
        cells[1].strip(" `"): [cell.strip() for cell in cells[2:4]]
        for cells in (line.split("|") for line in page.splitlines() if line.startswith("| `"))
    }

    def leaves(values: dict[str, object], prefix: str = "") -> set[str]:
        return {
            name
            for key, value in values.items()
            for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key})
        }

    defaults = RunConfig(name="n", data={"source": "demo"}).model_dump()
    defaults["perspectives"]["chat_template_kwargs"] = None  # a dict of free keys, not a section
    assert set(rows) == leaves(defaults)
    assert rows["name"][0] == "required"
    assert rows["storage"] == ["`runs`", "local path or URI (s3://, gs://)"]
    assert rows["train.seeds"][0] == "`[0, 1, 2]`"
    assert rows["perspectives.views"][0] == '`["long-term", "short-term"]`'
