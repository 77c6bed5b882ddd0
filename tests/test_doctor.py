"""The doctor: one screen, true to the machine, and honest about what is broken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re

import pytest
import torch

import cedilla
from cedilla.doctor import doctor
from cedilla.models import zoo


def test_it_says_what_this_machine_can_do_on_one_screen(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CEDILLA_DATA", str(tmp_path))
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    doctor()
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 24
    assert f"{cedilla.__version__}, Python {platform.python_version()}" in said
    assert f"{len(os.sched_getaffinity(0))} cores" in said
    assert f"{torch.get_num_threads()} threads" in said
    assert f"1. CEDILLA_DATA: {tmp_path}, 0 of" in said
    assert f"2. cache: {tmp_path}/cache does not exist" in said
    assert "mini loads and answers" in said


def test_it_finds_the_data_that_is_there(capsys):
    if "CEDILLA_DATA" not in os.environ:
        pytest.skip("CEDILLA_DATA is not set")
    doctor()
    line = next(x for x in capsys.readouterr().out.splitlines() if "1. CEDILLA_DATA" in x)
    assert int(line.split(", ")[-1].split()[0]) > 20


def test_absent_extras_come_with_their_command(capsys, monkeypatch):
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: _absent(name, "ray", installed))
    doctor()
    assert "ray" in capsys.readouterr().out.split("absent:")[1].split(";")[0]


def _absent(name, absent, installed):
    if name == absent:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)


def test_what_is_broken_is_named_and_the_rest_still_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "EMBEDDED", tmp_path)
    with pytest.raises(SystemExit) as caught:
        doctor()
    assert caught.value.code == 1
    said = capsys.readouterr().out
    assert "model     BROKEN: InputError" in said
    assert "Broken: model." in said
    assert "torch" in said


@pytest.mark.slow
def test_bench_names_the_path_and_its_share_of_the_peak(capsys):
    doctor(bench=True)
    said = capsys.readouterr().out
    for precision in ("float32", "auto" if torch.cuda.is_available() else "bfloat16"):
        line = next(x for x in said.splitlines() if f" {precision}: " in x)
        rate, share = re.search(r": ([\d,]+) tokens/s, (\d+)% of the matrix peak", line).groups()
        assert int(rate.replace(",", "")) > 0
        assert 0 < int(share) <= 110
