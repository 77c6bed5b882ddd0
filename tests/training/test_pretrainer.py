"""The loop: its loss is one function of the batch, however the batch is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cedilla.dna.tokenizer import MASK, Tokenizer
from cedilla.errors import InputError
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.training.distributed import World
from cedilla.training.genomes import WindowSampler, read_genomes
from cedilla.training.precision import Precision
from cedilla.training.pretrainer import Masked, Objective, Pretrainer, Schedule, held_out_set

CPU = torch.device("cpu")
ALONE = World(device=CPU)
EXACT = Precision("cpu", torch.float32)
SCHEDULE = {"steps": 10, "batch_size": 8, "learning_rate": 1e-2, "warmup": 2, "seed": 0}


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    """The second half of the genome is soft-masked."""
    path = tmp_path_factory.mktemp("genomes") / "g.fa"
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 4000))
    path.write_text(f">one\n{letters[:2000]}{letters[2000:].lower()}\n")
    return read_genomes([str(path)])


@pytest.fixture(scope="module")
def sampler(genomes):
    return WindowSampler(genomes, length=30)


def model_of(seed: int = 0) -> NucleotideTransformer:
    torch.manual_seed(seed)
    config = NTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=75,
    )
    model = NucleotideTransformer(config)
    model.initialise()
    return model


def trainer(sampler, **changes) -> Pretrainer:
    schedule = Schedule(**SCHEDULE | changes)
    return Pretrainer(model_of(), Tokenizer(3), sampler, schedule, here=ALONE, precision=EXACT)


@pytest.mark.parametrize(
    ("initial", "rates"), [(0.0, [0.01, 0.5, 1.0, 0.5]), (0.5, [0.505, 0.75, 1.0, 0.5])]
)
def test_the_rate_rises_then_falls_with_the_root_of_the_step(sampler, initial, rates):
    changes = {"learning_rate": 1.0, "initial_learning_rate": initial, "warmup": 100}
    t = trainer(sampler, **changes, steps=1000)
    found = []
    for step in (0, 49, 99, 399):
        t.step(step)
        found += {group["lr"] for group in t.optimiser.param_groups}
    assert found == pytest.approx(rates)


def test_the_rate_ends_in_a_line_to_zero():
    schedule = Schedule(**SCHEDULE | {"steps": 100, "learning_rate": 1.0, "cooldown": 9})
    plain = Schedule(**SCHEDULE | {"steps": 100, "learning_rate": 1.0})
    shares = [schedule.rate(step) / plain.rate(step) for step in range(100)]
    assert shares == pytest.approx([1.0] * 91 + [0.9 - 0.1 * i for i in range(9)])


def test_adam_is_the_papers(sampler):
    defaults = trainer(sampler).optimiser.defaults
    assert (defaults["betas"], defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_validation_looks_at_masked_positions_alone(sampler):
    t = trainer(sampler)
    held_out, again = (held_out_set(sampler, t.tokenizer, 20) for _ in range(2))
    assert torch.equal(held_out.corrupted, again.corrupted)
    assert ((held_out.corrupted == MASK) == (held_out.weights > 0)).all()
    assert not held_out.weights[:, 0].any()
    found = t.validate(held_out)
    assert t.model.training
    # A model with weights this small gives every token about the same probability.
    assert found["loss"] == pytest.approx(math.log(75), rel=0.02)
    assert found["perplexity"] == pytest.approx(75, rel=0.1)
    assert 0 <= found["accuracy"] <= 0.2
    # Windows that do not fill a batch count as much as any other.
    parts = [held_out[i : i + 3] for i in range(0, 20, 3)]
    one = [t.validate(part)["loss"] for part in parts]
    counts = [part.weights.sum().item() for part in parts]
    assert found["loss"] == pytest.approx(np.average(one, weights=counts), rel=1e-5)


def test_windows_in_which_nothing_is_masked_cannot_validate(genomes):
    short = WindowSampler(genomes, length=3)
    with pytest.raises(InputError, match="nothing is masked; raise --validation-windows"):
        held_out_set(short, Tokenizer(3), 1)


def test_the_loss_is_weighted_cross_entropy_at_the_given_positions():
    model = model_of()
    ids = torch.randint(6, 70, (3, 10))
    weights = torch.zeros(3, 10)
    weights[0, 3], weights[2, 7] = 1.0, 0.25
    loss, right = Objective(model, EXACT, Schedule(**SCHEDULE))(Masked(ids, ids, weights))
    logits = model(ids).logits
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    torch.testing.assert_close(loss, each[0, 3] + 0.25 * each[2, 7])
    hits = logits.argmax(-1) == ids
    assert right == hits[0, 3] + 0.25 * hits[2, 7]


def test_repeats_count_by_their_weight(sampler):
    t = trainer(sampler, batch_size=200, soft_weight=0.25)
    batch = t.draw(np.random.default_rng(0))
    plain = trainer(sampler, batch_size=200).draw(np.random.default_rng(0))
    assert torch.equal(batch.corrupted, plain.corrupted)
    assert set(plain.weights.unique().tolist()) == {0.0, 1.0}
    assert {0.0, 0.25, 1.0} <= set(batch.weights.unique().tolist())
    assert ((batch.weights > 0) == (plain.weights > 0)).all()


def test_processes_share_a_batch_without_overlap(sampler):
    whole = trainer(sampler).draw(np.random.default_rng(3))
    halves = [World(device=CPU, rank=rank, size=2) for rank in range(2)]
    rows = []
    for here in halves:
        t = trainer(sampler)
        t.here = here
        rows.append(t.draw(np.random.default_rng(3)))
    for name in ("corrupted", "ids", "weights"):
        both = torch.cat([getattr(part, name) for part in rows])
        assert torch.equal(both, getattr(whole, name))


def weights_after(t: Pretrainer, steps: int = 3) -> tuple[list[float], torch.Tensor]:
    losses = [t.step(step) for step in range(steps)]
    return losses, torch.cat([p.detach().flatten() for p in t.model.parameters()])


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_gives_the_numbers_of_the_whole(sampler, parts):
    losses, weights = weights_after(trainer(sampler, soft_weight=0.3))
    again, others = weights_after(trainer(sampler, soft_weight=0.3, accumulate=parts))
    assert again == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(others, weights, rtol=0, atol=2e-5)


def test_a_batch_in_which_nothing_counts_teaches_nothing(sampler):
    t = trainer(sampler, soft_weight=0.0, batch_size=1)
    draws = [t.draw(np.random.default_rng((0, step))).weights.sum() for step in range(20)]
    silent = draws.index(0.0)
    assert t.step(silent) == 0.0
    assert all(p.isfinite().all() for p in t.model.parameters())
