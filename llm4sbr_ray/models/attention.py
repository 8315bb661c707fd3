"""Causal self-attention over the clicks of a batch of sessions, and the layouts that spare the padding.

Everything but the attention itself works click by click, so it runs on the N clicks alone: where the longest
session of a batch has 50 clicks and the mean one 10, that is a fifth of the padded work. Attention, which grows with
the square of the padded length, takes sessions of like length together.

Shapes, besides those of `models.base`: N clicks of all sessions of a batch, sessions one after the other, each in
click order; H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.errors import UserError


@dataclass
class Clicks:
    """The clicks of a batch without its padding."""

    item_N: Tensor  # int64
    steps_N: Tensor  # int64, clicks of the session after this one: 0 for the last click
    cell_N: Tensor  # int64, index of each click in the padded batch laid out flat: session * L + position
    session_N: Tensor  # int64
    offset_B: Tensor  # int64, where each session begins
    last_B: Tensor  # int64, index of each session's last click
    shape: tuple[int, int]  # B, L

    def padded(self, value_NF: Tensor) -> Tensor:
        """B x L x F, zeros at the padding."""
        B, L = self.shape
        return value_NF.new_zeros(B * L, value_NF.shape[1]).index_copy(0, self.cell_N, value_NF).view(B, L, -1)

    def flat(self, value_BLF: Tensor) -> Tensor:
        """N x F: the padded layout without its padding."""
        return value_BLF.flatten(0, 1)[self.cell_N]

    def mean(self, value_NF: Tensor) -> Tensor:
        """B x F: the mean over each session's clicks."""
        each_N = torch.arange(len(value_NF), device=value_NF.device)
        return F.embedding_bag(each_N, value_NF, self.offset_B, mode="mean")


def clicks_of(items_BL: Tensor, length_B: Tensor) -> Clicks:
    """The clicks of sessions padded at the end (int64), each at least one click long."""
    B, L = items_BL.shape
    steps_BL = length_B[:, None] - 1 - torch.arange(L, device=items_BL.device)
    cell_N = torch.nonzero(steps_BL.flatten() >= 0).squeeze(1)
    end_B = length_B.cumsum(0)
    return Clicks(
        item_N=items_BL.flatten()[cell_N],
        steps_N=steps_BL.flatten()[cell_N],
        cell_N=cell_N,
        session_N=cell_N // L,
        offset_B=end_B - length_B,
        last_B=end_B - 1,
        shape=(B, L),
    )


LENGTH_BOUNDS = (4, 8, 16, 32)  # sessions up to each bound are padded together, longer ones by themselves


@dataclass
class LengthGroup:
    """Sessions of like length. M clicks, G sessions."""

    click_M: Tensor  # int64, which of the N clicks
    cell_M: Tensor  # int64, their cells in the group's padded layout, flat
    shape: tuple[int, int]  # G, L


class LengthGroups:
    """The sessions of a batch by length, for work that needs them padded."""

    def __init__(self, clicks: Clicks) -> None:
        L = clicks.shape[1]
        bounds = [bound for bound in LENGTH_BOUNDS if bound < L]
        length_B = clicks.last_B - clicks.offset_B + 1
        group_B = torch.bucketize(length_B, torch.tensor(bounds, device=length_B.device))
        self.groups = []
        for number, group_length in enumerate([*bounds, L]):
            inside_B = group_B == number
            click_M = torch.nonzero(inside_B[clicks.session_N]).squeeze(1)
            if len(click_M):
                row_M = (inside_B.cumsum(0) - 1)[clicks.session_N[click_M]]
                cell_M = row_M * group_length + clicks.cell_N[click_M] % L
                self.groups.append(LengthGroup(click_M, cell_M, (int(row_M[-1]) + 1, group_length)))
        self.place_N = torch.cat([group.click_M for group in self.groups]).argsort()

    def apply(self, function: Callable[[Tensor], Tensor], value_NF: Tensor) -> Tensor:
        """Apply a function of sessions padded with zeros at the end, G x L x F, to all clicks' values, N x F."""
        done = []
        for group in self.groups:
            G, L = group.shape
            padded_CF = value_NF.new_zeros(G * L, value_NF.shape[1])
            padded_CF = padded_CF.index_copy(0, group.cell_M, value_NF[group.click_M])
            done.append(function(padded_CF.view(G, L, -1)).flatten(0, 1)[group.cell_M])
        return torch.cat(done)[self.place_N]


class CausalAttention(nn.Module):
    """Multi-head scaled dot-product attention of each click to itself and those before it (Vaswani et al., 2017).

    The padding stands behind every click, so the causal mask alone keeps it out.

    Parameters
    ----------
    width
        D.
    heads
        H, a divisor of D.

    Raises
    ------
    UserError
        H does not divide D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        require_divisor(width, heads)
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)  # queries, keys, values
        self.project_out = nn.Linear(width, width)

    def forward(self, value_ND: Tensor, groups: LengthGroups) -> Tensor:
        """N x D."""
        out_ND: Tensor = self.project_out(groups.apply(self._attend, self.project_in(value_ND)))
        return out_ND

    def _attend(self, projected_BLF: Tensor) -> Tensor:
        query_BHLK, key_BHLK, value_BHLK = (
            part_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2) for part_BLD in projected_BLF.chunk(3, dim=2)
        )
        mixed_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, is_causal=True)
        return mixed_BHLK.transpose(1, 2).flatten(2)


def require_divisor(width: int, heads: int) -> None:
    """Raise a UserError if the heads do not share out the width evenly."""
    if width % heads:
        raise UserError(f"model.attention_heads: {heads} heads do not share out model.width {width} evenly")
