"""How far the LLM's answers are from the catalogue, and how often they meet the next item, by way of localisation.

    python benchmarks/grounding.py runs/beauty --json FILE
    python docs/results.py --add inference FILE --dataset beauty \
        --command 'python benchmarks/grounding.py runs/beauty'

Reads a finished run; no engine starts and nothing is asked or encoded. Of all test samples with an answer, by
perspective:

    exact_title           share of answers that are a catalogue title, letter by letter but for case
    grounded              share with an item at `text.min_cosine` or nearer
    target_among          share whose next item is among the localised ones
    target_first          share whose next item is the localised one of most weight

the last two once for `nearest` and once for `exact_first` (an exact title is its item and no other). The run has to
have been localised by `nearest`: the other way follows from it and the titles. An answer held to candidates is one
item in any way of localisation; of those perspectives

    candidates_hold_target    share whose next item is among the sample's candidates
    first_candidate_target    share whose next item is the first of them: what counting says, without an LLM
    chosen_target             share whose next item is the one that the answer names
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Candidates, Perspectives
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.intents import exact_titles
from llm4sbr_ray.perspectives.outputs import readable


def grounding(run: Store, view: str, titles: dict[str, int]) -> dict[str, float]:
    """The figures of one perspective, in both ways of localisation.

    Parameters
    ----------
    titles
        Item by its name in lower case, as of `exact_titles`.
    """
    database = relational.connect()
    database.register("answers", relational.dataset(run, "perspectives", view))
    database.register("test", relational.dataset(run, "data", "test"))
    localised = run.read_table("intents", view, columns=["sample_key", "item_idx", "grounded"])
    database.register("intents", localised)  # read here, as DuckDB takes no half precision
    rows: list[tuple[list[int], bool, str, int]] = database.sql(
        "SELECT i.item_idx, i.grounded, a.answer, t.target FROM test t JOIN answers a USING (sample_key) "
        "JOIN intents i USING (sample_key) WHERE a.error IS NULL"
    ).fetchall()
    item_NR = np.array([items for items, *_ in rows])  # by falling weight
    target_N = np.array([target for *_, target in rows])
    named_N = np.array([titles.get(readable(answer).casefold(), -1) for _, _, answer, _ in rows])
    exact_N = named_N >= 0
    among_N, first_N = (item_NR == target_N[:, None]).any(axis=1), item_NR[:, 0] == target_N
    named_target_N = named_N == target_N
    return {
        "samples": len(rows),
        "exact_title": float(exact_N.mean()),
        "grounded": float(np.mean([grounded for _, grounded, *_ in rows])),
        "nearest_target_among": float(among_N.mean()),
        "nearest_target_first": float(first_N.mean()),
        "exact_first_target_among": float(np.where(exact_N, named_target_N, among_N).mean()),
        "exact_first_target_first": float(np.where(exact_N, named_target_N, first_N).mean()),
    }


def among_candidates(run: Store, view: str) -> dict[str, float]:
    """The figures of one perspective whose answers are held to candidates."""
    database = relational.connect()
    database.register("answers", relational.dataset(run, "perspectives", view))
    database.register("test", relational.dataset(run, "data", "test"))
    intents = run.read_table("intents", view, columns=["sample_key", "grounded", "exact_title"])
    database.register("intents", intents)
    names = ("exact_title", "grounded", "candidates_hold_target", "first_candidate_target", "chosen_target")
    ((samples, *shares),) = database.sql(
        "SELECT count(*), avg(exact_title::INT), avg(grounded::INT), avg(list_contains(candidates, target)::INT), "
        "avg((candidates[1] = target)::INT), avg((item = target)::INT) FROM test "
        "JOIN answers USING (sample_key) JOIN intents USING (sample_key) WHERE error IS NULL"
    ).fetchall()
    return {"samples": samples} | dict(zip(names, shares, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder or URI of a run")
    parser.add_argument("--json", type=Path)
    own = parser.parse_args()
    run = Store(own.run)
    config: dict[str, Any] = run.read_json("run.json")["config"]
    if config["text"].get("localisation", "nearest") != "nearest":
        raise SystemExit("the run's text.localisation is not nearest")
    perspectives = Perspectives.model_validate(config["perspectives"])
    titles = exact_titles(run.below("data"), perspectives)
    figures = {}
    for view in perspectives.views:
        if view.level == "session":
            held = isinstance(view.output, Candidates)
            found = among_candidates(run, view.name) if held else grounding(run, view.name, titles)
            for name, value in found.items():
                figures[f"grounding_{view.name}_{name}"] = round(value, 4)
                print(f"{view.name:16} {name:26} {value:12,.4f}")
    if own.json:
        own.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
