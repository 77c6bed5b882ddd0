"""Embedding speed beside Hugging Face's transformers 4.55.4, in one process, on the same weights.

The peer of v2 is the rotary ``EsmModel`` with the bias-free SwiGLU put in, eager and SDPA, batches
of 8 padded; ours gets the same batches. Contenders take turns; the best and the median round are
printed, tokens counted without pads, and written to ``benchmarks/results/inference.json`` with the
utilisation of the machine's own matrix peak, and the ratio that 100 % of it would give. Memory is
read in processes of their own. Run ``make reference`` once before.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
if not (ROOT / ".reference" / "transformers").is_dir():
    sys.exit("the peer is not there: run `make reference`")
sys.path.insert(0, str(ROOT / ".reference"))

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.models.esm.modeling_esm import EsmModel, EsmSelfAttention

from cedilla.dna.tokenizer import CLS, pad
from cedilla.files import write_json
from cedilla.models.cards import card
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.packed import PackedModel
from cedilla.models.speed import MatrixPeak, flops, seconds

RESULTS = ROOT / "benchmarks" / "results" / "inference.json"
V2_50M = card("v2-50m").config
ROUNDS = 7
BATCHES, SIZE = 3, 8
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SwiGLU(nn.Module):
    """v2's feed-forward layer, in the place of ESM's `EsmIntermediate`."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d, 2 * f, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dense(x).chunk(2, dim=-1)
        return F.silu(gate) * value


