"""Checkpoints: what was saved comes back, and nothing in a file is ever executed."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from cedilla.training.checkpoint import load_state, load_weights, save_state, save_weights


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
    assert load_state(tmp_path, other, other_optimiser) == 7
    step(other, other_optimiser)  # on the same random numbers
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_without_a_checkpoint_training_starts_at_zero(tmp_path):
    model, optimiser = setting(0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert load_state(tmp_path, model, optimiser) == 0
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
    assert load_state(tmp_path, model, optimiser) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_not_executed(tmp_path, capsys):
    model, optimiser = setting(0)
    torch.save({"model": Trap(), "optimiser": {}, "progress": {}}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path, model, optimiser)
    assert capsys.readouterr().out == ""
