"""Pre-training: it learns, and a run that was cut off ends as one that was not."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch

import cedilla
from cedilla import run_directory
from cedilla.errors import InputError
from cedilla.models.weights import load_directory
from cedilla.training import pretrainer
from cedilla.training.pretrain import pretrain
from cedilla.training.pretrainer import Pretrainer

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
    "validation_windows": 64,
    "learning_rate": 1e-2,
}
TIMES = ("seconds", "tokens_per_second")
SHORT = SMALL | {"steps": 12, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """A repeat of 21 bases: what is masked stands seven tokens further."""
    path = tmp_path_factory.mktemp("genomes") / "repeats.fa"
    unit = "ACGTTGCATTAGGACCATTCA"
    path.write_text(f">one\n{unit * 150}\n>two\n{unit[::-1] * 100}\n")
    return (str(path),)


@pytest.fixture(scope="module")
def whole(genome, tmp_path_factory):
    """A short run that nothing interrupted."""
    return pretrain(genomes=genome, out=tmp_path_factory.mktemp("runs") / "whole", **SHORT)


def losses_of(out):
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if k not in TIMES} for event in events]


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
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    # A chain of bases sees to the left only, and the repeat is 21 long.
    assert 0 < metrics["markov_loss"] < metrics["unigram_loss"]
    assert metrics["tokens"] == metrics["step"] * 16 * 16
    assert events[-1]["tokens"] == 150 * 16 * 16
    assert all(event["learning_rate"] < 1e-2 for event in events)
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

    def validate(self, held_out):
        weights.append({n: t.clone() for n, t in self.model.state_dict().items()})
        return {"loss": next(losses), "accuracy": 0.5, "perplexity": 2.0}

    monkeypatch.setattr(Pretrainer, "validate", validate)
    pretrain(genomes=genome, out=tmp_path / "r", **SHORT)
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (metrics["loss"], metrics["step"]) == (1.0, 8)
    for name, tensor in weights_of(tmp_path / "r").items():
        assert torch.equal(tensor, weights[1][name])


def test_the_same_command_gives_the_same_model(genome, whole, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        pretrain(genomes=genome, out=tmp_path / name, **SHORT, seed=seed)
    assert_same(whole, tmp_path / "same")
    assert losses_of(whole) != losses_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("save_step", 1),
        ("save_step", 3),
        ("save_directory", 1),
        ("save_directory", 3),
        # Asked for at validation's start, then once a step.
        ("tokens_of", 4),
        ("tokens_of", 12),
    ],
)
def test_a_run_killed_anywhere_ends_as_the_uninterrupted_one(genome, whole, tmp_path, what, call):
    real, calls = getattr(pretrainer, what), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrainer, what, killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(genomes=genome, out=tmp_path / "cut", **SHORT)
    pretrain(genomes=genome, out=tmp_path / "cut", **SHORT, resume=True)
    assert_same(whole, tmp_path / "cut")


def started(settings, out, genome, *more) -> subprocess.Popen:
    """The verb in a process of its own."""
    words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    program = "import sys; from cedilla.cli import main; main(sys.argv[1:])"
    words += [f"--genomes={genome[0]}", f"--out={out}", *more]
    return subprocess.Popen(
        [sys.executable, "-c", program, "pretrain", *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # As many threads as here: sums of another number of parts end in other digits.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def kill_when(process, found) -> None:
    while process.poll() is None and not found():
        time.sleep(0.0005)
    process.kill()


@pytest.mark.slow
def test_a_process_killed_at_random_ends_as_the_uninterrupted_one(genome, tmp_path):
    settings = SMALL | {"steps": 600, "checkpoint_every": 10}
    pretrain(genomes=genome, out=tmp_path / "whole", **settings)
    out = tmp_path / "cut"
    for attempt in range(3):
        with started(settings, out, genome, *["--resume"] * bool(attempt)) as process:
            # As far as the last time, and a random while further.
            goal = 1 + logged(out)
            kill_when(process, lambda n=goal: logged(out) >= n and random.random() < 0.005)
        assert not (out / "metrics.json").exists()
    pretrain(genomes=genome, out=out, **settings, resume=True)
    assert_same(tmp_path / "whole", out)


def logged(out) -> int:
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_a_process_killed_while_it_writes_ends_as_the_uninterrupted_one(genome, tmp_path):
    # Wide enough for a checkpoint to take a while.
    settings = SMALL | {"steps": 6, "checkpoint_every": 1, "hidden_size": 256}
    pretrain(genomes=genome, out=tmp_path / "whole", **settings)
    out, stumps = tmp_path / "cut", []
    folder = out / "checkpoints"
    for step in (2, 4):
        last = folder / f"step-{step - 1:08d}.pt"
        with started(settings, out, genome, *["--resume"] * (step > 2)) as process:
            kill_when(process, lambda p=last: p.exists() and any(folder.glob(".step-*")))
        stumps += list(folder.glob(".step-*"))
    assert stumps, "no kill met a checkpoint half written"
    pretrain(genomes=genome, out=out, **settings, resume=True)
    assert_same(tmp_path / "whole", out)
    assert not list(folder.glob(".*"))


def test_the_last_checkpoints_are_kept_and_a_damaged_one_is_skipped(
    genome, whole, tmp_path, capsys
):
    out = pretrain(genomes=genome, out=tmp_path / "cut", **SHORT, keep=2)
    (out / "metrics.json").unlink()
    steps = sorted((out / "checkpoints").glob("step-*"))
    assert [step.name for step in steps] == ["step-00000008.pt", "step-00000012.pt"]
    steps[-1].write_bytes(steps[-1].read_bytes()[:-1000])
    pretrain(genomes=genome, out=out, **SHORT, keep=2, resume=True)
    assert "step-00000012.pt is cut off or damaged: going back" in capsys.readouterr().err
    assert_same(whole, out)
    (out / "metrics.json").unlink()
    for step in (out / "checkpoints").glob("step-*"):
        step.write_bytes(b"")
    with pytest.raises(InputError, match=r"step-00000012\.pt: is cut off or damaged"):
        pretrain(genomes=genome, out=out, **SHORT, keep=2, resume=True)


def test_a_complete_run_is_not_repeated(genome, whole):
    out = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    pretrain(genomes=genome, out=out, **SHORT, resume=True)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_a_moved_run_goes_on_elsewhere(genome, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "moved")
    (tmp_path / "moved" / "metrics.json").unlink()
    pretrain(genomes=genome, out=tmp_path / "moved", **SHORT, resume=True)
    assert_same(whole, tmp_path / "moved")


def test_a_dry_run_writes_nothing(genome, tmp_path, capsys):
    pretrain(genomes=genome, out=tmp_path / "r", **SHORT, dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "12 steps of 256 tokens" in said
    assert "GB of memory" in said
    assert not (tmp_path / "r").exists()


def test_impossible_settings_are_refused_together(genome, tmp_path):
    wrong = {"layers": 0, "k": 9, "steps": 0, "warmup": 0, "validation_share": 1.0, "keep": 0}
    wrong |= {"soft_weight": -1.0, "temperature": 0.0, "initial_learning_rate": 1.0}
    with pytest.raises(InputError) as caught:
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | wrong)
    names = [problem.what.split()[0] for problem in caught.value.problems]
    assert sorted(names) == sorted(wrong)
    with pytest.raises(InputError, match="hidden_size 32 is not divisible by"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | {"heads": 3})
    assert not (tmp_path / "r").exists()


def test_settings_that_do_not_go_together_are_refused(genome, tmp_path):
    with pytest.raises(InputError) as caught:
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT, accumulate=3, sharded=True)
    uneven, alone = map(str, caught.value.problems)
    assert "batch_size 16 cannot be cut evenly into 3 parts" in uneven
    assert "take batch_size 18" in uneven
    assert "sharded needs several processes; start with torchrun" in alone


def test_a_model_is_trained_on_from_another(genome, whole, tmp_path):
    init = str(whole / "checkpoints" / "best")
    shape = {name: SMALL[name] for name in ("batch_size", "tokens", "warmup", "validation_share")}
    more = shape | {"steps": 4, "checkpoint_every": 4, "learning_rate": 1e-5}
    pretrain(genomes=genome, out=tmp_path / "b", **more, validation_windows=64, init=init)
    assert losses_of(tmp_path / "b")[0]["loss"] == pytest.approx(losses_of(whole)[-1]["loss"], 0.01)


def test_a_hybrid_reads_single_bases(genome, tmp_path):
    settings = {name: value for name, value in SHORT.items() if name != "k"} | {"tokens": 41}
    shape = {"architecture": "hybrid", "channels": 16, "stride": 2, "dilations": (1, 3)}
    pretrain(genomes=genome, out=tmp_path / "r", **settings, **shape)
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert metrics["unigram_loss"] < 1.5
    config = cedilla.load(tmp_path / "r" / "checkpoints" / "best").config
    assert (config.k, config.hidden_size, config.stride, config.dilations) == (1, 16, 2, (1, 3))


def test_a_student_is_trained_with_a_teacher(genome, whole, tmp_path):
    teacher = str(whole / "checkpoints" / "best")
    pretrain(genomes=genome, out=tmp_path / "b", **SHORT, teacher=teacher)
    alone, taught = losses_of(whole), losses_of(tmp_path / "b")
    assert [e["loss"] for e in alone] != [e["loss"] for e in taught]
    with pytest.raises(InputError, match="reads 3-mers"):
        pretrain(genomes=genome, out=tmp_path / "c", **SHORT | {"k": 4}, teacher=teacher)


def test_contigs_can_be_held_out_by_name(genome, tmp_path):
    pretrain(genomes=genome, out=tmp_path / "a", **SHORT, validation_contigs=("two",))
    pretrain(genomes=genome, out=tmp_path / "b", **SHORT, validation_contigs=("one",))
    losses = [losses_of(tmp_path / name) for name in "ab"]
    assert losses[0][0]["loss"] != losses[1][0]["loss"]
    with pytest.raises(InputError, match="three"):
        pretrain(genomes=genome, out=tmp_path / "c", **SHORT, validation_contigs=("three",))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_can_be_asked_for(genome, tmp_path, precision):
    pretrain(genomes=genome, out=tmp_path / "r", **SHORT, precision=precision)
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["precision"] == f"torch.{precision}"


def test_memory_stays_flat(genome, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    peaks, real = [], Pretrainer.step

    def step(self, number):
        loss = real(self, number)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return loss

    monkeypatch.setattr(Pretrainer, "step", step)
    pretrain(genomes=genome, out=tmp_path / "r", **SMALL, steps=150, checkpoint_every=50)
    assert peaks[-1] - peaks[60] < 0.01 * peaks[60]


def test_what_cannot_be_read_or_cut_is_refused_before_the_run_begins(genome, tmp_path):
    with pytest.raises(InputError, match=r"none\.fa: not found"):
        pretrain(genomes=("none.fa",), out=tmp_path / "r", **SHORT)
    with pytest.raises(InputError, match="no held-out end of a contig has 45 bases"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | {"validation_share": 0.001})
    assert not (tmp_path / "r").exists()


def test_a_training_that_diverges_says_so(genome, tmp_path):
    with pytest.raises(InputError, match=r"the loss is not finite; lower --learning-rate"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT | {"learning_rate": 1e38})


def test_a_list_with_other_weights_is_another_run(genome, tmp_path):
    sources = tmp_path / "l.tsv"
    other = tmp_path / "b.fa"
    other.write_text(">b\n" + "ACGTTGCA" * 400 + "\n")
    sources.write_text(f"{genome[0]}\t1\n{other}\t1\n")
    pretrain(genomes=(str(sources),), out=tmp_path / "r", **SHORT)
    (tmp_path / "r" / "metrics.json").unlink()
    sources.write_text(f"{genome[0]}\t9\n{other}\t1\n")
    with pytest.raises(InputError, match="other files or weights"):
        pretrain(genomes=(str(sources),), out=tmp_path / "r", **SHORT, resume=True)


def test_a_run_killed_while_it_notes_its_genomes_goes_on(genome, tmp_path, monkeypatch):
    other = tmp_path / "b.fa"
    other.write_text(">b\n" + "ACGTTGCA" * 400 + "\n")
    settings = {"genomes": (genome[0], str(other)), "out": tmp_path / "r"}
    pretrain(**settings, **SHORT)
    (tmp_path / "r" / "metrics.json").unlink()
    real, seen = run_directory.sha256, []

    def killed(path):
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(run_directory, "sha256", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(**settings, **SHORT, resume=True)
    monkeypatch.setattr(run_directory, "sha256", real)
    pretrain(**settings, **SHORT, resume=True)
    assert (tmp_path / "r" / "metrics.json").exists()


def test_the_end_names_the_model_and_the_baselines(genome, tmp_path, capsys):
    pretrain(genomes=genome, out=tmp_path / "r", **SHORT)
    said = " ".join(capsys.readouterr().err.split())
    assert "Markov chain, order 5" in said
    assert "token frequencies" in said
    assert "checkpoints/best" in said.replace(" ", "")
    # A run serves as the model that it made.
    assert cedilla.load(tmp_path / "r").config.k == 3


def test_settings_of_distillation_want_a_teacher(genome, tmp_path):
    with pytest.raises(InputError, match="distill_weight and temperature without a teacher"):
        pretrain(genomes=genome, out=tmp_path / "r", **SHORT, distill_weight=0.9, temperature=3.0)
    assert not (tmp_path / "r").exists()
