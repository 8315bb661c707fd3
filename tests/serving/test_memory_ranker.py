"""A +memory model served: the offline scores, from the bundle, and explanations that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from serving_run import MODEL, V, items_table, planted_model, planted_run, samples_table, text_table

from llm4sbr_ray.artifacts import Run, Stage
from llm4sbr_ray.config import MemoryConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.catalogue import Catalogue
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.explain import memory_sentence, recommendations
from llm4sbr_ray.serving.ranker import Ranker, RankQuery
from llm4sbr_ray.serving.types import Recommendation
from llm4sbr_ray.training.load import save_model

NAME = MODEL + "+memory"
MEMORY = MemoryConfig(parts=("rules", "stan"))


def with_memory(run: Run) -> MemoryRecommender:
    """Random network, counts of the run's train sessions, some weight for everything."""
    config = run.config
    anchors = [view.anchor for view in config.perspectives.views]
    model = build_model(NAME, V, config.model, config.neighbours, anchors, text_table(), MEMORY)
    assert isinstance(model, MemoryRecommender)
    model.network.load_state_dict(planted_model(config).state_dict())
    sessions: list[list[int]] = samples_table(1, 40)["items"].to_pylist()
    offsets = torch.tensor([0, *map(len, sessions)]).cumsum(0)
    model.fit_counts(torch.tensor([item for session in sessions for item in session]), offsets)
    one, longest = [0.4, -1.0, 0.3, 0.2, 0.1, -0.1, 0.5], [0.9, 0.5, 0.1, 0.0, -0.1, 0.1, 0.2]
    model.weight_2C.copy_(torch.tensor([one, longest]))
    return model.eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, MemoryRecommender]:
    changes = {"train": {"models": (MODEL, NAME), "seeds": (0,)}, "memory": {"parts": MEMORY.parts}}
    run = planted_run(tmp_path_factory.mktemp("run"), **changes)
    model = with_memory(run)
    name = f"train/{NAME}/seed-0"

    def train(stage: Stage) -> dict[str, int]:
        save_model(stage.store, run.config, NAME, 0, V, model.state_dict(), [], best_epoch=1)
        return {"rows": 1}

    run.stage(name, outputs=[name], settings={}, body=train, after=["intents"])
    export(run)  # takes the one with a memory
    return Bundle(run.uri("bundle")), model


SESSIONS: list[list[int]] = samples_table(3, 20)["items"].to_pylist()


