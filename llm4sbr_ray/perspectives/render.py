"""Samples -> prompts: which question each (sample, perspective) asks, and which of them are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Candidates, Perspectives
from llm4sbr_ray.perspectives import candidates, relational
from llm4sbr_ray.perspectives.engine import HELPER_CPUS
from llm4sbr_ray.perspectives.outputs import Question, questions
from llm4sbr_ray.perspectives.prompts import prompt_key

_FIELDS: list[pa.Field[Any]] = [
    pa.field("position", pa.int64()),  # of the sample, over all splits: the order in which results are written
    pa.field("split", pa.string()),
    pa.field("sample_key", pa.string()),
    pa.field("view", pa.string()),
    pa.field("prompt_key", pa.string()),
    pa.field("items", pa.list_(pa.int32())),  # those the prompt shows
    pa.field("candidates", pa.list_(pa.int32())),  # those it offers; null where the output is not of candidates
]
PROMPT_SCHEMA = pa.schema(_FIELDS)
ITEMS = "items"  # stands as the split of the rows that ask a perspective of level item about the whole catalogue


def sample_files(data: Store, config: Perspectives) -> list[dict[str, Any]]:
    """The sample files of the wanted splits, each with the position of its first row.

    Where a perspective is of level item, the catalogue follows.
    """
    files, position = [], 0
    for split in config.splits:
        for path in data.files(split, suffix=".parquet"):
            files.append({"split": split, "path": path, "position": position})
            position += pq.read_metadata(path, filesystem=data.fs).num_rows
    if any(view.level == "item" for view in config.views):
        files.append({"split": ITEMS, "path": data.path("items.parquet"), "position": position})
    return files


def render(data: Store, prompts: Store, model: str, config: Perspectives) -> None:
    """Write a row of `PROMPT_SCHEMA` for each sample and perspective to `prompts`.

    Of level item, a sample asks about its last item, and each item of the catalogue has a row beside (`ITEMS`).
    """
    files = sample_files(data, config)
    wanted = [view.output.candidates for view in config.views if isinstance(view.output, Candidates)]
    # Of each item twice as many as a sample takes: some share a title with others.
    followers = ray.put(candidates.count_followers(data, 2 * max(wanted))) if wanted else None
    ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        RenderFile,
        fn_constructor_args=(data.uri(), model, config, followers),
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=HELPER_CPUS,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=4),
    ).write_parquet(prompts.path(), filesystem=prompts.fs, ray_remote_args={"num_cpus": HELPER_CPUS})


class RenderFile:
    """Ray Data actor: one sample file -> its prompts."""

    def __init__(
        self, data: str, model: str, config: Perspectives, followers: ray.ObjectRef[pa.Table] | None = None
    ) -> None:
        self.data, self.model, self.config = Store(data), model, config
        self.questions = questions(self.data, config)
        self.finders = {
            name: candidates.Candidates(ray.get(followers), self.data, question.lines, question.view.output.candidates)
            for name, question in self.questions.items()
            if isinstance(question.view.output, Candidates) and followers is not None
        }

    def __call__(self, batch: pa.Table) -> pa.Table:
        (file,) = batch.to_pylist()
        asked = list(self.questions.items())
        prefixes: list[Any]
        targets: list[Any]
        keys: pa.Array[Any]
        if file["split"] == ITEMS:
            n = pq.read_metadata(file["path"], filesystem=self.data.fs).num_rows
            prefixes = [[item] for item in range(n)]
            targets = [None] * n
            keys = pa.array([f"item:{item}" for item in range(n)])
            asked = [(name, question) for name, question in asked if question.view.level == "item"]
        else:
            own = ["target"] if file["split"] == "train" and self.finders else []  # a target that was counted
            samples = pq.read_table(file["path"], filesystem=self.data.fs, columns=["sample_key", "items", *own])
            targets = samples["target"].to_pylist() if own else [None] * len(samples)
            prefixes, keys = samples["items"].to_pylist(), samples["sample_key"].combine_chunks()
        n = len(prefixes)
        windows = {
            "session": [items[-self.config.max_items :] for items in prefixes],
            "item": [items[-1:] for items in prefixes],
        }
        tables = []
        for name, question in asked:
            shown = windows[question.view.level]
            finder = self.finders.get(name)
            offered = [finder.find(*pair) if finder else None for pair in zip(shown, targets, strict=True)]
            rows = pa.table(
                {
                    "position": pa.array(np.arange(file["position"], file["position"] + n)),
                    "split": [file["split"]] * n,
                    "sample_key": keys,
                    "view": [name] * n,
                    "prompt_key": self._keys(question, shown, offered),
                    "items": shown,
                    "candidates": offered,
                },
                schema=PROMPT_SCHEMA,
            )
            tables.append(rows)
        return pa.concat_tables(tables)

    def _keys(
        self, question: Question, windows: Sequence[Sequence[int]], offered: Sequence[Sequence[int] | None]
    ) -> list[str]:
        texts = (
            [[question.lines[item] for item in items or ()] for items in pair]
            for pair in zip(windows, offered, strict=True)
        )
        return [
            prompt_key(self.model, self.config, question.view, titles, question.choices, candidates)
            for titles, candidates in texts
        ]


def unique_prompts(prompts: Store, asked: Store, rows_a_file: int, known: Store | None = None) -> int:
    """Write each distinct prompt once, those whose key is in `known` left out; returns their number.

    Ordered by perspective and items, so that prompts with a common beginning reach the engine one after the other
    and its prefix cache answers for the common part. A file is a block of the LLM stage, so `rows_a_file` is the grain
    at which a killed run resumes.
    """
    database = relational.connect()
    database.register("prompts", relational.dataset(prompts))
    nothing = pa.table({"prompt_key": pa.array([], pa.string())})
    database.register("known", nothing if known is None else relational.dataset(known))
    query = database.sql(
        "SELECT prompt_key, any_value(view) AS view, any_value(items) AS items, "
        "any_value(candidates) AS candidates FROM prompts "
        "ANTI JOIN known USING (prompt_key) GROUP BY prompt_key ORDER BY view, items"
    )
    return relational.copy_to(query, asked, "", rows_a_file=rows_a_file)
