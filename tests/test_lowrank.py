"""Low-rank adapters."""

import copy

import torch
from torch import nn

from xscalemixer.nn.blocks import TransformerLayer
from xscalemixer.nn.lowrank import add_low_rank, merge_low_rank


def layer():
    torch.manual_seed(0)
    return TransformerLayer(16, 2)


def test_nothing_changes_at_first_and_merging_keeps_the_sum():
    plain, x = layer(), torch.randn(2, 5, 16)
    adapted = copy.deepcopy(plain)
    add_low_rank(adapted, 3)
    assert torch.equal(plain(x), adapted(x))
    for name, parameter in adapted.named_parameters():
        if name.endswith("B"):
            nn.init.normal_(parameter)
    changed = adapted(x)
    merge_low_rank(adapted)
    torch.testing.assert_close(adapted(x), changed)
    assert set(adapted.state_dict()) == set(plain.state_dict()) and type(adapted.attention.query) is nn.Linear
    assert all(parameter.requires_grad for parameter in adapted.parameters())


def test_only_adapters_and_norms_are_trained():
    adapted = layer()
    add_low_rank(adapted, 3)
    trained = {name.split(".")[-1] for name, p in adapted.named_parameters() if p.requires_grad and "norm" not in name}
    assert trained == {"A", "B"}
    adapted(torch.randn(2, 5, 16)).sum().backward()
    assert all(p.grad is None for name, p in adapted.named_parameters() if "original" in name)


def test_rank_is_no_larger_than_the_layer():
    adapted = layer()
    add_low_rank(adapted, 99)
    assert adapted.attention.query.parametrizations.weight[0].A.shape == (16, 16)
