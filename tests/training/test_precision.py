"""Precision follows the processor."""

from __future__ import annotations

import pytest
import torch

from cedilla.training.precision import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), Precision("cuda", torch.float16, scaled=True)),
        ((8, 0), Precision("cuda", torch.bfloat16)),
        ((9, 0), Precision("cuda", torch.bfloat16)),
    ],
)
def test_older_gpus_train_in_scaled_float16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert Precision.of(GPU) == expected


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_trains_in_bfloat16_where_it_has_it(monkeypatch, fast, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    precision = Precision.of(CPU)
    assert precision == Precision("cpu", dtype)
    a = torch.rand(4, 4)
    with precision.autocast():
        assert (a @ a).dtype == dtype


def test_other_devices_stay_in_float32():
    assert Precision.of(torch.device("mps")) == Precision("mps", torch.float32)