class Out(nn.Module):
    """And its second half, in the place of `EsmOutput`."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.dense = nn.Linear(f, d, bias=False)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.dense(h) + x


class SDPA(EsmSelfAttention):
    """Their attention by PyTorch's fused kernel; ESM has eager and flash attention only."""

    def forward(self, x: Tensor, attention_mask: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        B, L, D = x.size()
        q, k, v = (
            layer(x).view(B, L, self.num_attention_heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = self.rotary_embeddings(q, k)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return (y.transpose(1, 2).reshape(B, L, D),)


def own() -> NucleotideTransformer:
    """A v2-50m with random weights; the same ones in every process."""
    torch.manual_seed(0)
    model = NucleotideTransformer(V2_50M)
    model.initialise()
    return model.eval()


def peer(model: NucleotideTransformer, attention: str) -> nn.Module:
    """transformers' model of the same shape and weights."""
    c = model.config
    config = transformers.EsmConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        intermediate_size=c.intermediate_size,
        max_position_embeddings=c.max_position_embeddings,
        position_embedding_type="rotary",
        token_dropout=False,
        mask_token_id=c.mask_token_id,
        pad_token_id=c.pad_token_id,
        emb_layer_norm_before=False,
        layer_norm_eps=c.layer_norm_eps,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = EsmModel(config, add_pooling_layer=False)
    for layer in theirs.encoder.layer:
        if attention == "sdpa":
            layer.attention.self = SDPA(config)
        layer.intermediate = SwiGLU(c.hidden_size, c.intermediate_size)
        layer.output = Out(c.hidden_size, c.intermediate_size)
    state = {n.removeprefix("esm."): w for n, w in model.esm.state_dict().items()}
    result = theirs.load_state_dict(state, strict=False)
    unused = [n for n in result.missing_keys if "contact_head" not in n and "inv_freq" not in n]
    assert not unused, unused
    assert not result.unexpected_keys, result.unexpected_keys
    return theirs.eval()


def batches() -> list[list[np.ndarray]]:
    """Random 6-mers, 50 to 512 tokens a sequence, in batches of 8."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 513, (BATCHES, SIZE))
    return [
        [np.r_[CLS, rng.integers(6, 4102, n - 1)].astype(np.int32) for n in row] for row in lengths
    ]


@torch.inference_mode()
def theirs_on(model: nn.Module, work: list[list[np.ndarray]]) -> Tensor:
    """Hidden states (T, D) of all tokens, by padded batches."""
    parts = []
    for rows in work:
        ids, mask = pad(rows)
        parts.append(model(ids, attention_mask=mask.long()).last_hidden_state[mask])
    return torch.cat(parts)


def ours_on(model: PackedModel, work: list[list[np.ndarray]]) -> Tensor:
    """Hidden states (T, D) of all tokens, packed."""
    return torch.cat([hidden[0] for rows in work for hidden in model.hidden(rows)])


def memory(contender: str) -> dict[str, float]:
    """MB that one contender adds to a process that has imported everything, at the peak."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory", contender],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def measure_memory(contender: str) -> None:
    """Print, as JSON, the peak over the imports, and that of the forward pass alone."""
    empty = _resident()
    work = batches()[:1]
    library, kind = contender.split()
    if library == "transformers":
        run, theirs = theirs_on, peer(own(), kind)
    else:
        run, theirs = ours_on, PackedModel(own(), precision=kind, release=True)
    ctypes.CDLL(None).malloc_trim(0)  # what loading left behind counts for neither
    loaded = _resident()
    _reset_peak()
    run(theirs, work)
    peak = _peak()
    print(json.dumps({"total_mb": round(peak - empty), "forward_mb": round(peak - loaded)}))


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024 / 1e6


def machine() -> str:
    """The processor, and how many threads are used."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.*)", info)
    family = re.search(r"cpu family\s*: (\d+)\s*\nmodel\s*: (\d+)", info)
    made = f" (family {family[1]}, model {family[2]})" if family else ""
    return f"{name[1] if name else platform.processor()}{made}, {torch.get_num_threads()} threads"


def main() -> None:
    """Check that all agree, time them in turn, print and write the results."""
    model, work = own(), batches()
    lengths = [len(row) for rows in work for row in rows]
    paths = {
        "cedilla fp32": PackedModel(model, precision="float32"),
        "cedilla bf16": PackedModel(model, precision="bfloat16"),
    }
    rivals = {f"transformers {kind}": peer(model, kind) for kind in ("eager", "sdpa")}
    exact = theirs_on(rivals["transformers eager"], work)
    fast = {name: ours_on(path, work) for name, path in paths.items()}
    cosine = F.cosine_similarity(fast["cedilla bf16"], exact, dim=-1)
    peaks = {name: MatrixPeak(dtype) for name, dtype in PRECISIONS.items()}
    calls = {name: (lambda m=m: theirs_on(m, work)) for name, m in rivals.items()}
    calls |= {name: (lambda p=p: ours_on(p, work)) for name, p in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(seconds(call))
            for peak in peaks.values():
                peak.measure(1)
    best = {name: min(values) for name, values in times.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    work_done = flops(V2_50M, lengths)
    tokens = sum(lengths)
    result = {
        f"{name}_vs_{kind}": {
            "best": round(best[f"transformers {kind}"] / best[f"cedilla {name}"], 2),
            "median": round(median[f"transformers {kind}"] / median[f"cedilla {name}"], 2),
            "at_full_utilisation": round(
                best[f"transformers {kind}"] / (work_done / peaks[name].best), 2
            ),
        }
        for kind in ("eager", "sdpa")
        for name in PRECISIONS
    }
    result |= {
        "max_abs_diff": (fast["cedilla fp32"] - exact).abs().max().item(),
        "bf16_cosine": {"min": cosine.min().item(), "mean": cosine.mean().item()},
        "mfu": {n: round(work_done / best[f"cedilla {n}"] / peaks[n].best, 3) for n in PRECISIONS},
        "matrix_peak_gflops": {name: round(peak.best / 1e9) for name, peak in peaks.items()},
        "tokens_per_second": {name: round(tokens / value) for name, value in best.items()},
        "memory": {
            name: memory(name)
            for name in ("transformers eager", "cedilla float32", "cedilla bfloat16")
        },
        "paths": {name: path.path for name, path in paths.items()},
        "tokens": tokens,
        "padded_tokens": sum(SIZE * max(map(len, rows)) for rows in work),
        "rounds": ROUNDS,
        "machine": machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }
    show(result, best, median, tokens)
    write_json(RESULTS, result)


def show(result: dict, best: dict[str, float], median: dict[str, float], tokens: int) -> None:
    """The results as a table."""
    table = Table(title=f"Embeddings, v2-50m shape, {tokens:,} tokens\n{result['machine']}")
    for column in ("", "best s", "median s", "tokens/s", "× eager, best", "median"):
        table.add_column(column, justify="right" if column else "left")
    eager = "transformers eager"
    for name, value in best.items():
        table.add_row(
            name,
            f"{value:.2f}",
            f"{median[name]:.2f}",
            f"{tokens / value:,.0f}",
            f"{best[eager] / value:.2f}",
            f"{median[eager] / median[name]:.2f}",
        )
    Console(width=100).print(table)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(sys.argv[2])
    else:
        main()
