"""Processes: two give the numbers of one, and an error of one ends both."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cedilla.errors import InputError
from cedilla.models.weights import load_directory
from cedilla.training.distributed import World, restore, spread, whole_state, world
from cedilla.training.pretrain import pretrain

CPU = torch.device("cpu")
SETTINGS = {
    "layers": 2,
    "hidden_size": 32,
    "heads": 2,
    "intermediate_size": 32,
    "k": 3,
    "tokens": 16,
    "batch_size": 16,
    "warmup": 10,
    "validation_share": 0.2,
    "validation_windows": 33,
    "learning_rate": 1e-2,
    "steps": 8,
    "checkpoint_every": 2,
    "soft_weight": 0.5,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genomes") / "g.fa"
    letters = "".join(np.random.default_rng(0).choice(list("ACGTacgt"), 6000))
    path.write_text(f">one\n{letters}\n")
    return (str(path),)


@pytest.fixture(scope="module")
def alone(genome, tmp_path_factory):
    """The run of one process."""
    return pretrain(genomes=genome, out=tmp_path_factory.mktemp("runs") / "alone", **SETTINGS)


def processes(out: Path, genome, *more: str, **changes) -> subprocess.CompletedProcess[str]:
    """`cedilla pretrain` in two processes, joined by gloo."""
    settings = SETTINGS | changes
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    program = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
    ]
    cedilla = [sys.executable, "-c", "from cedilla.cli import main; main()", "pretrain"]
    return subprocess.run(
        [
            sys.executable,
            *program,
            *cedilla,
            f"--genomes={genome[0]}",
            f"--out={out}",
            *words,
            *more,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def events_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_close(out: Path, alone: Path) -> None:
    """Equal but for the order of sums."""
    ours, theirs = events_of(out), events_of(alone)
    assert [event["step"] for event in ours] == [event["step"] for event in theirs]
    for name in ("train_loss", "loss", "accuracy", "unigram_loss", "tokens", "learning_rate"):
        found = [event[name] for event in ours]
        assert found == pytest.approx([event[name] for event in theirs], rel=1e-5, abs=1e-9), name
    weights = [load_directory(path / "checkpoints" / "best").state_dict() for path in (out, alone)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-3)


def test_two_processes_give_the_numbers_of_one(genome, alone, tmp_path):
    done = processes(tmp_path / "two", genome)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "two", alone)
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "flags"), [(2, []), (1, ["--sharded"]), (2, ["--sharded"])])
def test_so_do_two_with_shards_or_in_parts(genome, alone, tmp_path, accumulate, flags):
    done = processes(tmp_path / "two", genome, *flags, accumulate=accumulate)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "two", alone)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--sharded", "--gradient-checkpointing"]])
def test_any_number_of_processes_goes_on_with_a_run(genome, alone, tmp_path, flags):
    out = tmp_path / "cut"
    # It begins as two, goes on as one or as two, and the other way round.
    assert processes(out, genome, *flags).returncode == 0
    cut_back(out)
    done = processes(out, genome, *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert_close(out, alone)
    if not flags:
        cut_back(out)
        pretrain(genomes=genome, out=out, **SETTINGS, resume=True)
        assert_close(out, alone)
        cut_back(out)
        assert processes(out, genome, "--resume").returncode == 0
        assert_close(out, alone)


def cut_back(out: Path) -> None:
    """To what a kill after step 4 leaves."""
    (out / "metrics.json").unlink()
    for name in ("step-00000006.pt", "step-00000008.pt"):
        (out / "checkpoints" / name).unlink()


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_ends_all(genome, tmp_path):
    done = processes(tmp_path / "r", ("none.fa",))
    assert done.returncode != 0
    assert done.stderr.count("none.fa: not found") == 1
    done = processes(tmp_path / "r", genome, accumulate=3)
    assert done.stderr.count("batch_size 16 cannot be cut evenly into 6 parts") == 1
    # The first process alone opens the directory; the other must not wait for it for ever.
    (tmp_path / "file").write_text("")
    done = processes(tmp_path / "file", genome)
    assert done.returncode != 0
    assert done.stderr.count("is a file, not a directory") == 1
    done = processes(tmp_path / "r", genome, learning_rate=1e38)
    assert done.stderr.count("the loss is not finite") == 1


def test_a_process_takes_its_rows():
    parts = [World(device=CPU, rank=rank, size=3).rows(12) for rank in range(3)]
    assert [(part.start, part.stop) for part in parts] == [(0, 4), (4, 8), (8, 12)]
    assert [World(device=CPU, rank=rank, size=2).first for rank in range(2)] == [True, False]


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with world() as here:
        assert (here.rank, here.size) == (0, 1)
        assert here.total(1.5, torch.tensor(2.5)) == [1.5, 2.5]
        assert here.of_first("x") == "x"
        model = nn.Linear(2, 2)
        assert spread(model, here, sharded=False) is model
        with pytest.raises(InputError, match="wrong"):
            here.together(lambda: refuse("wrong"))


def refuse(what: str) -> None:
    raise InputError.one("here", what)


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE is set, but not RANK, .*start with torchrun"):
        world().__enter__()


def test_a_state_comes_back_to_the_last_bit():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(torch.rand(5, 3)).sum().backward()
        optimiser.step()
        models.append((model, optimiser))
    state = copy.deepcopy(whole_state(*models[0]))
    restore(*models[1], state, World(device=CPU))
    for model, optimiser in models:
        optimiser.zero_grad()
        model(torch.arange(6.0).view(2, 3)).sum().backward()
        optimiser.step()
    for name, tensor in models[0][0].state_dict().items():
        assert torch.equal(models[1][0].state_dict()[name], tensor)
