"""The count of operations, against PyTorch's own counter."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.speed import MatrixPeak, flops, seconds


def test_operations_are_those_that_pytorch_counts():
    for rotary in ("rotary", "absolute"):
        config = NTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            vocab_size=75,
            position_embedding_type=rotary,
        )
        model = NucleotideTransformer(config).eval()
        ids = torch.full((2, 11), 8)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # Maps are asked for, since the counter knows no fused attention on a CPU.
            model.esm(ids, attentions=True)
        assert flops(config, [11, 11]) == counter.get_total_flops()


def test_the_peak_is_of_this_machine_and_never_falls():
    peak = MatrixPeak(torch.float32)
    x = torch.randn(512, 512)
    slowest = 2 * 512**3 / max(seconds(lambda: x @ x) for _ in range(3))
    first = peak.measure(3)
    assert slowest / 10 < first <= peak.measure(1) == peak.best


def test_seconds_are_those_of_the_call():
    assert 0.05 <= seconds(lambda: time.sleep(0.05)) < 5
