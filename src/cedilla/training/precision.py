"""Which numbers to train in: chosen from the device, float32 where nothing else pays."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """The type that matrix products run in; weights and residual stream stay float32.

    scaled: whether losses must be scaled, since float16 gradients would underflow.
    """

    device: str
    dtype: torch.dtype
    scaled: bool = False

    @classmethod
    def of(cls, device: torch.device) -> Precision:
        """bfloat16 where the processor has it, float16 on older GPUs such as a T4."""
        if device.type == "cuda":
            if torch.cuda.get_device_capability(device) >= (8, 0):
                return cls("cuda", torch.bfloat16)
            return cls("cuda", torch.float16, scaled=True)
        if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
            return cls("cpu", torch.bfloat16)
        return cls(device.type, torch.float32)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)
