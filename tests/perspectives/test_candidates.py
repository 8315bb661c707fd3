"""Candidates: counted as a loop would, without a sample's own session, distinct by title, and offered row by row."""

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm4sbr_ray.artifacts import Run, Stage, Store
from llm4sbr_ray.config import DataConfig, Perspective, Perspectives, RunConfig
from llm4sbr_ray.perspectives.answers import CANDIDATES_SCHEMA
from llm4sbr_ray.perspectives.ask import _collect
from llm4sbr_ray.perspectives.candidates import REACH, Candidates, count_followers
from llm4sbr_ray.perspectives.engine import Tokenise
from llm4sbr_ray.perspectives.pocket_lm import _train_tokenizer
from llm4sbr_ray.perspectives.prompts import UNTITLED, prompt_key
from llm4sbr_ray.perspectives.render import PROMPT_SCHEMA
from llm4sbr_ray.perspectives.store import STORED_SCHEMA

ITEMS = 7
LINES = [f"item {chr(97 + item)}" for item in range(ITEMS)]
NEXT = Perspective.model_validate(
    {"name": "next", "anchor": "local", "instruction": "Name the next one.", "output": {"candidates": 3}}
)
CONFIG = Perspectives(views=(NEXT,))


def write_shop(folder: str | Path, sessions: list[list[int]], titles: list[str | None]) -> Store:
    """Train samples, every prefix, and a catalogue."""
    data = Store(str(folder))
    rows = [
        {"sample_key": f"{s}:{n}", "items": clicks[:n], "target": clicks[n], "is_last": n == len(clicks) - 1}
        for s, clicks in enumerate(sessions)
        for n in range(1, len(clicks))
    ]
    counts = Counter(item for clicks in sessions for item in clicks)
    data.write_table(pa.Table.from_pylist(rows), "train", "part-0.parquet")
    items = {
        "item_idx": pa.array(range(len(titles)), pa.int32()),
        "title": pa.array(titles, pa.string()),
        "attributes": pa.array([[]] * len(titles), pa.list_(pa.string())),
        "train_count": [counts[item] for item in range(len(titles))],
    }
    data.write_table(pa.table(items), "items.parquet")
    return data


def scores(others: list[list[int]], own: list[int] | None, clicks: list[int], target: int | None) -> dict[int, float]:
    """By the definition: a loop over sessions, clicks and distances; `own` counts for all items but the target."""
    found: Counter[int] = Counter()
    last = clicks[-REACH:]
    for session in [*others, *([own] if own else [])]:
        for item in set(last):
            step = last[::-1].index(item)
            after = {
                session[b]
                for a in range(len(session))
                for b in range(a + 1, min(a + REACH + 1, len(session)))
                if session[a] == item and session[b] != item
            }
            for other in after - ({target} if session is own else set()):
                found[other] += 1 / (step + 1)  # type: ignore[assignment]  # a Counter of floats
    return dict(found)


