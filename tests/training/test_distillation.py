"""Distillation: a student comes nearer to its teacher than without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory
from cedilla.training.distillation import Teacher, divergence
from cedilla.training.distributed import World
from cedilla.training.genomes import WindowSampler, read_genomes
from cedilla.training.precision import Precision
from cedilla.training.pretrainer import Pretrainer, Schedule

CPU = torch.device("cpu")
EXACT = Precision("cpu", torch.float32)


def model_of(width: int, scale: float = 1.0) -> NucleotideTransformer:
    torch.manual_seed(width)
    config = NTConfig(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=width,
        vocab_size=75,
    )
    model = NucleotideTransformer(config)
    model.initialise()
    with torch.no_grad():
        model.lm_head.decoder.weight.mul_(scale)
        model.lm_head.bias.normal_(0, scale / 20)
    return model


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    """A teacher with opinions of its own, which nothing in a random genome could teach."""
    path = tmp_path_factory.mktemp("teacher")
    save_directory(model_of(32, scale=20.0), path)
    return str(path)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    path = tmp_path_factory.mktemp("genomes") / "g.fa"
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 4000))
    path.write_text(f">one\n{letters}\n")
    return WindowSampler(read_genomes([str(path)]), length=30)


def test_the_divergence_is_zero_between_equals_and_grows_with_the_difference():
    logits = torch.randn(5, 7)
    torch.testing.assert_close(divergence(logits, logits, 2.0), torch.zeros(5), atol=1e-6, rtol=0)
    other = torch.randn(5, 7)
    teacher = torch.softmax(other / 2, -1)
    expected = (teacher * (teacher.log() - torch.log_softmax(logits / 2, -1))).sum(-1)
    torch.testing.assert_close(divergence(logits, other, 2.0), 4 * expected)


def test_a_teacher_is_frozen_and_evaluates(teacher_dir):
    teacher = Teacher(teacher_dir, Tokenizer(3), 16, CPU)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    ids = torch.randint(6, 70, (2, 5))
    where = ids > 40
    found = teacher.logits(ids, where, EXACT)
    torch.testing.assert_close(found, teacher.model(ids).logits[where])
    assert not found.requires_grad


def test_a_teacher_of_other_tokens_or_too_few_is_refused(teacher_dir):
    with pytest.raises(InputError, match=r"reads 3-mers with .*; the student reads 6-mers with"):
        Teacher(teacher_dir, Tokenizer(6), 16, CPU)
    with pytest.raises(InputError, match="student reads 3-mers with ids of version 1"):
        Teacher(teacher_dir, Tokenizer(3, version=1), 16, CPU)
    with pytest.raises(InputError, match="takes 2,048 tokens; the student learns from 3,000"):
        Teacher(teacher_dir, Tokenizer(3), 3000, CPU)


def distance(student: torch.nn.Module, teacher: Teacher, sampler, weight: float) -> float:
    """What is between the two on new data, after some steps."""
    schedule = Schedule(
        steps=60,
        batch_size=16,
        learning_rate=1e-2,
        warmup=5,
        seed=0,
        distill_weight=weight,
        temperature=2.0,
    )
    t = Pretrainer(
        student,
        Tokenizer(3),
        sampler,
        schedule,
        here=World(device=CPU),
        precision=EXACT,
        teacher=teacher if weight else None,
    )
    for step in range(60):
        t.step(step)
    batch = t.draw(np.random.default_rng(99))
    where = batch.weights > 0
    ours = student(batch.corrupted).logits[where].detach()
    theirs = teacher.logits(batch.corrupted, where, EXACT)
    kl = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none")
    return float(kl.sum(-1).mean())


def test_a_student_comes_nearer_to_its_teacher_than_without(teacher_dir, sampler):
    teacher = Teacher(teacher_dir, Tokenizer(3), 16, CPU)
    alone, half, all_of_it = (distance(model_of(8), teacher, sampler, w) for w in (0.0, 0.5, 1.0))
    assert all_of_it < half < 0.7 * alone
