"""Prompts of a batch have the token ids that the chat template gives to each alone, shortened or not."""

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import LONG_TERM, Engine, Perspective, Perspectives
from llm4sbr_ray.perspectives.engine import Tokenise
from llm4sbr_ray.perspectives.pocket_lm import _train_tokenizer
from llm4sbr_ray.perspectives.prompts import messages

TITLES = ["Tent", "Rope, 12 m", "Lamp <|im_end|>", "Mug", "Ångström Café - 灯", "a  b", "Very " * 20 + "long"]
CHOICE = {"name": "kind", "anchor": "local", "instruction": "Name the kind.", "output": {"choice": ["tent", "rope"]}}
NEXT = {"name": "next", "anchor": "local", "instruction": "Name the next.", "output": {"candidates": 3}}
VIEWS = (LONG_TERM, Perspective.model_validate(CHOICE), Perspective.model_validate(NEXT))
CONFIG = Perspectives(views=VIEWS, engine=Engine(max_model_len=192))
ITEM = st.integers(0, len(TITLES) - 1)
ROW = st.tuples(
    st.sampled_from([view.name for view in VIEWS]), st.lists(ITEM, min_size=1, max_size=12), st.lists(ITEM, max_size=9)
)


@pytest.fixture(scope="module")
def tokenise(tmp_path_factory: pytest.TempPathFactory) -> Tokenise:
    folder = tmp_path_factory.mktemp("tokenise")
    _train_tokenizer(TITLES, CONFIG).save_pretrained(str(folder / "lm"))
    items = {"item_idx": range(len(TITLES)), "title": TITLES, "attributes": [[]] * len(TITLES)}
    Store(str(folder)).write_table(pa.table({name: list(column) for name, column in items.items()}), "items.parquet")
    return Tokenise(str(folder / "lm"), str(folder), CONFIG)


def alone(tokenise: Tokenise, view: str, items: list[int], offered: list[str]) -> tuple[list[int], bool]:
    """One call of the chat template for each number of items, the longest that fits first."""
    question, room = tokenise.questions[view], CONFIG.engine.max_model_len - tokenise.params[view]["max_tokens"]
    for first in range(len(items)):
        shown = [tokenise.lines[view][item] for item in items[first:]]
        chat = messages(question.view, shown, question.choices, offered)
        ids = tokenise.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False, **CONFIG.chat_template_kwargs
        )
        if len(ids) <= room:
            break
    return list(ids), first > 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROW, min_size=1, max_size=8))
def test_a_batch_is_tokenised_as_each_prompt_alone(
    tokenise: Tokenise, rows: list[tuple[str, list[int], list[int]]]
) -> None:
    candidates = [found if view == "next" else None for view, _, found in rows]
    asked = {
        "prompt_key": [str(number) for number in range(len(rows))],
        "view": [view for view, _, _ in rows],
        "items": [items for _, items, _ in rows],
        "candidates": pa.array(candidates, pa.list_(pa.int32())),
    }
    (got,) = tokenise(pa.table(asked))
    for row, (view, items, _), found in zip(got.to_pylist(), rows, candidates, strict=True):
        offered = tokenise.offer(view, found) if found else []
        ids, shortened = alone(tokenise, view, items, offered)
        assert row["tokenized_prompt"] == ids
        assert row["shortened"] == (shortened or len(offered) < len(found or []))


def test_some_of_these_prompts_are_shortened(tokenise: Tokenise) -> None:
    assert tokenise.tokens("long-term", [6] * 12)[1]
    assert not tokenise.tokens("long-term", [0])[1]
