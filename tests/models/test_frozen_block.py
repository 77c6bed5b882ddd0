"""Blocks with frozen weights: the numbers of the plain ones, their adapters' gradients alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cedilla.models import frozen_block, nucleotide_transformer
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.frozen_block import run_frozen
from cedilla.models.linear_kernels import PyTorchKernels
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.training.adapters import Adapter, prepare

V1 = {"vocab_size": 4105, "position_embedding_type": "absolute"}
SOME = ("query", "value", "output.dense")


def classifier(
    method: str = "lora", *, targets=None, dropout: float = 0.0, **shape
) -> SequenceClassifier:
    torch.manual_seed(0)
    config = NTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **shape
    )
    model = SequenceClassifier(NucleotideTransformer(config), 2, dropout=0.0)
    prepare(model, method, Adapter(targets=targets, dropout=dropout, top_layers=1))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def batch(*, pads: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(6, 4000, (5, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 21, dtype=torch.bool)
    mask[1, 9:] = mask[4, 2:] = not pads
    return ids, mask


def gradients(model, ids, mask, *, autocast: bool = True):
    """The logits, and gradients by name."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(ids, mask)
    (out.float() * torch.tensor([1.0, -1.0])).sum().backward()
    return out.detach().float(), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


def served(model, ids, mask) -> bool:
    """Whether every block ran as a frozen one."""
    found = []

    def watched(*args):
        found.append(run_frozen(*args))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nucleotide_transformer, "run_frozen", watched)
        gradients(model, ids, mask)
    return all(one is not None for one in found)


@pytest.mark.parametrize("kernels", ["those here", "PyTorch"])
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("targets", [("query", "key", "value", "dense"), SOME, ("key",)])
@pytest.mark.parametrize("shape", [{}, V1], ids=["v2", "v1"])
def test_values_and_gradients_are_as_near_to_float32_as_those_of_the_plain_block(
    monkeypatch, shape, targets, pads, kernels
):
    if kernels == "PyTorch":
        monkeypatch.setattr(frozen_block, "usable", lambda *_: [PyTorchKernels()])
    model = classifier(targets=targets, **shape)
    ids, mask = batch(pads=pads)
    assert served(model, ids, mask)
    out, found = gradients(model, ids, mask)
    exact, wanted = gradients(model, ids, mask, autocast=False)
    assert found.keys() == wanted.keys()
    assert (out - exact).abs().max() < 0.02
    for name, gradient in wanted.items():
        assert found[name].dtype == gradient.dtype
        assert (found[name] - gradient).norm() < 0.04 * gradient.norm(), name


@pytest.mark.parametrize("method", ["head", "top"])
def test_without_adapters_frozen_blocks_are_served_and_trained_ones_are_not(method):
    model = classifier(method)
    ids, mask = batch()
    assert served(model, ids, mask) == (method == "head")
    exact = gradients(model, ids, mask, autocast=False)[0]
    assert (gradients(model, ids, mask)[0] - exact).abs().max() < 0.02


def test_what_is_not_plain_lora_is_left_to_the_plain_block():
    ids, mask = batch()
    for method in ("dora", "ia3", "bias", "full"):
        assert not served(classifier(method), ids, mask)
    assert served(classifier("rslora"), ids, mask)
    model = classifier()
    block = model.encoder.esm.blocks[0]
    x = torch.randn(2, 5, 32)
    assert run_frozen(block, x, None, None) is None  # not in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert run_frozen(block, x, None, None) is not None
        assert run_frozen(block, x.double(), None, None) is None
        for layer in block.modules():
            if hasattr(layer, "merge"):
                layer.merge()
        assert run_frozen(block, x, None, None) is None


def test_a_changed_weight_is_packed_again():
    model = classifier()
    ids, mask = batch()
    before = gradients(model, ids, mask)[0]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.encoder.esm.blocks[1].output["dense"].base_layer.weight.mul_(-1)
    assert not torch.allclose(gradients(model, ids, mask)[0], before, atol=1e-3)
    assert torch.equal(gradients(twin, ids, mask)[0], before)


def test_dropout_is_drawn_by_the_seed_and_keeps_the_mean():
    model = classifier(dropout=0.3)
    ids, mask = batch()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(gradients(model, ids, mask)[0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    torch.manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean = torch.stack([model(ids, mask).float() for _ in range(200)]).mean(0)
        exact = model.eval()(ids, mask).float()
    assert (mean - exact).abs().max() < 0.05
    x = torch.ones(1001, 37, dtype=torch.bfloat16)
    keep = frozen_block._mask(x, 0.3)
    assert set(keep.unique().tolist()) == {-1, 0}
    assert 0.29 < (keep == 0).float().mean() < 0.31
    assert torch.equal(frozen_block.masked(x, keep), (keep == -1).to(x.dtype))


def test_the_gradients_with_dropout_are_those_of_its_own_mask():
    model = classifier(dropout=0.5)
    ids, mask = batch()
    parameters = {n: p for n, p in model.named_parameters() if "layer.1" in n and "lora_" in n}

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            return (model(ids, mask).float() * torch.tensor([1.0, -1.0])).sum()

    model.zero_grad()
    loss().backward()
    for name in ("value.lora_B", "attention.output.dense.lora_A", "intermediate.dense.lora_B"):
        [parameter] = [p for n, p in parameters.items() if f"{name}." in n]
        direction = parameter.grad / parameter.grad.norm()
        step = 0.2 * parameter.detach().norm()
        with torch.no_grad():
            parameter += step * direction
            high = loss()
            parameter -= 2 * step * direction
            low = loss()
            parameter += step * direction
        slope = (high - low) / (2 * step)
        assert slope == pytest.approx(parameter.grad.norm().item(), rel=0.15), name


def test_what_is_kept_for_the_gradient_is_less_than_before():
    model = classifier(dropout=0.1)
    ids, mask = batch()
    sizes = []
    for autocast_path in (run_frozen, lambda *_: None):
        kept = {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            pytest.MonkeyPatch.context() as patch,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            patch.setattr(nucleotide_transformer, "run_frozen", autocast_path)
            model(ids, mask)
        sizes.append(sum(n for at, n in kept.items() if at not in weights))
    assert sizes[0] < 0.7 * sizes[1]
