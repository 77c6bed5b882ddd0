"""Checkpoints: what was saved comes back, and nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import random

import pytest
import torch
from torch import nn

from cedilla.errors import InputError
from cedilla.training.checkpoint import (
    load_state,
    load_weights,
    newest_step,
    save_state,
    save_step,
    save_weights,
)


def setting(seed: int):
    """A model of which the first layer is frozen, and its optimiser after a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimiser = torch.optim.AdamW(model[1].parameters(), lr=0.1)
    step(model, optimiser)
    return model, optimiser


def step(model, optimiser) -> None:
    optimiser.zero_grad()
    model(torch.rand(5, 3)).pow(2).sum().backward()
    optimiser.step()


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    model, optimiser = setting(0)
    other, other_optimiser = setting(1)
    other[0].load_state_dict(model[0].state_dict())
    save_state(tmp_path, model, optimiser, step=7)
    step(model, optimiser)
    assert load_state(tmp_path, other, other_optimiser) == {"step": 7}
    step(other, other_optimiser)  # on the same random numbers
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_without_a_checkpoint_training_starts_at_zero(tmp_path):
    model, optimiser = setting(0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert load_state(tmp_path, model, optimiser) == {}
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_only_trained_weights_are_kept(tmp_path):
    model, optimiser = setting(0)
    save_state(tmp_path, model, optimiser, step=1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["model"].keys() == {"1.weight", "1.bias"}
    other, _ = setting(1)
    frozen = other[0].weight.clone()
    save_weights(tmp_path, model)
    load_weights(tmp_path, other)
    assert torch.equal(other[1].weight, model[1].weight)
    assert torch.equal(other[0].weight, frozen)


def test_the_loss_scale_is_kept(tmp_path):
    model, optimiser = setting(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    save_state(tmp_path, model, optimiser, scaler, step=1)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    load_state(tmp_path, model, optimiser, other)
    assert other.state_dict()["scale"] == 512.0
    # A checkpoint of a run without scaling leaves the scaler as it is.
    save_state(tmp_path, model, optimiser, torch.amp.GradScaler("cpu", enabled=False), step=1)
    load_state(tmp_path, model, optimiser, other)
    assert other.state_dict()["scale"] == 512.0


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model, optimiser = setting(0)
    save_state(tmp_path, model, optimiser, step=1)

    def broken(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, model, optimiser, step=2)
    assert load_state(tmp_path, model, optimiser) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def seal(path) -> None:
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_not_executed(tmp_path, capsys):
    model, optimiser = setting(0)
    for name in ("state.pt", "step-00000001.pt"):
        torch.save({"model": Trap(), "optimiser": {}, "progress": {}}, tmp_path / name)
        seal(tmp_path / name)
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path, model, optimiser)
    with pytest.raises(pickle.UnpicklingError):
        newest_step(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_damaged_state_is_refused(tmp_path):
    model, optimiser = setting(0)
    save_state(tmp_path, model, optimiser, step=1)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"state\.pt: is cut off or damaged; remove it"):
        load_state(tmp_path, model, optimiser)


def states(folder, count: int, keep: int = 3) -> None:
    for step in range(1, count + 1):
        save_step(folder, step, {"step": step, "weights": torch.full((3,), step)}, keep=keep)


def test_the_last_steps_are_kept_in_order_of_their_numbers(tmp_path):
    for step in (99_999_999, 100_000_000):  # the longer name sorts first as text
        save_step(tmp_path, step, {"step": step}, keep=3)
    assert newest_step(tmp_path)["step"] == 100_000_000
    save_step(tmp_path, 100_000_001, {"step": 100_000_001}, keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-100000000.pt", "step-100000001.pt"]
    assert newest_step(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "lengthened"])
def test_a_damaged_step_is_skipped_with_a_word(tmp_path, capsys, damage):
    states(tmp_path, 4)
    newest = tmp_path / "step-00000004.pt"
    content = bytearray(newest.read_bytes())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    made = {"cut": content[:-100], "flipped": flipped, "emptied": b"", "lengthened": content + b"a"}
    newest.write_bytes(made[damage])
    state = newest_step(tmp_path)
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.full((3,), 3))
    said = capsys.readouterr().err
    assert "step-00000004.pt is cut off or damaged: going back to the checkpoint before" in said


def test_no_flipped_bit_is_missed(tmp_path):
    states(tmp_path, 1)
    path = tmp_path / "step-00000001.pt"
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 300):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="is cut off or damaged"):
            newest_step(tmp_path)


def test_only_damaged_steps_are_an_error_that_names_them(tmp_path):
    states(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"zeros")
    with pytest.raises(InputError) as caught:
        newest_step(tmp_path)
    places = [problem.where for problem in caught.value.problems]
    assert places == [str(tmp_path / f"step-0000000{n}.pt") for n in (2, 1)]
    assert "remove them to begin anew" in caught.value.problems[0].mend
