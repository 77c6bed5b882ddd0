"""Both kinds of linear kernels compute the same, and one that computes wrongly is not taken."""

import pytest
import torch
import torch.nn.functional as F

from cedilla.models import linear_kernels
from cedilla.models.linear_kernels import OneDNNKernels, PyTorchKernels, fastest, gain, usable

CPU = torch.device("cpu")
WITH_ONEDNN = len(usable(torch.float32, CPU)) == 2


@pytest.fixture(autouse=True)
def _measured_anew():
    fastest.cache_clear()
    yield
    fastest.cache_clear()


@pytest.fixture(
    params=[
        PyTorchKernels,
        pytest.param(OneDNNKernels, marks=pytest.mark.skipif(not WITH_ONEDNN, reason="no oneDNN")),
    ]
)
def kernels(request):
    return request.param()


@torch.inference_mode()
def test_each_operation_is_what_its_name_says(kernels):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(37, 48), torch.randn(64, 48), torch.randn(64)
    other = torch.randn(37, 64)
    packed = kernels.pack(weight)
    y = x @ weight.T
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(kernels.linear(x, packed, None), y, **close)
    torch.testing.assert_close(kernels.linear(x, packed, bias), y + bias, **close)
    torch.testing.assert_close(kernels.linear(x, packed, None, "swish"), F.silu(y), **close)
    torch.testing.assert_close(kernels.linear(x, packed, bias, "gelu"), F.gelu(y + bias), **close)
    torch.testing.assert_close(kernels.times(x, packed, other), other * y, **close)
    torch.testing.assert_close(kernels.plus(x, packed, bias, other), other + y + bias, **close)


@torch.inference_mode()
def test_what_is_added_or_multiplied_is_left_as_it_was(kernels):
    x, other = torch.randn(5, 16), torch.randn(5, 16)
    packed, before = kernels.pack(torch.randn(16, 16)), other.clone()
    kernels.times(x, packed, other)
    kernels.plus(x, packed, None, other)
    assert torch.equal(other, before)


def test_kernels_that_compute_wrongly_are_not_taken(monkeypatch):
    monkeypatch.setattr(OneDNNKernels, "times", lambda self, x, weight, other: other)
    assert [k.name for k in usable(torch.float32, CPU)] == ["PyTorch"]
    assert fastest(torch.float32, CPU).name == "PyTorch"


def test_kernels_that_are_absent_are_not_taken(monkeypatch):
    def absent(self, weight):
        raise AttributeError("no such operator")

    monkeypatch.setattr(OneDNNKernels, "pack", absent)
    assert fastest(torch.float32, CPU).name == "PyTorch"


@pytest.mark.skipif(not WITH_ONEDNN, reason="no oneDNN")
def test_kernels_that_are_clearly_slower_are_not_taken(monkeypatch):
    monkeypatch.setattr(linear_kernels, "gain", lambda dtype: 0.5)
    assert fastest(torch.float32, CPU).name == "PyTorch"
    fastest.cache_clear()
    monkeypatch.setattr(linear_kernels, "gain", lambda dtype: 1.5)
    assert fastest(torch.float32, CPU).name == "oneDNN"


@pytest.mark.skipif(not WITH_ONEDNN, reason="no oneDNN")
def test_measuring_leaves_the_number_of_threads():
    threads = torch.get_num_threads()
    assert gain(torch.float32, width=64, tokens=16, rounds=1) > 0
    assert torch.get_num_threads() == threads


def test_half_precision_on_a_cpu_takes_pytorch():
    assert fastest(torch.float16, CPU).name == "PyTorch"
