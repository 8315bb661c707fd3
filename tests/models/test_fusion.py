"""The fusion rules against their formulas, one sample, perspective and coordinate at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.base import SessionVectors
from llm4sbr_ray.models.fusion import FUSION_RULES, Average, Gate, Residual, build_fusion

B, P, D = 4, 3, 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def given() -> tuple[SessionVectors, Tensor, Tensor]:
    torch.manual_seed(1)
    return SessionVectors(random(B, D), random(B, D), random(B, D)), random(B, P, D), random(B, P, D)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_average() -> None:
    vectors, anchor, z = given()
    fused = Average(P, D)(vectors, anchor, z)
    for b in range(B):
        for d in range(D):
            want = sum(float(anchor[b, p, d] + z[b, p, d]) / 2 for p in range(P)) / P
            assert float(fused.session_BD[b, d]) == pytest.approx(want)
    assert torch.equal(fused.gate_BP, torch.full((B, P), 1 / P, dtype=torch.float64))


def test_gate() -> None:
    vectors, anchor, z = given()
    rule = Gate(P, D).double()
    with torch.no_grad():
        rule.query_PD.copy_(random(P, D))
    fused = rule(vectors, anchor, z)
    for b in range(B):
        session = [0.0] * D
        for p in range(P):
            alpha = sum(float(rule.query_PD[p, d]) * sigmoid(float(anchor[b, p, d] + z[b, p, d])) for d in range(D))
            assert float(fused.gate_BP[b, p]) == pytest.approx(alpha)
            for d in range(D):
                for e in range(D):
                    session[e] += alpha * float(anchor[b, p, d]) * float(rule.project_PDD[p, d, e])
        assert fused.session_BD[b].tolist() == pytest.approx(session)


def test_gate_is_the_papers_concatenation() -> None:
    """W [alpha_l H_local ; alpha_g H_global] with W = [W_l W_g]."""
    torch.manual_seed(2)
    rule = Gate(2, D).double()
    anchor, z = random(B, 2, D), random(B, 2, D)
    fused = rule(SessionVectors(random(B, D), random(B, D), random(B, D)), anchor, z)
    concatenated = torch.cat([fused.gate_BP[:, :1] * anchor[:, 0], fused.gate_BP[:, 1:] * anchor[:, 1]], dim=1)
    torch.testing.assert_close(fused.session_BD, concatenated @ torch.cat(list(rule.project_PDD)))


def test_gates_begin_near_one_for_small_vectors() -> None:
    gates = Gate(P, D)(SessionVectors(*(torch.zeros(B, D),) * 3), torch.zeros(B, P, D), torch.zeros(B, P, D)).gate_BP
    torch.testing.assert_close(gates, torch.ones(B, P))


def test_residual() -> None:
    vectors, anchor, z = given()
    rule = Residual(P, D).double()
    with torch.no_grad():
        rule.query_PF.copy_(random(P, 2 * D))
    fused = rule(vectors, anchor, z)
    for b in range(B):
        session = vectors.session_BD[b].tolist()
        for p in range(P):
            inner = [*anchor[b, p].tolist(), *z[b, p].tolist()]
            alpha = sigmoid(sum(q * x for q, x in zip(rule.query_PF[p].tolist(), inner, strict=True)))
            assert float(fused.gate_BP[b, p]) == pytest.approx(alpha)
            for d in range(D):
                for e in range(D):
                    session[e] += alpha * float(z[b, p, d]) * float(rule.project_PDD[p, d, e])
        assert fused.session_BD[b].tolist() == pytest.approx(session)


@pytest.mark.parametrize("name", FUSION_RULES)
def test_parts_add_up_to_the_session(name: str) -> None:
    vectors, anchor, z = given()
    rule = build_fusion(P, ModelConfig(width=D, fusion=name)).double()  # type: ignore[arg-type]
    fused = rule(vectors, anchor, z)
    assert fused.part_BPD.shape == (B, P, D)
    assert fused.gate_BP.shape == (B, P)
    torch.testing.assert_close(fused.part_BPD.sum(1), fused.session_BD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUSION_RULES)
def test_text_reaches_the_session(name: str) -> None:
    vectors, anchor, z = given()
    z.requires_grad_()
    rule = build_fusion(P, ModelConfig(width=D, fusion=name)).double()  # type: ignore[arg-type]
    rule(vectors, anchor, z).session_BD.square().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().amax(dim=(0, 2)).min() > 0  # from every perspective


def test_every_rule_of_the_config_exists() -> None:
    literal = ModelConfig.model_fields["fusion"].annotation
    assert set(FUSION_RULES) == set(literal.__args__)  # type: ignore[union-attr]