def test_served_ranking_is_the_offline_one_and_its_reasons_add_up(bundle: tuple[Bundle, MemoryRecommender]) -> None:
    opened, offline = bundle
    assert opened.manifest.model == NAME
    network = opened.model()
    ranker = Ranker(network, V, opened.manifest.localised_items, memory=opened.memory())
    ranker.check()
    vectors = SessionEncoder(network, V).encode(SESSIONS)
    asked = [RankQuery(v, None, [], 10, compare=True, items=s) for v, s in zip(vectors, SESSIONS, strict=True)]
    with torch.inference_mode():
        scores_BV = offline.score(pad_sessions(SESSIONS, V, network.config.max_length)).numpy()
    catalogue = Catalogue(items_table())
    led = set()
    for ranking, scores_V in zip(ranker.rank(asked), scores_BV, strict=True):
        np.testing.assert_allclose(ranking.score_k, np.sort(scores_V)[::-1][:10], rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(ranking.score_k, scores_V[ranking.item_k], rtol=1e-5, atol=1e-8)
        assert ranking.clicks_alone is not None
        for answer in map(
            Recommendation.model_validate, recommendations(ranking, ["long-term", "short-term"], catalogue)
        ):
            reasons = answer.explanation
            assert reasons is not None
            assert reasons.memory is not None
            parts = [*reasons.perspectives, reasons.memory]
            assert sum(part.contribution for part in parts) == pytest.approx(answer.score, rel=1e-4)
            assert sum(part.share for part in parts) == pytest.approx(1)
            remembered = reasons.memory.share == max(part.share for part in parts)
            assert (reasons.text == memory_sentence(reasons.memory.share)) == remembered
            led.add(remembered)
    assert led == {True, False}


def test_a_boost_is_added_to_the_score(bundle: tuple[Bundle, MemoryRecommender]) -> None:
    opened, offline = bundle
    network, session = opened.model(), SESSIONS[0]
    ranker = Ranker(network, V, 3, memory=opened.memory())
    query = RankQuery(SessionEncoder(network, V).encode([session])[0], None, [], 5, boosts=[(9, 20.0)], items=session)
    ranking = ranker.rank([query])[0]
    with torch.inference_mode():
        score = float(offline.score(pad_sessions([session], V, network.config.max_length))[0, 9])
    assert ranking.item_k[0] == 9
    assert ranking.score_k[0] == pytest.approx(score + 20)


def test_what_a_clicked_item_did_is_the_score_less_that_without_it(bundle: tuple[Bundle, MemoryRecommender]) -> None:
    opened, offline = bundle
    network, session = opened.model(), [5, 8, 11]
    left = [[8, 11], [5, 11], [5, 8]]
    whole, *without = SessionEncoder(network, V).encode([session, *left])
    ranker = Ranker(network, V, 3, memory=opened.memory())
    query = RankQuery(whole, None, session, 5, without_N3D=np.stack(without), items=session, without_items_N=left)
    ranking = ranker.rank([query])[0]
    with torch.inference_mode():
        scores = offline.score(pad_sessions([session, *left], V, network.config.max_length)).numpy()
    assert ranking.reasons is not None
    assert ranking.reasons.effect_kN is not None
    wanted = (scores[:1] - scores[1:])[:, ranking.item_k].T
    np.testing.assert_allclose(ranking.reasons.effect_kN, wanted, rtol=1e-4, atol=1e-7)


def test_new_items_are_ranked_by_the_network_and_their_texts(bundle: tuple[Bundle, MemoryRecommender]) -> None:
    opened, _ = bundle
    network, session = opened.model(), SESSIONS[1]
    memory = opened.memory()
    assert memory is not None
    ranker = Ranker(network, V, 3, memory=memory)
    vectors_3D = SessionEncoder(network, V).encode([session])[0]
    query = RankQuery(vectors_3D, None, [], V + 2, items=session)
    vector_ND = network.backbone.item_vectors()[:2].detach() * torch.tensor([[2.0], [-2.0]])
    text_VE = memory.item_text_VE
    assert text_VE is not None
    text_NE = text_VE[[7, 8]]
    more = ranker.with_items(vector_ND, text_NE).rank([query])[0]
    assert len(more.item_k) == V + 2
    place = [more.item_k.tolist().index(item) for item in (V, V + 1)]
    about_E = torch.nn.functional.normalize(text_VE[session].sum(0), dim=0)
    remembered_N = memory.weights_of(torch.tensor([len(session)]))[0, -1] * (text_NE @ about_E)
    assert more.reasons is not None
    assert more.reasons.memory_k is not None
    np.testing.assert_allclose(more.reasons.memory_k[place], remembered_N.numpy(), rtol=1e-4, atol=1e-6)
    own_N = more.reasons.contribution_kP[place].sum(1)
    np.testing.assert_allclose(more.score_k[place], own_N + remembered_N.numpy(), rtol=1e-4, atol=1e-6)
    known = ranker.rank([query])[0]  # as they were ranked before
    assert [item for item in more.item_k.tolist() if item < V] == known.item_k.tolist()


def test_a_quantised_index_is_refused(bundle: tuple[Bundle, MemoryRecommender]) -> None:
    opened, _ = bundle
    with pytest.raises(UserError, match="set index to 'exact'"):
        Ranker(opened.model(), V, 3, "pq", opened.memory())


def test_a_bundle_without_memory_has_none(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    assert Bundle(run.uri("bundle")).memory() is None
