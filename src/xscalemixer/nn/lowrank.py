"""Low-rank adapters of linear layers and pointwise convolutions: W + B A with W frozen (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xscalemixer.nn.blocks import MLP, Attention
from xscalemixer.nn.met2net import TemporalAttentionUnit, VariableAttention

__all__ = ["LowRank", "add_low_rank", "merge_low_rank"]


class LowRank(nn.Module):
    """Adds B A to a weight; B starts at zero, so that nothing changes at first.

    Parameters
    ----------
    weight : Tensor, shape (out, in) or (out, in, 1, 1)
    rank : int
        Columns of B and rows of A; more than the weight has are of no use and left out.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        rank = min(rank, *weight.shape[:2])
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]).normal_(std=weight.shape[1] ** -0.5))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The same shape."""
        return weight + (self.B @ self.A).reshape_as(weight)


def add_low_rank(network: nn.Module, rank: int) -> None:
    """Freeze what mixes channels in attention, MLPs and the translator of Met2Net, and give each layer an adapter; in place."""
    for layer in list(_mixing_layers(network)):
        layer.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


@torch.no_grad()
def merge_low_rank(network: nn.Module) -> None:
    """Put the sums W + B A in place of the weights; the network is an ordinary one again."""
    for layer in [layer for layer in network.modules() if parametrize.is_parametrized(layer)]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.requires_grad_(True)


def _mixing_layers(network: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    for module in network.modules():
        if isinstance(module, (Attention, MLP)):
            yield from (child for child in module.children() if isinstance(child, nn.Linear))
        elif isinstance(module, (VariableAttention, TemporalAttentionUnit)):
            yield from (each for each in module.modules() if isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1))
