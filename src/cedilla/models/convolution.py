"""Convolution along sequences whose channels lie last in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def convolve(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """`convolution` of x (B, L, D), as (B, L', D').

    The layout is that of LayerNorms and linear layers, and the one in which oneDNN and cuDNN
    convolve without copies; PyTorch knows it for two dimensions, so the sequence is an image one
    pixel high.
    """
    image = x.transpose(1, 2).unsqueeze(2)  # (B, D, 1, L)
    y = F.conv2d(
        image,
        convolution.weight.unsqueeze(2),
        convolution.bias,
        stride=(1, convolution.stride[0]),
        padding=(0, int(convolution.padding[0])),
        dilation=(1, convolution.dilation[0]),
    )
    return y.squeeze(2).transpose(1, 2)
