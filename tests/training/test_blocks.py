"""Blocks computed twice or compiled: the same numbers, less memory, the same names on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory
from cedilla.training.adapters import Adapter, prepare
from cedilla.training.blocks import CPU, activations_kept, prepare_blocks
from cedilla.training.finetune import finetune
from cedilla.training.pretrain import pretrain

# While it compiles, torch warns of what it does itself.
quiet = pytest.mark.filterwarnings("ignore")
BOTH = {"gradient_checkpointing": True, "compile": True}
GOLDEN = Path(__file__).parents[1] / "golden"


def classifier(*, dropout: float = 0.2) -> SequenceClassifier:
    """Eight layers with LoRA adapters that do something."""
    torch.manual_seed(0)
    config = NTConfig(
        hidden_size=32,
        num_hidden_layers=8,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=75,
    )
    encoder = NucleotideTransformer(config)
    encoder.initialise()
    model = SequenceClassifier(encoder, 2, dropout=dropout)
    prepare(model, "lora", Adapter(dropout=dropout))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def batch(B: int, L: int, *, pads: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(L)
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[0, L // 2 :] = not pads
    return torch.randint(6, 70, (B, L), generator=generator), mask


def gradients(model, ids, mask):
    """Gradients by name, the bytes that the backward pass kept, and the calls of a block."""
    kept, calls = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    block = next(m for n, m in model.named_modules() if n.endswith("layer.1"))
    hook = block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(ids, mask)
    out = out if isinstance(out, torch.Tensor) else out.logits
    out.square().mean().backward()
    hook.remove()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, sum(n for at, n in kept.items() if at not in weights), len(calls)


def assert_same_gradients(found, expected, *, atol=1e-6):
    assert found.keys() == expected.keys()
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=atol, msg=name)


@pytest.mark.parametrize("name", ["nt_v1_tiny", "nt_v2_tiny"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = load_directory(GOLDEN / name).train()
    sequences = json.loads((GOLDEN / name / "sequences.json").read_text())
    ids, mask = Tokenizer.for_model(model).encode(sequences)
    plain, memory, calls = gradients(model, ids, mask)
    prepare_blocks(model, CPU, checkpointing=True, compiled=False)
    recomputed, less_memory, more_calls = gradients(model, ids, mask)
    assert_same_gradients(recomputed, plain)
    assert (calls, more_calls) == (1, 2)
    assert less_memory < memory
    # In prediction nothing is computed twice.
    assert gradients(model.eval(), ids, mask)[2] == 1


def test_gradient_checkpointing_saves_memory_with_adapters_and_dropout():
    model = classifier()
    ids, mask = batch(4, 60)
    plain, memory, _ = gradients(model, ids, mask)
    estimate = activations_kept(model.encoder)
    prepare_blocks(model.encoder, CPU, checkpointing=True, compiled=False)
    recomputed, less_memory, calls = gradients(model, ids, mask)
    assert calls == 2
    assert_same_gradients(recomputed, plain)
    assert less_memory < 0.1 * memory
    # While a block is computed again, what it keeps comes on top.
    assert (activations_kept(model.encoder), estimate) == (8 + 20, 8 * 20)


def test_gradient_checkpointing_saves_memory_of_a_hybrid(hybrid):
    model = SequenceClassifier(load_directory(hybrid), 2, dropout=0.0).train()
    ids, mask = batch(4, 60)
    ids = 6 + ids % 4
    plain, memory, _ = gradients(model, ids, mask)
    estimate = activations_kept(model.encoder)
    prepare_blocks(model.encoder, CPU, checkpointing=True, compiled=False)
    recomputed, less_memory, calls = gradients(model, ids, mask)
    assert calls == 2
    assert_same_gradients(recomputed, plain)
    assert less_memory < memory
    # Two blocks of 24 on every third base beside 16 on each, and two convolutions.
    assert (activations_kept(model.encoder), estimate) == (22 // 2 + 8, 40 // 2 + 8)


@quiet
@pytest.mark.slow
def test_a_hybrid_compiles(hybrid):
    eager, compiled = (SequenceClassifier(load_directory(hybrid), 2, dropout=0.0) for _ in "ab")
    compiled.load_state_dict(eager.state_dict())
    eager.train(), compiled.train()
    prepare_blocks(compiled.encoder, CPU, checkpointing=True, compiled=True)
    torch._dynamo.reset()
    for B, L, pads in ((8, 30, True), (5, 41, False), (3, 50, True)):
        ids, mask = batch(B, L, pads=pads)
        ids = 6 + ids % 4
        expected = gradients(eager, ids, mask)[0]
        assert_same_gradients(gradients(compiled, ids, mask)[0], expected, atol=1e-5)


def test_models_without_blocks_are_refused(tables, tmp_path):
    settings = {"checkpointing": True, "compiled": True}
    for encoder in (None, DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=1))):
        with pytest.raises(InputError, match="model without Transformer blocks"):
            prepare_blocks(encoder, CPU, **settings)
        prepare_blocks(encoder, CPU, checkpointing=False, compiled=False)
    for name in ("kmer", "cnn"):
        with pytest.raises(InputError, match="model without Transformer blocks"):
            finetune(**tables, out=tmp_path / "r", model=name, compile=True)
    assert not (tmp_path / "r").exists()


@quiet
def test_a_missing_compiler_is_named(tiny, tables, tmp_path):
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}),
        pytest.raises(InputError, match=r"cannot compile: .*C\+\+ compiler") as caught,
    ):
        finetune(**tables, out=tmp_path / "r", model=str(tiny), compile=True)
    assert "install a C++ compiler" in caught.value.problems[0].mend
    assert not (tmp_path / "r").exists()


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_the_same_gradients_whatever_the_batch(checkpointing):
    eager, compiled = classifier(), classifier()
    prepare_blocks(compiled.encoder, CPU, checkpointing=checkpointing, compiled=True)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    # A batch as large as the head size, or as long as it is large, is a batch like any other.
    for B, L, pads in ((8, 30, True), (5, 41, False), (7, 7, True), (30, 8, False), (3, 50, True)):
        ids, mask = batch(B, L, pads=pads)
        expected = gradients(eager, ids, mask)[0]
        assert_same_gradients(gradients(compiled, ids, mask)[0], expected, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled.eval()(ids, mask), eager.eval()(ids, mask), rtol=0, atol=1e-5
            )
        compiled.train(), eager.train()
    # In training: the first block, whose input wants no gradient, and the others. In prediction
    # one for all.
    assert counters["stats"]["unique_graphs"] - before == 3


@quiet
@pytest.mark.slow
def test_verbs_compile_and_compute_twice(tiny, tables, tmp_path):
    settings = {"model": str(tiny), "epochs": 2, "batch_size": 16, "patience": 0, "method": "lora"}
    found = {}
    for name, switches in {"plain": {}, "both": BOTH}.items():
        out = finetune(**tables, out=tmp_path / name, **settings, **switches)
        found[name] = json.loads((out / "metrics.json").read_text())["test"]["auroc"]
    assert found["both"] == pytest.approx(found["plain"], abs=0.02)
    names = [load_file(tmp_path / n / "checkpoints" / "best" / "model.safetensors") for n in found]
    assert names[0].keys() == names[1].keys()

    genome = tmp_path / "repeats.fa"
    genome.write_text(">one\n" + "ACGTTGCATTAGGACCATTCA" * 200 + "\n")
    shape = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 32, "k": 3}
    shape |= {"tokens": 16, "batch_size": 16, "steps": 8, "validation_share": 0.2}
    losses = {}
    for name, switches in {"p": {}, "b": BOTH}.items():
        out = pretrain(genomes=(str(genome),), out=tmp_path / name, **shape, **switches)
        losses[name] = json.loads((out / "metrics.json").read_text())["loss"]
        assert load_directory(out / "checkpoints" / "best").config.num_hidden_layers == 2
    assert losses["b"] == pytest.approx(losses["p"], abs=0.01)
