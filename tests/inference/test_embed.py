"""`cedilla embed`: the numbers of a straightforward computation, in any order, size and state."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import cedilla
from cedilla.cli import bind
from cedilla.dna.alphabet import clean, reverse_complement
from cedilla.errors import InputError
from cedilla.inference.embed import _reader
from cedilla.inference.layout import matrix
from cedilla.inference.parts import Parts
from cedilla.inference.pooling import Pooling
from cedilla.inference.stores import STORES, facts_in, store_of
from cedilla.inference.tiles import Strands, tile_starts
from cedilla.inference.windows import Reader

TOLERANCE = 2e-5
SLOW = pytest.mark.slow
COMMAND = Path(sys.executable).with_name("cedilla")


def vectors(path: Path, *layers: int) -> np.ndarray:
    """(rows, layers, D)."""
    table = pq.read_table(path)
    return np.stack([matrix(table, f"layer_{layer}") for layer in layers], axis=1)


@pytest.fixture
def fasta(tmp_path: Path, dna: Callable[..., str]) -> Callable[..., Path]:
    """fasta(lengths): a file of sequences s0, s1, … of these lengths, three N in each long one."""

    def make(lengths: Sequence[int]) -> Path:
        texts = [dna(n, seed, n=3 * (n > 50)) for seed, n in enumerate(lengths)]
        path = tmp_path / "x.fa"
        path.write_text("".join(f">s{i} of many\n{t}\n" for i, t in enumerate(texts)))
        return path

    return make


def sequences(path: Path) -> dict[str, str]:
    records = path.read_text().split(">")[1:]
    return {r.split()[0]: clean("".join(r.split("\n")[1:])) for r in records}


def expected(model: Any, text: str, pooling: str, overlap: int) -> np.ndarray:
    """(rows, layers, D) of all layers, by the straightforward computation."""
    tokens = model.tokens(text)
    capacity = model.tokenizer.max_tokens - 1
    starts = tile_starts(len(tokens), capacity, overlap).tolist()
    states, cls = model.stitched(text, starts)
    if pooling in ("mean", "max"):
        pooled = states.mean(axis=1) if pooling == "mean" else states.max(axis=1)
        return pooled[None]
    if pooling == "cls":
        return cls.mean(axis=1)[None]
    rows = states.swapaxes(0, 1)
    return rows if pooling == "token" else np.repeat(rows, list(map(len, tokens)), axis=0)


POOLINGS = [
    (p, s) for p in get_args(Pooling) for s in get_args(Strands) if (p, s) != ("token", "both")
]


@pytest.mark.parametrize("model", ["nt_v1_tiny", "nt_v2_tiny", "three_mers", "hybrid", "mini"])
@pytest.mark.parametrize("how", POOLINGS, ids="-".join)
def test_the_numbers_are_those_of_a_straightforward_computation(
    fasta: Callable[..., Path],
    naive: Callable[..., Any],
    request: pytest.FixtureRequest,
    model: str,
    how: tuple[str, str],
) -> None:
    pooling, strands = how
    name = model if model == "mini" else str(request.getfixturevalue("tiny").with_name(model))
    if model in ("three_mers", "hybrid"):
        name = str(request.getfixturevalue(model))
    path = fasta([200, 1, 7, 40] if model == "mini" else [1, 7, 300, 379, 1500])
    out = path.with_suffix(".parquet")
    reference = naive(name)
    layers = tuple(range(1 + reference.model.config.last_layer))
    overlap = 10
    cedilla.embed(path, model=name, out=out, pooling=pooling, strands=strands, layers=layers,
                  overlap=overlap * reference.tokenizer.k, batch_tokens=100)  # fmt: skip
    found = vectors(out, *layers)
    rows = []
    for text in sequences(path).values():
        rows.append(expected(reference, text, pooling, overlap))
        if strands == "both":
            other = expected(reference, reverse_complement(text), pooling, overlap)
            rows[-1] = (rows[-1] + other[::-1]) / 2
    assert np.abs(found - np.concatenate(rows)).max() < TOLERANCE


def test_rows_keep_the_order_of_the_input(fasta: Callable[..., Path], tiny: Path) -> None:
    path = fasta([90, 5, 2000, 30, 700])
    out = cedilla.embed(path, model=str(tiny), out=path.with_suffix(".parquet"), layers=(-2, 3))
    frame = pd.read_parquet(out)
    assert frame.columns.tolist() == ["id", "layer_2", "layer_3"]
    assert frame["id"].tolist() == [f"s{i}" for i in range(5)]
    assert frame["layer_3"].map(len).tolist() == [32] * 5
    cedilla.embed(path, model=str(tiny), out=path.with_suffix(".t.parquet"), pooling="token")
    rows = pd.read_parquet(path.with_suffix(".t.parquet"))
    texts = rows.groupby("id")["token"].sum().to_dict()
    assert texts == sequences(path)
    ends = rows["start0"] + rows["token"].map(len)
    same = (rows["id"] == rows["id"].shift(-1)).to_numpy()
    assert (ends[same].to_numpy() == rows["start0"].shift(-1)[same].to_numpy()).all()
    cedilla.embed(path, model=str(tiny), out=path.with_suffix(".b.parquet"), pooling="base")
    places = pd.read_parquet(path.with_suffix(".b.parquet")).groupby("id")["pos0"]
    assert {id: list(p) for id, p in places} == {
        id: list(range(len(text))) for id, text in sequences(path).items()
    }


def test_every_way_in_gives_the_same_result(
    fasta: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    pairs = sequences(fasta([90, 5, 700]))
    frame = pd.DataFrame({"gene": list(pairs), "bases": list(pairs.values())})
    frame.to_csv(tmp_path / "x.csv.gz", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    genome = tmp_path / "genome.fa"
    contigs = [reverse_complement(pairs["s2"]), pairs["s0"], pairs["s1"].lower()]
    genome.write_text("".join(f">chr{i}\n{bases}\n" for i, bases in enumerate(contigs, start=1)))
    bed = "chr2\t0\t90\ts0\nchr3\t0\t5\ts1\t.\t+\nchr1\t0\t700\ts2\t.\t-\n"
    (tmp_path / "x.bed").write_text(bed)
    inputs: dict[str, tuple[Any, dict[str, Any]]] = {
        "fasta": (tmp_path / "x.fa", {}),
        "csv": (tmp_path / "x.csv.gz", {"sequence": "bases", "id": "gene"}),
        "parquet": (tmp_path / "x.parquet", {"sequence": "bases", "id": "gene"}),
        "pairs": (list(pairs.items()), {}),
        "generator": ((pair for pair in pairs.items()), {}),
        "dict": (pairs, {}),
    }
    found = {}
    for name, (input, options) in inputs.items():
        out = cedilla.embed(input, model=str(tiny), out=tmp_path / f"{name}.out.parquet", **options)
        found[name] = pq.read_table(out)
    assert all(table == found["fasta"] for table in found.values())
    out = cedilla.embed(tmp_path / "x.bed", genome=genome, model=str(tiny), out=tmp_path / "b.npy")
    table = found["fasta"]
    assert pd.read_csv(tmp_path / "b.rows.csv")["id"].tolist() == ["s0", "s1", "s2"]
    assert np.array_equal(np.load(out), matrix(table, "layer_3"))


def test_dtype_and_skip_n(
    fasta: Callable[..., Path], tiny: Path, naive: Callable[..., Any]
) -> None:
    path = fasta([200, 60])
    out = path.with_suffix(".parquet")
    cedilla.embed(path, model=str(tiny), out=out, dtype="float16", skip_n=True)
    reference = naive(tiny)
    for row, text in zip(vectors(out, 3), sequences(path).values(), strict=True):
        known = [t != "N" for t in reference.tokens(text)]
        mean = reference.states(text)[3, 1:][known].mean(axis=0)
        assert row.dtype == np.float16
        assert np.allclose(row[0], mean, rtol=1e-3, atol=1e-4)


def test_what_deserves_a_word_is_said(tiny: Path, capfd: Any, tmp_path: Path) -> None:
    rows = {"a": "ACGTRYN" * 80, "b": "ACGT"}
    cedilla.embed(rows, model=str(tiny), out=tmp_path / "a.parquet", pooling="cls")
    said = capfd.readouterr().err
    assert "160 IUPAC codes such as R or Y (sequences with them: 1) are read as N" in said
    assert (
        "longer than the context, read in tiles: 1; their cls is the mean of their tiles'" in said
    )
    assert "tokens that are N" not in said
    cedilla.embed(rows, model=str(tiny), out=tmp_path / "b.parquet")
    said = capfd.readouterr().err
    assert "tokens that are N: 240 of 564, counted like any other; --skip-n leaves them" in said
    assert "2 rows in" in said


def take_path(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """For a model as narrow as these, the measurement that chooses a path is a lottery."""
    monkeypatch.setattr(
        "cedilla.inference.embed._reader",
        lambda network, settings, _: _reader(network, settings, path),
    )


@pytest.mark.parametrize("suffix", STORES)
def test_the_same_command_gives_the_same_bytes(
    fasta: Callable[..., Path],
    tiny: Path,
    tmp_path: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in store_of(Path(f"x{suffix}")).needs:
        pytest.importorskip(module)
    path = fasta([90, 5, 700] * 4)
    take_path(monkeypatch, "PyTorch float32")
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        out = tmp_path / name / f"emb{suffix}"
        cedilla.embed(path, model=str(tiny), out=out, batch_tokens=50, strands="both")
        found.append(content(tmp_path / name))
    assert found[0] == found[1]
    assert not [name for name in found[0] if "part" in name]


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def words(path: Path, out: Path, tiny: Path, *more: str) -> list[str]:
    base = ["embed", str(path), "--out", str(out), "--model", str(tiny)]
    return [*base, "--batch-tokens", "50", *more]


def killed(command: list[str], when: Callable[[], bool]) -> bool:
    """Run a verb and kill it as soon as `when` is true; whether it came to that."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([COMMAND, *command], env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            if when():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.0005)
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read().decode()
    return False


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        (".parquet", [20]),
        pytest.param(".parquet --pooling=base --strands=both", [0, 3, 40, -1], marks=SLOW),
        pytest.param(".zarr --layers=1,3", [20, -1], marks=SLOW),
        pytest.param(".h5ad --pooling=token", [1, 30, -1], marks=SLOW),
        pytest.param(".npy --strands=both --pooling=max", [40, -1], marks=SLOW),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, moments: list[int]
) -> None:
    """Killed when so many parts are there; -1: when the result itself is being written."""
    fasta, tiny, monkeypatch = (
        request.getfixturevalue(n) for n in ("fasta", "tiny", "monkeypatch")
    )
    suffix, *more = kind.split()
    for module in store_of(Path(f"x{suffix}")).needs:
        pytest.importorskip(module)
    path = fasta([90, 5, 700, 8000, 30, 300] * 4)
    whole, cut = tmp_path / "whole" / f"emb{suffix}", tmp_path / "cut" / f"emb{suffix}"
    parts, taken = Parts(cut), ""
    draft = f".emb{suffix}.*" if suffix != ".zarr" else "emb.zarr"

    def has_come(moment: int) -> bool:
        if moment < 0:
            return any(parts.folder.glob(draft))
        return parts.exists() and parts.count() >= moment

    for moment in moments:
        in_time = killed(words(path, cut, tiny, *more, "--resume"), partial(has_come, moment))
        assert in_time or moment < 0
        assert parts.count() >= moment
        assert not cut.exists() or moment < 0, "half a result must not look like one"
        taken = parts.facts["computed"]["path"] if parts.exists() else taken
    bind("embed", tokens=words(path, cut, tiny, *more, "--resume"))()
    take_path(monkeypatch, taken)
    bind("embed", tokens=words(path, whole, tiny, *more))()
    assert content(whole.parent) == content(cut.parent)


