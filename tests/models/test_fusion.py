"""Fusion: the identity at the start, and silent for ever about what was not measured."""

from __future__ import annotations

import pytest
import torch

from cedilla.models.fusion import LocusFusion

NAN = float("nan")


@pytest.fixture
def pooled():
    torch.manual_seed(0)
    return torch.randn(6, 8)


@pytest.fixture
def trained(pooled):
    """A fusion after steps on rows of which some lack one feature or the other."""
    torch.manual_seed(1)
    fusion = LocusFusion(2, 8)
    features = torch.randn(6, 2)
    features[0, 0] = features[1, 1] = NAN
    optimiser = torch.optim.AdamW(fusion.parameters(), lr=0.05)
    target = torch.randn(6, 8)
    for _ in range(10):
        optimiser.zero_grad()
        (fusion(pooled, features) - target).pow(2).mean().backward()
        optimiser.step()
    return fusion.eval()


def test_it_starts_as_the_identity_bit_for_bit(pooled):
    features = torch.tensor([[0.0, 1e6], [NAN, 1], [1, NAN], [NAN, NAN], [-3, 0.5], [0, 0]])
    assert torch.equal(LocusFusion(2, 8)(pooled, features), pooled)


def test_what_was_not_measured_adds_nothing_after_training(trained, pooled):
    nothing = torch.full((6, 2), NAN)
    assert torch.equal(trained(pooled, nothing), pooled)
    measured = trained(pooled, torch.zeros(6, 2))
    assert (measured != pooled).any()  # a beta of zero is a measurement


def test_each_feature_is_left_out_by_itself(trained, pooled):
    values = torch.rand(6, 2)

    def added(first, second):
        features = torch.stack([first, second], 1)
        return trained(pooled, features) - pooled

    nothing = torch.full((6,), NAN)
    both = added(*values.T)
    apart = added(values[:, 0], nothing) + added(nothing, values[:, 1])
    torch.testing.assert_close(both, apart)


def test_gradients_flow_and_stay_finite_beside_missing_values(pooled):
    fusion = LocusFusion(3, 8)
    features = torch.randn(6, 3)
    features[:, 1] = NAN
    features[0] = NAN
    for _ in range(2):  # the second time, `project` is no longer zero
        fusion.zero_grad()
        fusion(pooled, features).pow(2).sum().backward()
        with torch.no_grad():
            fusion.project -= 0.1 * fusion.project.grad
    for parameter in fusion.parameters():
        assert parameter.grad.isfinite().all()
        assert (parameter.grad[1] == 0).all()
        assert (parameter.grad[[0, 2]] != 0).any()
