"""Convolution with channels last is PyTorch's own, in values and in gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cedilla.models.convolution import convolve

SHAPES = {
    "stem": {"kernel_size": 13, "padding": 6},
    "dilated": {"kernel_size": 3, "padding": 8, "dilation": 8},
    "strided": {"kernel_size": 4, "stride": 4},
    "without bias": {"kernel_size": 5, "padding": 2, "bias": False},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [4, 50])
def test_it_equals_conv1d_in_values_and_gradients(name, length):
    torch.manual_seed(0)
    convolution = nn.Conv1d(6, 8, **SHAPES[name])
    x = torch.randn(3, length, 6)
    wanted, found = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = convolution(wanted.transpose(1, 2)).transpose(1, 2)
    y = convolve(convolution, found)
    weights = torch.randn_like(expected)
    gradients = []
    for given, out in ((wanted, expected), (found, y)):
        of = [given, *convolution.parameters()]
        gradients.append(torch.autograd.grad((out * weights).sum(), of))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