@pytest.fixture
def begun(
    fasta: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """An input, and a result of which all parts are there."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    path, out = fasta([90, 5]), tmp_path / "emb.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("cedilla.inference.embed._publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cedilla.embed(path, model=str(tiny), out=out)
    return path, out


def test_what_stands_there_is_not_overwritten(
    begun: tuple[Path, Path], tiny: Path, three_mers: Path, tmp_path: Path, capfd: Any
) -> None:
    path, out = begun
    with pytest.raises(InputError, match=r"was begun and interrupted.*pass --resume"):
        cedilla.embed(path, model=str(tiny), out=out)
    changed = {"model": str(three_mers), "layers": (2,), "pooling": "max"}
    with pytest.raises(InputError) as caught:
        cedilla.embed(path, out=out, resume=True, **changed)
    assert [p.what.split(":")[0] for p in caught.value.problems] == [
        f"was begun with another {what}"
        for what in ("model", "k", "capacity", "overlap", "pooling", "layers")
    ]
    text = path.read_text()
    path.write_text(text.replace("A", "C"))
    with pytest.raises(InputError, match="was begun with another input: "):
        cedilla.embed(path, model=str(tiny), out=out, resume=True)
    path.write_text(text.lower())  # the same once it is clean
    shutil.copytree(Parts(out).folder, tmp_path / "left")
    cedilla.embed(path, model=str(tiny), out=out, resume=True)
    before = out.stat()
    shutil.copytree(tmp_path / "left", Parts(out).folder)  # killed before it cleared up
    with pytest.raises(InputError, match="exists already"):
        cedilla.embed(path, model=str(tiny), out=out)
    cedilla.embed(path, model=str(tiny), out=out, resume=True)
    assert "is complete" in capfd.readouterr().err
    assert out.stat() == before
    with pytest.raises(InputError, match="was begun with another dtype: float32 → float16"):
        cedilla.embed(path, model=str(tiny), out=out, dtype="float16", resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["emb.parquet", "left", "x.fa"]


def test_another_machine_may_go_on_but_is_told(
    begun: tuple[Path, Path], tiny: Path, capfd: Any
) -> None:
    path, out = begun
    facts = Parts(out).folder / "facts.json"
    facts.write_text(facts.read_text().replace('"threads": 1', '"threads": 64'))
    cedilla.embed(path, model=str(tiny), out=out, resume=True)
    assert "note: threads: 64 → 1: last digits may differ" in capfd.readouterr().err
    assert facts_in(out)["computed"]["threads"] == 64


def test_an_input_that_changes_while_it_is_read_gives_no_result(
    fasta: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fasta([90, 5])
    load = cedilla.load

    def change_then_load(name: str) -> Any:
        path.write_text(path.read_text().replace("A", "C"))
        return load(name)

    monkeypatch.setattr("cedilla.inference.embed.load", change_then_load)
    with pytest.raises(InputError, match=r"x\.fa: has changed while it was read; delete"):
        cedilla.embed(path, model=str(tiny), out=tmp_path / "emb.parquet")
    assert not (tmp_path / "emb.parquet").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (4,)}, ["--layers 4: the model has 0 to 3"]),
        ({"layers": (3, -1)}, ["--layers has none, or one of them twice"]),
        ({"layers": ()}, ["--layers has none, or one of them twice"]),
        ({"overlap": 192}, ["--overlap 192 is negative, or half of the context or more"]),
        ({"overlap": -1}, ["--overlap -1 is negative"]),
        ({"batch_tokens": 0, "skip_n": True, "pooling": "cls", "device": "abacus"},
         ["--batch-tokens 0 is impossible", "--skip-n goes with", "device abacus: torch has"]),
        ({"pooling": "token", "strands": "both"}, ["--pooling token is impossible on both"]),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(
    options: dict[str, Any], said: list[str], tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        cedilla.embed(["ACGT"], model=str(tiny), out=tmp_path / "emb.parquet", **options)
    assert len(caught.value.problems) == len(said)
    for problem, text in zip(caught.value.problems, said, strict=True):
        assert text in str(problem)
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_float16_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Reader.read

    def huge(self: Reader, *args: Any) -> Any:
        rows = original(self, *args)
        rows[1].vectors[0, 0, 7] = 7e4
        return rows

    monkeypatch.setattr(Reader, "read", huge)
    with pytest.raises(InputError, match="sequence b: layer_3 has numbers that are not finite"):
        cedilla.embed(
            {"a": "AC", "b": "GT"}, model=str(tiny), out=tmp_path / "x.npy", dtype="float16"
        )


def test_bad_records_are_all_named_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("cedilla.inference.embed.load")
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT\n>b\nAC\nGJ\n>a\n\n>c\nacgt")
    with pytest.raises(InputError) as caught:
        cedilla.embed(path, out=tmp_path / "emb.parquet")
    assert [p.where.removeprefix(f"{path} ") for p in caught.value.problems] == [
        "line 3 (record b)",
        "line 6 (record a)",
        "line 6 (record a)",
    ]
    assert "'J' at position 4 (line 5)" in str(caught.value)


def test_a_dry_run_writes_nothing(fasta: Callable[..., Path], tiny: Path, capfd: Any) -> None:
    path = fasta([90, 5, 700])
    before = content(path.parent)
    cedilla.embed(path, model=str(tiny), out=path.with_suffix(".h5ad"), dry_run=True)
    said = capfd.readouterr().err
    assert "sequences: 3; bases: 795; " in said
    assert "rows of the result: 3; its size: 0.4 kB" in said
    assert content(path.parent) == before


MEASURED = """
import sys
import cedilla
from cedilla.inference import stores
stores.BLOCK_BYTES = 1 << 20
cedilla.embed(sys.argv[1], model=sys.argv[2], out=sys.argv[3], pooling="base", strands="both")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_result(
    dna: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    """Of some windows, of four times as much, 230 MB, and of as much in long records."""
    peaks = []
    for records, length in ((3000, 200), (12_000, 200), (12, 200_000)):
        text = dna(length, 0)
        path, out = tmp_path / "x.fa", tmp_path / f"{records}.npy"
        path.write_text("".join(f">s{i}\n{text[i % 97 :]}\n" for i in range(records)))
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, path, tiny, out],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) // 1024)
        size = out.stat().st_size
        out.unlink()
    assert size > 150e6
    assert max(peaks) - peaks[0] < 60, peaks


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "base"])
def test_a_sequence_and_its_other_strand_have_one_vector(
    fasta: Callable[..., Path], hybrid: Path, tmp_path: Path, pooling: Pooling
) -> None:
    path = fasta([20, 63, 150])
    turned = tmp_path / "turned.fa"
    texts = sequences(path).items()
    turned.write_text("".join(f">{id}\n{reverse_complement(text)}\n" for id, text in texts))
    found = [
        cedilla.embed(
            p,
            model=str(hybrid),
            out=p.with_suffix(".npy"),
            pooling=pooling,
            strands="both",
            layers=(3,),
        )
        for p in (path, turned)
    ]
    one, other = (np.load(out)[:, 0] if np.load(out).ndim == 3 else np.load(out) for out in found)
    if pooling == "base":  # each record's bases in the order of its own strand
        other = np.concatenate([rows[::-1] for rows in np.split(other, [20, 83])])
    assert np.abs(one - other).max() < TOLERANCE
