"""Weight files: every form is read, damage and code are refused by name, shards are planned."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cedilla.errors import InputError
from cedilla.models import shards
from cedilla.models.shards import headers, main_file, tensors, weight_files, write_shards

WEIGHTS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.arange(6).reshape(2, 3).to(torch.bfloat16),
    "c": torch.tensor([[1, 2]]),
}


class Evil:
    """Makes a directory when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save(folder: Path, form: str, weights=WEIGHTS) -> None:
    """Write `weights` in one of the four forms; shards hold one weight each."""
    bin_file = form.startswith("bin")

    def write(content, path):
        if bin_file:
            torch.save(content, path)
        else:
            save_file(content, path)

    name = "pytorch_model.bin" if bin_file else "model.safetensors"
    if not form.endswith("shards"):
        write(weights, folder / name)
        return
    stem, suffix = name.split(".")
    places = {n: f"{stem}-{i:05}-of-00003.{suffix}" for i, n in enumerate(weights, 1)}
    for n, place in places.items():
        write({n: weights[n]}, folder / place)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))


def problems(call, folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def read(folder: Path):
    return dict(tensors(headers(weight_files(main_file(folder)))))


@pytest.mark.parametrize("form", ["safetensors", "safetensors shards", "bin", "bin shards"])
@pytest.mark.parametrize("piece", [1, 2**20])
def test_every_form_is_read(tmp_path, monkeypatch, form, piece):
    monkeypatch.setattr(shards, "PIECE", piece)
    save(tmp_path, form)
    stored = headers(weight_files(main_file(tmp_path)))
    assert {n: (w.shape, w.dtype, w.bytes) for n, w in stored.items()} == {
        n: (tuple(w.shape), w.dtype, w.nbytes) for n, w in WEIGHTS.items()
    }
    found = {name: weight.clone() for name, weight in tensors(stored)}
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[n], w) and found[n].dtype == w.dtype for n, w in WEIGHTS.items())


def test_weights_stored_by_columns_are_read(tmp_path):
    """As in several published .bin files."""
    save(tmp_path, "bin", {"a": WEIGHTS["a"].t()})
    assert torch.equal(read(tmp_path)["a"], WEIGHTS["a"].t())


def test_safetensors_are_preferred_to_a_pickle(tmp_path):
    save(tmp_path, "bin")
    save(tmp_path, "bin shards")
    assert main_file(tmp_path).name == "pytorch_model.bin"
    save(tmp_path, "safetensors shards")
    assert main_file(tmp_path).name == "model.safetensors.index.json"
    save(tmp_path, "safetensors")
    assert main_file(tmp_path).name == "model.safetensors"


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({**WEIGHTS, "evil": Evil(tmp_path / "run")}, tmp_path / "pytorch_model.bin")
    (problem,) = problems(lambda: read(tmp_path), tmp_path)
    assert problem == (
        "pytorch_model.bin: refused: it holds more than weights, a call of posix.mkdir; loading it "
        "could run code; take model.safetensors from a source that you trust"
    )
    assert not (tmp_path / "run").exists()
    # The proof that the file is what it is said to be.
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "run").exists()


def test_a_bare_pickle_is_not_even_opened(tmp_path):
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        pickle.dump(Evil(tmp_path / "run"), file)
    (problem,) = problems(lambda: read(tmp_path), tmp_path)
    assert problem.startswith("pytorch_model.bin: damaged, or not written by torch.save (1.6 or")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, WEIGHTS["a"]])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    (problem,) = problems(lambda: read(tmp_path), tmp_path)
    assert problem.startswith("pytorch_model.bin: holds no weights by name")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, form, keep):
    save(tmp_path, form)
    path = main_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    (problem,) = problems(lambda: read(tmp_path), tmp_path)
    assert problem.startswith(f"{path.name}: damaged")
    assert problem.endswith("fetch or copy it again")


def test_an_archive_without_a_pickle_is_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("a.txt", "b")
    (problem,) = problems(lambda: read(tmp_path), tmp_path)
    assert problem.startswith("pytorch_model.bin: damaged: RuntimeError: ")


def test_all_damaged_and_absent_shards_come_in_one_error(tmp_path):
    save(tmp_path, "safetensors shards")
    one, two, three = sorted(tmp_path.glob("*.safetensors"))
    for path in (one, three):
        path.write_bytes(path.read_bytes()[:-1])
    found = problems(lambda: read(tmp_path), tmp_path)
    assert [p.split(":")[0] for p in found] == [one.name, three.name]
    one.unlink()
    two.unlink()
    mend = "; model.safetensors.index.json names it; fetch it too"
    assert problems(lambda: read(tmp_path), tmp_path) == [
        f"{one.name}: not found{mend}",
        f"{two.name}: not found{mend}",
    ]


def test_a_weight_in_two_shards_is_named(tmp_path):
    save(tmp_path, "safetensors shards")
    one, two, _ = sorted(tmp_path.glob("*.safetensors"))
    two.write_bytes(one.read_bytes())
    assert problems(lambda: read(tmp_path), tmp_path) == [f"{two.name} a: is in {one.name} too"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    (problem,) = problems(lambda: read(tmp_path), tmp_path)
    assert problem.startswith("model.safetensors.index.json: damaged: ")


def test_a_type_that_is_not_read_is_named(tmp_path):
    save(tmp_path, "safetensors", {"a": torch.zeros(2, dtype=torch.float8_e4m3fn)})
    assert problems(lambda: read(tmp_path), tmp_path) == [
        "model.safetensors a: is stored as F8_E4M3; convert it first"
    ]


def test_without_weights_the_names_that_serve_are_said(tmp_path):
    (problem,) = problems(lambda: main_file(tmp_path), tmp_path)
    assert problem == (
        "model.safetensors: not found; the weights must be in model.safetensors or "
        "pytorch_model.bin, or in shards with an index"
    )


@pytest.mark.parametrize(
    ("limit", "expected"), [(10**6, [["a", "b", "c"]]), (70, [["a", "b"], ["c"]]), (1, None)]
)
def test_shards_are_no_larger_than_asked(tmp_path, limit, expected):
    expected = expected or [["a"], ["b"], ["c"]]
    taken = []

    def take(names):
        taken.append(list(names))
        return {name: WEIGHTS[name] for name in names}

    written = write_shards({n: w.nbytes for n, w in WEIGHTS.items()}, take, tmp_path, limit)
    assert taken == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    if len(expected) == 1:
        assert [p.name for p in written] == ["model.safetensors"]
    else:
        n = len(expected)
        assert [p.name for p in written] == [
            *(f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)),
            "model.safetensors.index.json",
        ]
        index = json.loads(written[-1].read_text())
        assert index["metadata"] == {"total_size": sum(w.nbytes for w in WEIGHTS.values())}
        for name, file in index["weight_map"].items():
            assert torch.equal(load_file(tmp_path / file)[name], WEIGHTS[name])
    found = {name: weight.clone() for name, weight in read(tmp_path).items()}
    assert all(torch.equal(found[n], w) for n, w in WEIGHTS.items())
