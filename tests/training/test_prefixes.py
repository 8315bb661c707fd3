"""Random prefixes: which clicks of a sample an epoch reads, and what a model learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_run import planted_config, planted_run
from torch import Tensor

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.config import ModelConfig, Neighbours
from llm4sbr_ray.models.base import Intents
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.training.batches import Samples, samples_from_table
from llm4sbr_ray.training.checkpoint import Checkpoint, from_bytes, to_bytes
from llm4sbr_ray.training.inputs import read_samples, source
from llm4sbr_ray.training.load import new_model
from llm4sbr_ray.training.loop import train_model
from llm4sbr_ray.training.prefixes import random_prefixes
from llm4sbr_ray.training.trainer import learning_settings

N_ITEMS = 12
SESSIONS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=2, max_size=9), min_size=1, max_size=8)


def one_sample_each(sessions: list[list[int]], max_length: int = 20) -> Samples:
    columns = {
        "sample_key": pa.array([f"{i}:{len(s) - 1}" for i, s in enumerate(sessions)], pa.string()),
        "items": pa.array([s[:-1] for s in sessions], pa.list_(pa.int32())),
        "target": pa.array([s[-1] for s in sessions], pa.int32()),
    }
    return samples_from_table(pa.table(columns), N_ITEMS, max_length)


@given(sessions=SESSIONS, max_length=st.integers(1, 9), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_shortened_sample_is_what_the_session_was_then(
    sessions: list[list[int]], max_length: int, data: st.DataObject
) -> None:
    samples = one_sample_each(sessions, max_length)
    answered = torch.ones(len(sessions), 2, dtype=torch.bool)
    answered[::3, 1] = False  # some were never answered
    answers = torch.arange(len(sessions) * 6, dtype=torch.int32).reshape(-1, 2, 3)
    samples = replace(samples, intents=Intents(answers, answers.float(), answered))
    picked = data.draw(st.lists(st.integers(0, len(sessions) - 1), min_size=1, max_size=6))
    clicks = [data.draw(st.integers(1, len(sessions[i]) - 1)) for i in picked]
    batch, target_B = samples.batch(torch.tensor(picked), torch.tensor(clicks))
    assert batch.intents is not None
    for b, (i, n) in enumerate(zip(picked, clicks, strict=True)):
        assert batch.items_BL[b][: batch.length_B[b]].tolist() == sessions[i][:n][-max_length:]
        assert (batch.items_BL[b][batch.length_B[b] :] == N_ITEMS).all()
        assert target_B[b] == sessions[i][n]
        whole = n == len(sessions[i]) - 1  # an answer about a whole session knows what a shortened one is asked
        assert batch.intents.grounded_BP[b].tolist() == (answered[i] & whole).tolist()


def test_every_click_of_a_session_is_read_to_alike_often() -> None:
    samples = one_sample_each([list(range(5))] * 40_000 + [[0, 1]])
    clicks_N = random_prefixes(samples, 1.0, seed=3)
    assert clicks_N[-1] == 1
    counts = torch.bincount(clicks_N[:-1], minlength=5).tolist()
    assert counts[0] == 0
    assert counts[1:] == pytest.approx([10_000] * 4, rel=0.05)
    whole = float((random_prefixes(samples, 0.4, seed=3)[:-1] == 4).double().mean())
    assert whole == pytest.approx(0.6 + 0.4 / 4, abs=0.01)


def test_follows_from_the_seed_alone() -> None:
    samples = one_sample_each([list(range(9))] * 50)
    first = random_prefixes(samples, 1.0, seed=3)
    torch.rand(7)
    assert torch.equal(first, random_prefixes(samples, 1.0, seed=3))
    assert not torch.equal(first, random_prefixes(samples, 1.0, seed=4))


def test_teaches_what_only_the_beginnings_of_sessions_tell() -> None:
    """Sessions begin with a rule and end in noise, where one sample each has its target; short ones are asked about."""
    rng = np.random.default_rng(0)
    begin_S = rng.integers(0, N_ITEMS, 1200)
    rule = rng.permutation(N_ITEMS)
    sessions = [[int(i), int(rule[i]), *rng.integers(0, N_ITEMS, 4).tolist()] for i in begin_S]
    train, valid = one_sample_each(sessions), one_sample_each([s[:2] for s in sessions])

    def hits(share: float) -> float:
        torch.manual_seed(0)
        config = planted_config("", epochs=20, patience=20, schedule="linear", random_prefixes=share).train
        model = build_model("gru4rec", N_ITEMS, ModelConfig(width=16, dropout=0.0), Neighbours())
        assert isinstance(model, PlainRecommender)
        model.load_state_dict(train_model(model, train, valid, config, seed=0).best)
        batch, target_B = valid.batch(torch.arange(len(valid)))
        found: Tensor = model.eval().score(batch).argmax(dim=1) == target_B
        return float(found.double().mean())

    assert hits(1.0) > 0.95
    assert hits(0.0) < 0.5


def test_llm4sbr_learns_with_them_and_a_resumed_training_ends_alike(tmp_path: Path) -> None:
    run = planted_run(planted_config(str(tmp_path), random_prefixes=0.5))
    train, valid = (read_samples(run, source(run, "srgnn+llm4sbr", split)) for split in ("train", "valid"))
    kept: list[bytes] = []

    def trained(resume: Checkpoint | None) -> Checkpoint:
        torch.manual_seed(0)
        model = new_model(run, run.config, "srgnn+llm4sbr")
        assert isinstance(model, LLM4SBR)
        settings = {"resume": resume, "on_epoch": lambda checkpoint: kept.append(to_bytes(checkpoint))}
        return train_model(model, train, valid, run.config.train, 0, **settings)  # type: ignore[arg-type]

    unbroken = trained(None)
    assert unbroken.counters.history[-1]["valid_recall@20"] > 0.9
    resumed = trained(from_bytes(kept[0]))
    for name, value in unbroken.last.items():
        assert torch.equal(resumed.last[name], value), name


def test_what_was_trained_without_them_stays_trained(tmp_path: Path) -> None:
    without, with_them = (planted_config(str(tmp_path), random_prefixes=share) for share in (0.0, 1.0))
    assert "random_prefixes" not in learning_settings(Run(without), "srgnn", 0)["train"]
    assert learning_settings(Run(with_them), "srgnn", 0)["train"]["random_prefixes"] == 1.0