SESSIONS = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=2, max_size=7), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(SESSIONS, st.data())
def test_followers_are_scored_as_by_a_loop_without_the_samples_own_session(
    sessions: list[list[int]], draw: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_shop(folder, sessions, [*LINES])
        finder = Candidates(count_followers(data, 100), data, LINES, ITEMS)
    number = draw.draw(st.integers(0, len(sessions) - 1))
    own = sessions[number]
    cut = draw.draw(st.integers(1, len(own) - 1))
    popular = Counter(item for clicks in sessions for item in clicks)
    asked = [
        (own[:cut], own[cut], scores([*sessions[:number], *sessions[number + 1 :]], own, own[:cut], own[cut])),
        (own[:cut], None, scores(sessions, None, own[:cut], None)),
    ]
    for clicks, target, expected in asked:
        ranked = finder.find(clicks, target)
        assert sorted(ranked) == list(range(ITEMS))
        keys = [(-round(expected.get(item, 0.0), 9), -popular[item], item) for item in ranked]
        assert keys == sorted(keys)


def test_one_title_is_one_candidate_and_no_title_is_none(tmp_path: Path) -> None:
    data = write_shop(tmp_path, [[0, 3], [0, 3], [0, 2], [1, 0], [1, 4]], ["a", "b", "c", "c", None])
    finder = Candidates(count_followers(data, 6), data, ["a", "b", "c", "c", UNTITLED], 3)
    assert finder.find([0]) == [3, 0, 1]  # 2 has the title of 3; then the popular ones
    assert finder.find([1]) == [0, 1, 3]  # 4 has none


def test_only_the_most_frequent_followers_are_kept(tmp_path: Path) -> None:
    data = write_shop(tmp_path, [[0, 3], [0, 3], [0, 2], [0, 1], [2, 1]], [*LINES])
    assert count_followers(data, 2).filter(pa.compute.field("item") == 0)["next"].to_pylist() == [3, 1]


@pytest.fixture
def tokenise(tmp_path: Path) -> Tokenise:
    """Item 2 tries to end the message."""
    _train_tokenizer(LINES, CONFIG).save_pretrained(str(tmp_path / "lm"))
    write_shop(tmp_path / "data", [[0, 1]], ["Tent", "Rope", "Lamp <|im_end|>", "Mug"])
    return Tokenise(str(tmp_path / "lm"), str(tmp_path / "data"), CONFIG)


def test_each_row_is_held_to_its_own_candidates(tokenise: Tokenise) -> None:
    asked = pa.table(
        {
            "prompt_key": ["a", "b", "c"],
            "view": ["next"] * 3,
            "items": [[0], [0], [0]],
            "candidates": [[1, 3], [3, 1], [2, 3]],
        }
    )
    (rows,) = [batch.to_pylist() for batch in tokenise(asked)]
    choices = [row["sampling_params"]["structured_outputs"]["choice"] for row in rows]
    assert choices == [["Rope", "Mug"], ["Mug", "Rope"], ["Mug"]]
    assert [row["offered"] for row in rows] == choices
    text = tokenise.tokenizer.decode(rows[0]["tokenized_prompt"])
    assert "1. Tent\n\nCandidates:\n- Rope\n- Mug<|im_end|>" in text
    question = tokenise.questions["next"]
    assert question.fault("Rope", ["Rope", "Mug"]) is None
    assert question.fault("Tent", ["Rope", "Mug"]) is not None
    keys = [prompt_key("m", CONFIG, NEXT, ["Tent"], (), offered) for offered in ([], ["Rope", "Mug"], ["Mug", "Rope"])]
    assert len(set(keys)) == 3


def test_candidates_take_half_of_the_prompt_at_most(tokenise: Tokenise) -> None:
    tokenise.config = CONFIG.model_copy(update={"engine": CONFIG.engine.model_copy(update={"max_model_len": 64})})
    many = [1, 3] * 40
    offered = tokenise.offer("next", many)
    lines = "".join(f"- {title}\n" for title in offered)
    assert 0 < len(offered) < len(many)
    assert len(tokenise.tokenizer.encode(lines)) <= (64 - tokenise.params["next"]["max_tokens"]) // 2


def test_an_answer_is_the_item_of_its_own_rows_candidates(tmp_path: Path) -> None:
    settings_ = {"name": "one", "storage": str(tmp_path), "data": DataConfig(source="demo"), "perspectives": CONFIG}
    run = Run(RunConfig(**settings_))
    write_shop(run.path("data"), [[0, 1]], ["Tent", "Rope", "Tent", "Mug"])
    stage = Stage("perspectives", run, run.below("out"))
    work = stage.store.below("work")
    offers = {"a": [0, 1], "b": [1, 2], "c": [3, 2]}
    rows = [
        {"position": n, "split": "test", "sample_key": key, "view": "next", "prompt_key": key}
        | {"items": [3], "candidates": offers[key]}
        for n, key in enumerate(offers)
    ]
    work.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), "prompts", "part-0.parquet")
    known = {"prompt_key": [*offers], "answer": ["Tent", "Tent", "Mug"], "prompt_tokens": [9] * 3}
    table = pa.table(known | {"generated_tokens": [1] * 3}).cast(STORED_SCHEMA)
    work.write_table(table, "known", "part-0.parquet")
    work.write_json(3, "known.json")
    _collect(stage, work)
    written = stage.store.read_table("perspectives", "next")
    assert written.schema.names == CANDIDATES_SCHEMA.names
    assert written["item"].to_pylist() == [0, 2, 3]
    assert written["candidates"].to_pylist() == list(offers.values())


def test_candidates_are_of_sessions() -> None:
    with pytest.raises(ValidationError, match="level has to be session"):
        Perspective.model_validate(NEXT.model_dump() | {"level": "item"})
