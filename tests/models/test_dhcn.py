"""S2-DHCN against the paper's equations: dense matrices, one session and one click at a time."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.dhcn import DHCN
from llm4sbr_ray.models.base import SessionBatch, pad_sessions
from llm4sbr_ray.models.plain import PlainRecommender

V, D = 8, 6
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3], [7]]
TRAIN = [[1, 2, 3, 1], [2, 3, 3, 5], [6, 4, 0, 2], [5, 2], [0], [3, 2, 6, 1, 5, 4]]  # none with item 7
CONFIG = ModelConfig(width=D, dropout=0.0, hypergraph_layers=2, self_supervision=0.3)
BATCH = pad_sessions(SESSIONS, V, 50)
TARGET_B = torch.tensor([0, 1, 2, 3, 4, 7])


def dhcn(dropout: float = 0.0) -> DHCN:
    torch.manual_seed(3)
    model = DHCN(V, CONFIG.model_copy(update={"dropout": dropout}))
    offsets = [0, *accumulate(len(session) for session in TRAIN)]
    model.fit_graph(torch.tensor([item for session in TRAIN for item in session]), torch.tensor(offsets))
    return model.double()


def naive_items(model: DHCN) -> Tensor:
    """X_h = mean of the layers of D^-1 H W B^-1 H^T X, W = I."""
    incidence = torch.zeros(V, len(TRAIN), dtype=torch.float64)
    for s, session in enumerate(TRAIN):
        for item in session:
            incidence[item, s] = 1
    in_sessions, size = incidence.sum(1), incidence.sum(0)
    layers = [model.item_embedding.weight[:V]]
    for _ in range(model.layers):
        rows = []
        for item in range(V):
            row = torch.zeros(D, dtype=torch.float64)
            for s in range(len(TRAIN)):
                for other in range(V):
                    if incidence[item, s] and incidence[other, s]:
                        row = row + layers[-1][other] / (in_sessions[item] * size[s])
            rows.append(row)
        layers.append(torch.stack(rows))
    return sum(layers[1:], layers[0]) / len(layers)


def naive_session(model: DHCN, x_h: Tensor, session: list[int]) -> Tensor:
    read, mean = model.readout, sum((x_h[item] for item in session[1:]), x_h[session[0]]) / len(session)
    theta = torch.zeros_like(mean)
    for i, item in enumerate(session):
        position = read.position.weight[len(session) - 1 - i]
        mixed = read.mix_click.weight @ x_h[item] + read.mix_click.bias + read.mix_position.weight @ position
        inner = read.attend_mean.weight @ mean + read.attend_click.weight @ torch.tanh(mixed) + read.attend_click.bias
        theta = theta + (read.attend.weight[0] @ (1 / (1 + torch.exp(-inner)))) * x_h[item]
    return theta


def naive_line(model: DHCN) -> Tensor:
    """theta_l of all sessions."""
    x = model.item_embedding.weight
    layers = [torch.stack([sum((x[i] for i in s[1:]), x[s[0]]) / len(s) for s in SESSIONS])]
    overlap = torch.tensor([[len(set(a) & set(b)) / len(set(a) | set(b)) for b in SESSIONS] for a in SESSIONS])
    for _ in range(model.layers):
        rows = []
        for p in range(len(SESSIONS)):
            degree = sum(overlap[p].tolist())
            rows.append(sum(float(overlap[p, q]) / degree * layers[-1][q] for q in range(len(SESSIONS))))
        layers.append(torch.stack(rows))  # type: ignore[arg-type]
    return sum(layers[1:], layers[0]) / len(layers)


def naive_loss(model: DHCN) -> Tensor:
    x_h = naive_items(model)
    theta_h = torch.stack([naive_session(model, x_h, session) for session in SESSIONS])
    theta_l = naive_line(model)
    rows, columns = torch.randperm(len(SESSIONS)), torch.randperm(D)  # in the model's order
    entropy, contrast = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for b, target in enumerate(TARGET_B.tolist()):
        scores = [x_h[item] @ theta_h[b] for item in range(V)]
        entropy = entropy - torch.log(torch.exp(scores[target]) / sum(torch.exp(score) for score in scores))
        agree, wrong = theta_h[b] @ theta_l[b], theta_h[rows[b]][columns] @ theta_l[b]
        contrast = contrast - torch.log(torch.sigmoid(agree)) - torch.log(1 - torch.sigmoid(wrong))
    return (entropy + CONFIG.self_supervision * contrast) / len(SESSIONS)


def test_loss_and_gradients_equal_the_equations() -> None:
    model = dhcn()
    plain = PlainRecommender(model)
    gradients = []
    losses = []
    for way in (lambda: plain.loss(BATCH, TARGET_B)["total"], lambda: naive_loss(model)):
        model.zero_grad()
        torch.manual_seed(8)
        losses.append(way())
        losses[-1].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-7, atol=1e-9)  # overlaps are float32
    assert gradients[0].keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_vectors_equal_the_equations() -> None:
    model = dhcn().eval()
    vectors = model(BATCH.items_BL, BATCH.length_B)
    x_h = naive_items(model)
    torch.testing.assert_close(model.item_vectors(), x_h, rtol=1e-10, atol=1e-12)
    for b, session in enumerate(SESSIONS):
        theta = naive_session(model, x_h, session)
        torch.testing.assert_close(vectors.session_BD[b], theta, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(vectors.local_BD[b], x_h[session[-1]], rtol=1e-10, atol=1e-12)
    assert vectors.auxiliary == 0.0  # the second channel is for training


def test_item_vectors_follow_every_change_of_the_weights() -> None:
    model = dhcn().eval()
    with torch.inference_mode():
        first_VD = model.item_vectors()
        assert model.item_vectors() is first_VD
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):  # with a graph of its own each time
        optimizer.zero_grad()
        PlainRecommender(model).loss(BATCH, TARGET_B)["total"].backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        assert not torch.allclose(model.item_vectors(), first_VD)
        torch.testing.assert_close(model.item_vectors(), naive_items(model))


def test_the_hypergraph_is_kept_in_the_state_dict() -> None:
    model, other = dhcn().eval(), DHCN(V, CONFIG).double().eval()
    other.item_vectors()
    other.load_state_dict(load(save(model.state_dict())))
    torch.testing.assert_close(other.item_vectors(), model.item_vectors())


@pytest.mark.parametrize("rows", [1, 6])
def test_a_batch_of_one_trains(rows: int) -> None:
    model = PlainRecommender(dhcn(dropout=0.5))
    loss = model.loss(SessionBatch(BATCH.items_BL[:rows], BATCH.length_B[:rows]), TARGET_B[:rows])["total"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_learns_what_belongs_together() -> None:
    groups, size = 4, 6
    torch.manual_seed(0)
    model = PlainRecommender(DHCN(groups * size, ModelConfig(width=16, dropout=0.0)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def task() -> tuple[SessionBatch, Tensor, Tensor]:
        group_B = torch.randint(groups, (64,))
        items_BL = torch.randint(size, (64, 4)) * groups + group_B[:, None]
        return SessionBatch(items_BL[:, :3], torch.full((64,), 3)), items_BL[:, 3], group_B

    for _ in range(100):
        batch, target_B, _ = task()
        optimizer.zero_grad()
        model.loss(batch, target_B)["total"].backward()
        optimizer.step()
    batch, _, group_B = task()
    with torch.no_grad():
        best_B6 = model.eval().score(batch).topk(size, dim=1).indices
    assert (best_B6 % groups == group_B[:, None]).float().mean() > 0.95
