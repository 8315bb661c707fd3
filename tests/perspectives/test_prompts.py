"""Prompts: bounded, on one line an item, without ids, and equal keys exactly for equal questions."""

from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.config import LONG_TERM, SHORT_TERM, Perspectives, Sampling
from llm4sbr_ray.perspectives.prompts import UNTITLED, clean_title, messages, prompt_key, session_text

CONFIG = Perspectives()


@given(st.text(), st.lists(st.text(), max_size=4), st.integers(8, 80))
def test_a_title_is_one_bounded_printable_line(title: str, attributes: list[str], limit: int) -> None:
    shown = clean_title(title, attributes, limit)
    assert 0 < len(shown) <= max(limit, len(UNTITLED))
    assert shown.isprintable()
    assert len(shown.splitlines()) == 1


def test_attributes_already_in_the_title_are_not_repeated() -> None:
    assert clean_title("Acme Tent, Copper", ["ACME", "Vintage"], 80) == "Acme Tent, Copper - Vintage"


def test_without_a_title_the_attributes_stand_in() -> None:
    assert clean_title(None, ["Acme", "Tent"], 80) == "Acme - Tent"
    assert clean_title(None, None, 80) == UNTITLED


def test_the_instruction_comes_first_and_the_session_last() -> None:
    system, user = messages(LONG_TERM, ["a", "b"])
    assert system == {"role": "system", "content": LONG_TERM.instruction}
    assert user == {"role": "user", "content": "1. a\n2. b"}


def test_a_growing_session_keeps_its_beginning() -> None:
    assert session_text(["a", "b", "c"]).startswith(session_text(["a", "b"]))


def test_a_key_tells_apart_all_that_determines_an_answer() -> None:
    base = prompt_key("m", CONFIG, LONG_TERM, ["a", "b"])
    other_sampling = CONFIG.model_copy(update={"sampling": Sampling(max_tokens=3)})
    assert base == prompt_key("m", CONFIG, LONG_TERM, ["a", "b"])
    changed = [
        prompt_key("n", CONFIG, LONG_TERM, ["a", "b"]),
        prompt_key("m", other_sampling, LONG_TERM, ["a", "b"]),
        prompt_key("m", CONFIG, SHORT_TERM, ["a", "b"]),
        prompt_key("m", CONFIG, LONG_TERM, ["b", "a"]),
    ]
    assert len({base, *changed}) == 5


def test_keys_of_the_default_perspectives_stay_so_that_stored_answers_stay_valid() -> None:
    shown = ["Acme Tent, Copper", "Rope - Blue"]
    keys = [prompt_key("pocket-lm:0123456789abcdef", CONFIG, view, shown) for view in (LONG_TERM, SHORT_TERM)]
    assert keys == ["719d372cc41385c73ff138be075a4709", "81bfc636a549d1dc7139fe7fe3699bea"]
