"""The pocket LM: an ordinary Hugging Face checkpoint, the same for the same seed, that learns its catalogue."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm4sbr_ray.config import Perspectives, PocketLM
from llm4sbr_ray.perspectives.pocket_lm import train_pocket_lm
from llm4sbr_ray.perspectives.prompts import messages

TITLES = [f"{brand} {thing}" for brand in ("Acme", "Zenith", "Borealis") for thing in ("tent", "stove", "lamp", "mat")]
CONFIG = Perspectives(
    max_items=4,
    pocket=PocketLM(layers=1, width=32, heads=2, vocab=400, steps=150, batch_size=16, learning_rate=1e-2),
)


def sessions() -> list[list[int]]:
    """Every session stays within one brand and goes round its four items."""
    rng = np.random.default_rng(0)
    starts = [(int(rng.integers(3)), int(rng.integers(4))) for _ in range(200)]
    return [[brand * 4 + (start + step) % 4 for step in range(5)] for brand, start in starts]


def train(folder: Path, steps: int) -> dict[str, float]:
    config = CONFIG.model_copy(update={"pocket": CONFIG.pocket.model_copy(update={"steps": steps})})
    generator = train_pocket_lm(TITLES, sessions(), config, 0, folder)
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return dict(end.value)


def test_it_answers_with_titles_and_learns_what_follows_what(tmp_path: Path) -> None:
    facts = train(tmp_path, 150)
    assert facts["steps"] == 150
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    short_term = CONFIG.views[1]
    right = 0
    for item in range(12):
        ids = tokenizer.apply_chat_template(
            messages(short_term, [TITLES[item]]),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=12, do_sample=False)
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        right += answer == TITLES[item // 4 * 4 + (item + 1) % 4]
    assert right >= 10


def test_same_seed_same_model(tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(tmp_path / name, 5)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_training_stops_at_its_time_limit(tmp_path: Path) -> None:
    pocket = CONFIG.pocket.model_copy(update={"steps": 10_000, "max_seconds": 0.5})
    generator = train_pocket_lm(TITLES, sessions(), CONFIG.model_copy(update={"pocket": pocket}), 0, tmp_path)
    lines = list(generator)
    assert "max_seconds is over" in lines[-1]
