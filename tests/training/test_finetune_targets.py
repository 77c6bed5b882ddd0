"""Fine-tuning on other labels than classes, and the settings of a finer training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cedilla.errors import InputError
from cedilla.training.finetune import finetune
from cedilla.training.precision import Precision

FAST = {"batch_size": 16, "learning_rate": 5e-3, "epochs": 6}
MOTIF = "TTGACA"


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def predictions_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "predictions" / "test.parquet")


def sequences(n: int, length: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(row) for row in rng.choice(list("ACGT"), (n, length))]


def gc(sequence: str) -> float:
    return sum(base in "CG" for base in sequence) / len(sequence)


@pytest.fixture
def write(tmp_path):
    """Three tables of random sequences with the label columns that a function makes of each."""

    def tables(columns, length: int = 60, sizes=(192, 48, 48)) -> dict[str, Path]:
        paths = {}
        for seed, (split, n) in enumerate(zip(("train", "dev", "test"), sizes, strict=True)):
            rows = sequences(n, length, seed)
            paths[split] = tmp_path / f"{split}.csv"
            frame = pd.DataFrame([columns(row) for row in rows])
            frame.insert(0, "sequence", rows)
            frame.to_csv(paths[split], index=False)
        return paths

    return tables


@pytest.mark.usefixtures("small_cnn")
def test_several_columns_of_numbers_are_regressed(write, tmp_path):
    tables = write(lambda s: {"y_gc": 100 * gc(s), "y_cg": 5 - s.count("CG")})
    out = tmp_path / "r"
    finetune(**tables, out=out, model="cnn", label=("y_*",), **FAST | {"epochs": 30})
    frame, metrics = predictions_of(out), metrics_of(out)
    assert metrics["target"] == "regression"
    assert metrics["test"]["pearson"] > 0.8
    assert np.corrcoef(frame["label_y_gc"], frame["prediction_y_gc"])[0, 1] > 0.8
    # In the units of the labels, not in those that the network learns.
    assert abs(frame["prediction_y_gc"].mean() - 50) < 5
    assert abs(frame["prediction_y_cg"].mean() - frame["label_y_cg"].mean()) < 0.5


@pytest.mark.usefixtures("small_cnn")
def test_several_columns_of_zero_and_one_are_labels_of_their_own(write, tmp_path):
    def columns(sequence: str) -> dict:
        missing = sequence.startswith("A")
        return {
            "cg": "" if missing else int(gc(sequence) > 0.5),
            "t": int(sequence.count("T") > 15),
        }

    out = tmp_path / "r"
    finetune(**write(columns), out=out, model="cnn", label=("cg", "t"), **FAST)
    frame, metrics = predictions_of(out), metrics_of(out)
    assert metrics["target"] == "multilabel"
    assert metrics["test"]["auroc"] > 0.8
    assert frame[["probability_cg", "probability_t"]].to_numpy().min() >= 0
    assert frame["label_cg"].isna().sum() > 3  # they stay missing, and are predicted
    assert frame["probability_cg"].notna().all()


@pytest.mark.usefixtures("small_cnn")
def test_shares_are_predicted_as_shares(write, tmp_path):
    tables = write(lambda s: {"beta": round(1 / (1 + np.exp(-20 * (gc(s) - 0.5))), 4)})
    out = tmp_path / "r"
    finetune(**tables, out=out, model="cnn", label=("beta",), **FAST)
    frame, metrics = predictions_of(out), metrics_of(out)
    assert metrics["target"] == "fraction"
    assert metrics["test"]["spearman"] > 0.8
    assert frame["prediction_beta"].between(0, 1).all()


def marked(sequence: str) -> dict:
    """A 1 at the first base of every GT, and a 2 at the last of every AG."""
    marks = ["0"] * len(sequence)
    for i in range(len(sequence) - 1):
        if sequence[i : i + 2] == "GT":
            marks[i] = "1"
        elif sequence[i : i + 2] == "AG":
            marks[i + 1] = "2"
    return {"sites": "".join(marks)}


@pytest.mark.usefixtures("small_cnn")
def test_every_base_gets_a_label(write, tmp_path):
    out = tmp_path / "r"
    finetune(**write(marked), out=out, model="cnn", label=("sites",), **FAST)
    frame, metrics = predictions_of(out), metrics_of(out)
    assert metrics["target"] == "per_base"
    assert metrics["test"]["auprc"] > 0.9
    found = np.stack([np.stack(frame[f"probability_{c}"]) for c in range(3)], axis=-1)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-3)
    assert (found.argmax(-1) == np.stack(frame["label"])).mean() > 0.95


def test_a_kmer_model_labels_the_bases_of_its_tokens(write, tiny, tmp_path):
    tables = write(marked, length=40)
    out = tmp_path / "r"
    finetune(**tables, out=out, model=str(tiny), label=("sites",), **FAST | {"epochs": 15})
    frame = predictions_of(out)
    assert {len(row) for row in frame["probability_0"]} == {40}
    assert metrics_of(out)["test"]["auprc"] > 0.3  # about 0.06 for guesses


@pytest.mark.usefixtures("small_cnn")
def test_both_strands_of_labelled_bases_agree_on_the_base(write, tmp_path):
    def both_of_cg(sequence: str) -> dict:
        starts = {i for i in range(len(sequence) - 1) if sequence[i : i + 2] == "CG"}
        n = len(sequence)
        return {"sites": "".join("1" if i in starts or i - 1 in starts else "0" for i in range(n))}

    out = tmp_path / "r"
    tables = write(both_of_cg)
    finetune(**tables, out=out, model="cnn", label=("sites",), strands=True, **FAST)
    assert metrics_of(out)["test"]["auprc"] > 0.9


def test_longer_sequences_than_the_context_are_cropped_or_tiled(write, tiny, tmp_path):
    # The motif stands in the centre; the rest says nothing.
    tables = write(lambda s: {"label": int(gc(s[170:230]) > 0.5)}, length=400)
    with pytest.raises(InputError, match="--long crop or tile"):
        finetune(**tables, out=tmp_path / "r", model=str(tiny), **FAST)
    for long in ("crop", "tile"):
        out = tmp_path / long
        finetune(**tables, out=out, model=str(tiny), long=long, **FAST | {"epochs": 2})
        assert len(predictions_of(out)) == 48


@pytest.mark.usefixtures("small_cnn")
def test_the_test_set_stays_closed_while_settings_are_chosen(write, tmp_path):
    tables = write(lambda s: {"label": int(gc(s) > 0.5)})
    tables["test"].write_bytes(b"\x00 not a table")
    out = tmp_path / "r"
    finetune(**tables, out=out, model="cnn", dev_only=True, **FAST)
    metrics = metrics_of(out)
    assert metrics["dev"]["auroc"] > 0.8
    assert "test" not in metrics
    assert not (out / "predictions" / "test.parquet").exists()


@pytest.mark.usefixtures("small_cnn")
def test_a_range_test_finds_a_rate_that_learns(write, tmp_path):
    tables = write(lambda s: {"label": int(gc(s) > 0.5)})
    out = tmp_path / "r"
    settings = FAST | {"learning_rate": None, "find_rate": True}
    finetune(**tables, out=out, model="cnn", **settings)
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "rate"
    assert 1e-5 < events[0]["rate"] < 0.1
    assert metrics_of(out)["test"]["auroc"] > 0.8


@pytest.mark.usefixtures("small_cnn")
def test_an_averaged_run_killed_between_epochs_ends_as_the_uninterrupted_one(
    write, tmp_path, monkeypatch
):
    from cedilla.training import loop

    tables = write(lambda s: {"label": int(gc(s) > 0.5)})
    settings = {"model": "cnn", "ema": 0.9, "decay": "linear", "accumulate": 2, **FAST}
    finetune(**tables, out=tmp_path / "whole", **settings)
    save, saved = loop.save_state, []

    def killed(*args, **progress):
        save(*args, **progress)
        saved.append(progress)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(**tables, out=tmp_path / "cut", **settings)
    monkeypatch.setattr(loop, "save_state", save)
    finetune(**tables, out=tmp_path / "cut", **settings, resume=True)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


@pytest.mark.usefixtures("small_cnn")
def test_settings_that_do_not_fit_the_labels_are_refused(write, tmp_path):
    tables = write(lambda s: {"y": gc(s) * 3})
    out = tmp_path / "r"
    for settings, what in (
        ({"select": "mcc"}, "--select mcc: does not measure regression"),
        ({"loss": "focal"}, "focal"),
        ({"target": "classes"}, "y"),
    ):
        with pytest.raises(InputError, match=what):
            finetune(**tables, out=out, model="cnn", label=("y",), **FAST | settings)
        assert not out.exists()


def test_one_sequence_with_two_labels_is_said(write, tiny, tmp_path, capsys):
    tables = write(lambda s: {"label": int(gc(s) > 0.5)})
    frame = pd.read_csv(tables["train"])
    frame.loc[1, "sequence"] = frame.loc[0, "sequence"]
    frame.loc[:1, "label"] = [0, 1]
    frame.to_csv(tables["train"], index=False)
    finetune(**tables, out=tmp_path / "r", model=str(tiny), dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 sequences stand with different labels, in 2 rows" in said


@pytest.mark.usefixtures("small_cnn")
def test_rows_have_the_names_of_a_column(write, tmp_path):
    tables = write(lambda s: {"label": int(gc(s) > 0.5), "locus": s[:20]})
    finetune(**tables, out=tmp_path / "r", model="cnn", id="locus", **FAST | {"epochs": 1})
    assert (
        predictions_of(tmp_path / "r")["id"].tolist()
        == pd.read_csv(tables["test"])["locus"].tolist()
    )
    frame = pd.read_csv(tables["dev"])
    frame.loc[3, "locus"] = frame.loc[1, "locus"]
    frame.to_csv(tables["dev"], index=False)
    with pytest.raises(InputError, match="stands further up already"):
        finetune(**tables, out=tmp_path / "s", model="cnn", id="locus", **FAST)


@pytest.mark.usefixtures("small_cnn")
def test_settings_that_would_do_nothing_are_refused(write, tmp_path):
    tables = write(lambda s: {"label": int(gc(s) > 0.5)})
    for settings, what in (
        ({"find_rate": True}, "find_rate and learning_rate exclude each other"),
        ({"gamma": 3.0}, "gamma does nothing without the focal loss"),
        ({"rank": 4}, "rank does nothing with method full"),
    ):
        with pytest.raises(InputError, match=what):
            finetune(**tables, out=tmp_path / "r", model="cnn", **FAST | settings)


@pytest.mark.usefixtures("small_cnn")
def test_one_odd_value_among_yes_and_no_is_said(write, tmp_path, capsys):
    tables = write(lambda s: {"y_a": int(gc(s) > 0.5), "y_b": int(s.startswith("A"))})
    frame = pd.read_csv(tables["train"])
    frame.loc[4, "y_a"] = 2
    frame.to_csv(tables["train"], index=False)
    finetune(**tables, out=tmp_path / "r", model="cnn", label=("y_*",), dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 384 labels are neither 0 nor 1: read as regression" in said


@pytest.mark.usefixtures("small_cnn")
def test_rows_without_any_label_are_refused(write, tmp_path):
    tables = write(marked)
    frame = pd.read_csv(tables["dev"], dtype=str)
    frame["sites"] = "." * 60
    frame.to_csv(tables["dev"], index=False)
    with pytest.raises(InputError, match="label"):
        finetune(**tables, out=tmp_path / "r", model="cnn", label=("sites",), **FAST)


def frozen(tiny: Path, method: str) -> dict:
    """Settings of a training whose lower layers are frozen."""
    some = {"top_layers": 1} if method == "top" else {}
    return {"model": str(tiny), "method": method, **FAST, "epochs": 3, **some}


@pytest.mark.parametrize("method", ["head", "top"])
def test_what_frozen_layers_give_is_kept_and_changes_nothing(
    write, tiny, tmp_path, monkeypatch, method
):
    """In float32, where batches of another shape round alike."""
    monkeypatch.setattr(Precision, "of", classmethod(lambda cls, device: cls("cpu", torch.float32)))
    tables = write(lambda s: {"label": int(gc(s) > 0.5)}, sizes=(64, 32, 32))
    finetune(**tables, out=tmp_path / "a", **frozen(tiny, method))
    assert list((tmp_path / "cache" / "frozen").glob("*.frozen"))
    finetune(**tables, out=tmp_path / "b", **frozen(tiny, method), cache=False)
    kept, plain = (predictions_of(tmp_path / name)["probability"] for name in "ab")
    np.testing.assert_allclose(kept, plain, atol=1e-4)


def test_a_dry_run_says_what_is_computed_once(write, tiny, tmp_path, capsys):
    tables = write(lambda s: {"label": int(gc(s) > 0.5)}, sizes=(64, 32, 32))
    for method, what in (("head", "the encoder"), ("top", "all below block 2")):
        finetune(**tables, out=tmp_path / "a", **frozen(tiny, method), dry_run=True)
        said = " ".join(capsys.readouterr().err.split())
        assert f"{what} is frozen, and computed once:" in said
    assert not (tmp_path / "cache").exists()
