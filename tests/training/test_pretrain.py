"""Pre-training: it learns, and a run that was cut off ends as one that was not."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import cedilla
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory
from cedilla.training import pretrain as module
from cedilla.training.genomes import Genome, WindowSampler
from cedilla.training.pretrain import Pretrainer, masked_loss, pretrain, validation_set

SMALL = {
    "layers": 1,
    "hidden_size": 32,
    "heads": 2,
    "intermediate_size": 32,
    "k": 3,
    "tokens": 16,
    "batch_size": 16,
    "warmup": 10,
    "validation_share": 0.2,
    "learning_rate": 1e-2,
}
SHORT = SMALL | {"steps": 12, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """A repeat of 21 bases: what is masked stands seven tokens further."""
    path = tmp_path_factory.mktemp("genomes") / "repeats.fa"
    unit = "ACGTTGCATTAGGACCATTCA"
    path.write_text(f">one\n{unit * 150}\n>two\n{unit[::-1] * 100}\n")
    return (str(path),)


def losses_of(out):
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if k != "seconds"} for event in events]


def weights_of(out):
    return load_directory(out / "checkpoints" / "best").state_dict()


def assert_same(a, b):
    assert losses_of(a) == losses_of(b)
    assert (a / "metrics.json").read_text() == (b / "metrics.json").read_text()
    for name, tensor in weights_of(a).items():
        assert torch.equal(tensor, weights_of(b)[name]), name


def test_a_repetitive_genome_is_learned_beyond_its_frequencies(genome, tmp_path):
    out = tmp_path / "r"
    assert pretrain(genomes=genome, out=out, **SMALL, steps=150, checkpoint_every=30) == out
    events = losses_of(out)
    assert [event["step"] for event in events] == [30, 60, 90, 120, 150]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["loss"] < 0.7 * metrics["unigram_loss"] < 0.7 * math.log(64)
    assert metrics["accuracy"] > 0.2
    # What is reported belongs to the model that is kept.
    assert metrics["loss"] == min(event["loss"] for event in events)
    model = cedilla.load(out / "checkpoints" / "best")
    assert model.config.k == 3
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["data"][0]["rows"] == 2
    assert manifest["parameters"] == sum(p.numel() for p in model.parameters())
    assert manifest["tokens_seen"] == 150 * 16 * 16


def test_the_model_of_the_lowest_loss_is_kept(genome, tmp_path, monkeypatch):
    losses, weights = iter([3.0, 1.0, 2.0]), []

    def validate(self, batches):
        weights.append({n: t.clone() for n, t in self.model.state_dict().items()})
        return {"loss": next(losses), "accuracy": 0.5}

    monkeypatch.setattr(Pretrainer, "validate", validate)
    pretrain(genomes=genome, out=tmp_path / "r", **SHORT)
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (metrics["loss"], metrics["step"]) == (1.0, 8)
    for name, tensor in weights_of(tmp_path / "r").items():
        assert torch.equal(tensor, weights[1][name])


def test_the_same_command_gives_the_same_model(genome, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(genomes=genome, out=tmp_path / name, **SHORT, seed=seed)
    assert_same(tmp_path / "a", tmp_path / "b")
    assert losses_of(tmp_path / "a") != losses_of(tmp_path / "c")


@pytest.mark.parametrize("what", ["save_state", "save_directory", "masked_loss"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_run_killed_anywhere_ends_as_the_uninterrupted_one(
    genome, tmp_path, monkeypatch, what, call
):
    pretrain(genomes=genome, out=tmp_path / "whole", **SHORT)
    real, calls = getattr(module, what), []

    def killed(*args, **kwargs):
        calls.append(args)
        # A step's loss is asked for many times, so a later one is cut.
        if len(calls) == (call if what != "masked_loss" else 6 * call):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, what, killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(genomes=genome, out=tmp_path / "cut", **SHORT)
    monkeypatch.setattr(module, what, real)
    pretrain(genomes=genome, out=tmp_path / "cut", **SHORT, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_process_killed_at_random_ends_as_the_uninterrupted_one(genome, tmp_path):
    settings = SMALL | {"steps": 600, "checkpoint_every": 10}
    pretrain(genomes=genome, out=tmp_path / "whole", **settings)
    out = tmp_path / "cut"
    words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    words += [f"--genomes={genome[0]}", f"--out={out}"]
    program = "import sys; from cedilla.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "pretrain", *words]
    for attempt in range(2):
        again = ["--resume"] if attempt else []
        with subprocess.Popen(
            [*command, *again],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # As many threads as here: sums of another number of parts end in other digits.
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        ) as process:
            before = len(losses_of(out)) if out.exists() else 0
            while process.poll() is None and (
                not (out / "metrics.jsonl").exists() or len(losses_of(out)) <= before
            ):
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
        assert not (out / "metrics.json").exists()
    pretrain(genomes=genome, out=out, **settings, resume=True)
    assert_same(tmp_path / "whole", out)


def test_a_complete_run_is_not_repeated(genome, tmp_path):
    out = tmp_path / "r"
    pretrain(genomes=genome, out=out, **SHORT)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    pretrain(genomes=genome, out=out, **SHORT, resume=True)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_a_moved_run_goes_on_elsewhere(genome, tmp_path, monkeypatch):
    pretrain(genomes=genome, out=tmp_path / "whole", **SHORT)
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    (tmp_path / "moved" / "metrics.json").unlink()
    pretrain(genomes=genome, out=tmp_path / "moved", **SHORT, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "moved")


def test_a_dry_run_writes_nothing(genome, tmp_path, capsys):
    pretrain(genomes=genome, out=tmp_path / "r", **SHORT, dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "12 steps of 256 tokens" in said
    assert "GB of memory" in said
    assert not (tmp_path / "r").exists()


def test_impossible_settings_are_refused_together(genome, tmp_path):
    with pytest.raises(InputError) as caught:
        pretrain(
            genomes=genome,
            out=tmp_path / "r",
            **SHORT | {"layers": 0, "k": 9, "steps": 0, "warmup": 0, "validation_share": 1.0},
        )
    names = [problem.what.split()[0] for problem in caught.value.problems]
    assert names == ["layers", "steps", "warmup", "k", "validation_share"]
    with pytest.raises(InputError, match="hidden_size 32 is not divisible by"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | {"heads": 3})
    assert not (tmp_path / "r").exists()


def test_what_cannot_be_read_or_cut_is_refused_before_the_run_begins(genome, tmp_path):
    with pytest.raises(InputError, match=r"none\.fa: not found"):
        pretrain(genomes=("none.fa",), out=tmp_path / "r", **SHORT)
    with pytest.raises(InputError, match="no held-out end of a contig has 45 bases"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | {"validation_share": 0.001})
    assert not (tmp_path / "r").exists()


def test_a_training_that_diverges_says_so(genome, tmp_path):
    with pytest.raises(InputError, match=r"the loss is not finite; lower --learning-rate"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | {"learning_rate": 1e38})


def trainer(learning_rate: float = 1.0, warmup: int = 100) -> Pretrainer:
    torch.manual_seed(0)
    config = NTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=75,
    )
    model = NucleotideTransformer(config)
    model.initialise()
    contig = np.random.default_rng(0).integers(0, 4, 500).astype(np.uint8)
    sampler = WindowSampler([Genome("g", (contig,), 1.0)], length=30)
    return Pretrainer(
        model,
        Tokenizer(3),
        sampler,
        batch_size=4,
        learning_rate=learning_rate,
        warmup=warmup,
    )


def test_the_rate_rises_then_falls_with_the_root_of_the_step():
    t = trainer()
    rates = []
    for step in (0, 49, 99, 399):
        t.step(step, np.random.default_rng(step))
        rates += {group["lr"] for group in t.optimiser.param_groups}
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5])


def test_validation_looks_at_masked_positions_alone():
    t = trainer()
    batches = validation_set(t.sampler, t.tokenizer, 4)
    again = validation_set(t.sampler, t.tokenizer, 4)
    assert all(
        torch.equal(a["corrupted"], b["corrupted"]) for a, b in zip(batches, again, strict=True)
    )
    for batch in batches:
        assert (batch["corrupted"][batch["masked"]] == 2).all()
        assert not batch["masked"][:, 0].any()
    found = t.validate(batches)
    assert t.model.training
    # A model with weights this small gives every token about the same probability.
    assert found["loss"] == pytest.approx(math.log(75), rel=0.02)
    assert 0 <= found["accuracy"] <= 0.2


def test_the_loss_is_cross_entropy_at_the_given_positions():
    t = trainer()
    ids = torch.randint(6, 70, (3, 10))
    where = torch.zeros(3, 10, dtype=torch.bool)
    where[0, 3] = where[2, 7] = True
    loss, accuracy = masked_loss(t.model, ids, ids, where)
    logits = t.model(ids).logits[where]
    expected = torch.nn.functional.cross_entropy(logits, ids[where])
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.01)  # it runs in bfloat16
    assert 0 <= accuracy <= 1


def test_the_unigram_loss_is_that_of_known_frequencies():
    t = trainer()
    t.sampler = WindowSampler(
        [Genome("g", (np.tile([0, 1, 2], 50).astype(np.uint8),), 1.0)], length=30
    )
    batches = validation_set(t.sampler, t.tokenizer, 8)
    # Three frames on two strands: six 3-mers, alike often.
    assert t.unigram_loss(batches, 0) == pytest.approx(math.log(6), rel=0.03)
