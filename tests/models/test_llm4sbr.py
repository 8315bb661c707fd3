"""LLM4SBR: localised text, losses, both ways of scoring, and that nothing leaks where it must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.alignment import alignment, uniformity
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Intents, SessionBatch, pad_sessions
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.predictor import predictor_loss

V, E, B, P, R = 11, 8, 5, 2, 3
SESSIONS = [[1, 2, 3], [4], [5, 5, 6, 7], [10, 0], [9, 8, 7, 6, 5]]
TARGETS = torch.tensor([4, 5, 8, 1, 2])


def item_text() -> Tensor:
    text_VE = F.normalize(torch.randn(V, E, generator=torch.Generator().manual_seed(5)), dim=1)
    text_VE[3] = 0  # an item without text
    return text_VE


def model(predictor_mix: float = 0.3, **config: Any) -> LLM4SBR:
    torch.manual_seed(7)
    settings = ModelConfig(**{"width": 6, "dropout": 0.0, **config})
    return LLM4SBR(BACKBONES["srgnn"](V, settings), item_text(), ("global", "local"), settings, predictor_mix)


def intents() -> Intents:
    generator = torch.Generator().manual_seed(11)
    weight_BPR = torch.rand(B, P, R, generator=generator)
    weight_BPR /= weight_BPR.sum(2, keepdim=True)
    grounded_BP = torch.tensor([[True, True], [True, False], [False, True], [True, True], [False, False]])
    weight_BPR[~grounded_BP] = 0
    return Intents(torch.randint(0, V, (B, P, R), generator=generator), weight_BPR, grounded_BP)


def batch(with_intents: bool = True) -> SessionBatch:
    padded = pad_sessions(SESSIONS, V, 50)
    return SessionBatch(padded.items_BL, padded.length_B, intents() if with_intents else None)


def test_text_intents_are_projected_weighted_sums() -> None:
    net = model().double()
    given, text_VE = intents(), item_text().double()
    z_BPD = net.text_intents(given)
    for b in range(B):
        for p in range(P):
            h_E = torch.zeros(E, dtype=torch.float64)
            for r in range(R):
                h_E += given.weight_BPR[b, p, r].double() * text_VE[given.item_BPR[b, p, r]]
            want = net.text_projection.weight @ h_E + net.text_projection.bias
            torch.testing.assert_close(z_BPD[b, p], want)


def test_llm_intents_where_grounded_predicted_elsewhere() -> None:
    net, given = model(), batch()
    vectors = net.encode(given.items_BL, given.length_B)
    assert given.intents is not None
    z_BPD, predicted = net.intent_vectors(vectors, given.intents), net.predict(vectors)
    text = net.text_intents(given.intents)
    for b in range(B):
        for p in range(P):
            assert torch.equal(z_BPD[b, p], (text if given.intents.grounded_BP[b, p] else predicted)[b, p])
    assert torch.equal(net.intent_vectors(vectors, None), predicted)


@pytest.mark.parametrize("fusion", ["average", "gate", "residual"])
def test_score_is_the_sum_of_the_perspectives_shares(fusion: str) -> None:
    net, given = model(fusion=fusion).eval(), batch()
    scores_BV = net.score(given)
    vectors = net.encode(given.items_BL, given.length_B)
    fused = net.fuse(vectors, net.intent_vectors(vectors, given.intents))
    shares_BPV = fused.part_BPD @ net.backbone.item_vectors().T
    assert scores_BV.shape == (B, V)
    assert scores_BV.dtype == torch.float32
    torch.testing.assert_close(shares_BPV.sum(1), scores_BV)
    assert torch.equal(net.score(given), scores_BV)  # deterministic


@pytest.mark.parametrize("fusion", ["average", "gate", "residual"])
def test_scores_do_not_depend_on_the_rest_of_the_batch(fusion: str) -> None:
    net, given = model(fusion=fusion).eval(), batch()
    scores_BV = net.score(given)
    assert given.intents is not None
    for b, session in enumerate(SESSIONS):
        alone = pad_sessions([session], V, 50)
        i = given.intents
        alone.intents = Intents(i.item_BPR[b : b + 1], i.weight_BPR[b : b + 1], i.grounded_BP[b : b + 1])
        torch.testing.assert_close(net.score(alone)[0], scores_BV[b])


def test_anchors() -> None:
    net, given = model(), batch()
    vectors = net.encode(given.items_BL, given.length_B)
    anchor_BPD = net.anchor_vectors(vectors)
    assert torch.equal(anchor_BPD[:, 0], vectors.global_BD)
    assert torch.equal(anchor_BPD[:, 1], vectors.local_BD)


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    net = model(alignment=0.3, uniformity=0.2, predictor=0.7, predictor_mix=0.0).double()
    given = batch()
    assert given.intents is not None
    parts = net.loss(given, TARGETS)
    vectors = net.encode(given.items_BL, given.length_B)
    text, anchor, counts = (
        net.text_intents(given.intents),
        net.anchor_vectors(vectors),
        given.intents.grounded_BP,
    )
    want = {
        "cross_entropy": -net.score(given).log_softmax(1)[range(B), TARGETS].mean(),
        "alignment": sum(alignment(text[:, p], anchor[:, p], counts[:, p]) for p in range(P)),
        "uniformity": sum(
            (uniformity(text[:, p], counts[:, p]) + uniformity(anchor[:, p], counts[:, p])) / 2 for p in range(P)
        ),
        "predictor": predictor_loss(net.predict(vectors), text, counts),
    }
    for name, value in want.items():
        torch.testing.assert_close(parts[name], value)
    total = want["cross_entropy"] + 0.3 * want["alignment"] + 0.2 * want["uniformity"] + 0.7 * want["predictor"]
    torch.testing.assert_close(parts["total"], total)


def test_ungrounded_answers_take_no_part() -> None:
    net, given = model(predictor_mix=0.0), batch()
    assert given.intents is not None
    before = net.loss(given, TARGETS)
    given.intents.item_BPR[~given.intents.grounded_BP] = 9
    given.intents.weight_BPR[~given.intents.grounded_BP] = 1 / R
    after = net.loss(given, TARGETS)
    assert {k: v.item() for k, v in before.items()} == {k: v.item() for k, v in after.items()}


def test_training_mixes_predicted_intents_in_per_sample() -> None:
    def cross_entropy(mix: float, train: bool = True, seed: int = 0) -> float:
        net = model(predictor_mix=mix, fusion="residual").train(train)
        torch.manual_seed(seed)
        return float(net.loss(batch(), TARGETS)["cross_entropy"])

    llm_free = float(model(fusion="residual").loss(batch(with_intents=False), TARGETS)["cross_entropy"])
    assert cross_entropy(1.0) == pytest.approx(llm_free)
    assert cross_entropy(1.0, train=False) == pytest.approx(cross_entropy(0.0))
    assert cross_entropy(0.0) != pytest.approx(llm_free)
    assert cross_entropy(0.5, seed=1) == cross_entropy(0.5, seed=1)
    assert len({cross_entropy(0.5, seed=seed) for seed in range(8)}) > 1


@pytest.mark.parametrize("fusion", ["average", "gate", "residual"])
def test_every_parameter_takes_part_in_the_loss(fusion: str) -> None:
    """Distributed training waits for the gradient of every parameter."""
    net = model(fusion=fusion)
    net.loss(batch(), TARGETS)["total"].backward()
    missing = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert missing == []
    assert net.text_projection.weight.grad is not None
    assert net.text_projection.weight.grad.abs().sum() > 0


def test_a_batch_without_any_grounded_answer_trains() -> None:
    net, given = model(), batch()
    assert given.intents is not None
    given.intents.grounded_BP[:] = False
    given.intents.weight_BPR[:] = 0
    parts = net.loss(given, TARGETS)
    parts["total"].backward()
    assert float(parts["alignment"]) == float(parts["uniformity"]) == float(parts["predictor"]) == 0
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_the_predictors_loss_leaves_the_intents_alone() -> None:
    net = model(alignment=0.0, uniformity=0.0, predictor_mix=1.0)
    parts = net.loss(batch(), TARGETS)
    parts["predictor"].backward()
    assert net.text_projection.weight.grad is None
    assert next(net.predictor.parameters()).grad is not None


def test_predictor_loss_by_loops() -> None:
    torch.manual_seed(0)
    guess, z = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    counts = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    values = []
    for b in range(4):
        for p in range(2):
            if counts[b, p]:
                g, t = guess[b, p], z[b, p]
                cosine = float(g @ t) / float(g @ g) ** 0.5 / float(t @ t) ** 0.5
                values.append(1 - cosine + (float(g @ g) ** 0.5 / float(t @ t) ** 0.5 - 1) ** 2)
    assert float(predictor_loss(guess, z, counts)) == pytest.approx(sum(values) / len(values))
    assert float(predictor_loss(z, z, counts)) == pytest.approx(0, abs=1e-12)


def test_nearest_items() -> None:
    net = model().eval()
    z_BPD = torch.randn(3, P, 6)
    item_BPk, cosine_BPk = net.nearest_items(z_BPD, 4)
    for b in range(3):
        for p in range(P):
            cosines = {
                j: float(F.cosine_similarity(z_BPD[b, p], net.text_projection(net.item_text_VE[j]), dim=0))
                for j in range(V)
                if j != 3
            }
            best = sorted((c, j) for j, c in {**cosines, 3: 0.0}.items())[::-1][:4]  # 3 has no text: cosine 0
            assert item_BPk[b, p].tolist() == [j for _, j in best]
            assert cosine_BPk[b, p].tolist() == pytest.approx([c for c, _ in best], abs=1e-6)
    kept = net.nearest_items(z_BPD, 4, net.item_intents())
    assert torch.equal(kept[0], item_BPk)


def test_the_text_table_is_no_weight() -> None:
    net = model()
    assert "item_text_VE" not in net.state_dict()
    other = model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval().score(batch()), net.eval().score(batch()))
