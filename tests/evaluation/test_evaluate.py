"""The verb: metrics with intervals from files, differences, a run directory, a printed table."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cedilla.cli import bind
from cedilla.errors import InputError
from cedilla.evaluation.confidence import block_bootstrap, paired_block_bootstrap
from cedilla.evaluation.evaluate import evaluate
from cedilla.metrics.classification import METRICS, classification_metrics

ROWS, QUICK = 120, {"draws": 200}


def predictions(path: Path, *, skill=1.0, seeds=1, split: str | None = "test", **columns) -> Path:
    labels = np.random.default_rng(0).integers(0, 2, ROWS)
    parts = []
    for seed in range(seeds):
        noise = np.random.default_rng([seed, int(10 * skill)]).normal(size=ROWS)
        p = 1 / (1 + np.exp(-(noise + 2 * skill * (labels - 0.5))))
        ids = [f"r{k}" for k in range(ROWS)]
        part = pd.DataFrame({"id": ids, "label": labels, "probability": p, "seed": seed})
        parts.append(part.assign(**columns))
    frame = pd.concat(parts)
    frame = frame if split is None else frame.assign(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)
    return path


def test_one_seed_gives_the_metrics_and_their_intervals(tmp_path, capsys):
    path = predictions(tmp_path / "p.parquet")
    result = evaluate(path, threshold=0.4, seed=3, **QUICK)
    frame = pd.read_parquet(path)
    plain = classification_metrics(frame["label"], frame["probability"], threshold=0.4)
    assert result["test"] == pytest.approx(plain)
    intervals = block_bootstrap(
        frame["label"],
        frame["probability"],
        None,
        metrics=METRICS,
        threshold=0.4,
        seed=3,
        draws=200,
    )
    for name in METRICS:
        expected = [intervals[name].low, intervals[name].high]
        assert result["intervals"]["test"][name] == pytest.approx(expected)
    assert result["resampled"]["test"] == "120 rows"
    assert result["sd"]["test"]["mcc"] is None
    assert result["differences"] == []
    printed = capsys.readouterr().out
    assert f"{plain['mcc']:.3f}" in printed
    assert "95 % interval" in printed
    assert "sd over seeds" not in printed


def test_blocks_are_resampled_whole(tmp_path):
    rows = predictions(tmp_path / "rows.parquet")
    copies = pd.concat([pd.read_parquet(rows).assign(block=lambda f: f["id"])] * 4)
    copies["id"] = [f"c{k}" for k in range(len(copies))]
    copies.to_parquet(tmp_path / "copies.parquet", index=False)
    single = evaluate(rows, **QUICK)
    copied = evaluate(tmp_path / "copies.parquet", **QUICK)
    assert copied["resampled"]["test"] == "120 blocks"
    # The draws depend on the order of the block names, so the two agree within Monte Carlo error.
    spans = [np.ptp(result["intervals"]["test"]["auroc"]) for result in (single, copied)]
    assert spans[1] == pytest.approx(spans[0], rel=0.25)


@pytest.mark.parametrize("seeds", [2, 3])
def test_spread_over_seeds_stands_apart_from_three_seeds_up(tmp_path, capsys, seeds):
    path = predictions(tmp_path / "p.parquet", seeds=seeds)
    result = evaluate(path, **QUICK)
    values = result["seeds"]["test"]["mcc"]
    assert len(values) == seeds
    assert result["test"]["mcc"] == pytest.approx(np.mean(values))
    assert result["test"]["n"] == ROWS
    printed = capsys.readouterr().out
    assert f"mean of {seeds} seeds" in printed
    if seeds == 3:
        assert result["sd"]["test"]["mcc"] == pytest.approx(np.std(values, ddof=1))
        assert f"{np.std(values, ddof=1):.3f}" in printed
    else:
        assert result["sd"]["test"]["mcc"] is None
        assert "sd over seeds" not in printed


def test_differences_are_paired(tmp_path, capsys):
    blocks = [f"chr8:{k // 4}" for k in range(ROWS)]
    ours = predictions(tmp_path / "a.parquet", skill=2.0, seeds=2, block=blocks)
    theirs = predictions(tmp_path / "b.parquet", skill=0.5, block=blocks)
    shuffled = pd.read_parquet(theirs).sample(frac=1, random_state=1)
    shuffled.to_parquet(theirs, index=False)
    result = evaluate(ours, against=theirs, **QUICK)
    by_metric = {row["metric"]: row for row in result["differences"]}
    other = evaluate(theirs, **QUICK)
    assert list(by_metric) == list(METRICS)
    for name, row in by_metric.items():
        assert row["difference"] == pytest.approx(result["test"][name] - other["test"][name])
    assert by_metric["auroc"]["low"] > 0
    assert by_metric["auroc"]["p"] < 0.05
    a, b = (pd.read_parquet(path).set_index("id") for path in (ours, theirs))
    direct = paired_block_bootstrap(
        a["label"][:ROWS],
        np.stack([part["probability"] for _, part in a.groupby("seed")]),
        b.loc[a.index[:ROWS], "probability"],
        blocks,
        draws=200,
    )
    assert by_metric["mcc"]["p"] == pytest.approx(direct["mcc"].p)
    assert by_metric["mcc"]["smallest_detectable"] == pytest.approx(
        2.8016 * direct["mcc"].sd, rel=1e-4
    )
    assert "detectable" in capsys.readouterr().out


def test_sets_without_a_counterpart_are_named(tmp_path, capsys):
    parts = [predictions(tmp_path / f"{split}.parquet", split=split) for split in ("dev", "test")]
    both = tmp_path / "both.parquet"
    pd.concat([pd.read_parquet(part) for part in parts]).to_parquet(both, index=False)
    result = evaluate(both, against=parts[1], **QUICK)
    assert {"dev", "test"} <= result.keys()
    assert {row["set"] for row in result["differences"]} == {"test"}
    assert "in the first file only: dev\n" in capsys.readouterr().out


def test_a_run_directory_holds_the_result(tmp_path, capsys):
    path = predictions(tmp_path / "p.parquet")
    out = tmp_path / "out"
    result = evaluate(path, against=path, out=out, **QUICK)
    assert json.loads((out / "metrics.json").read_text()) == result
    manifest = json.loads((out / "manifest.json").read_text())
    assert [(entry["role"], entry["rows"]) for entry in manifest["data"]] == [
        ("predictions", ROWS),
        ("against", ROWS),
    ]
    with pytest.raises(InputError, match="holds a run already"):
        evaluate(path, against=path, out=out, **QUICK)
    (out / "metrics.json").write_text('{"test": "as it was left"}')
    again = evaluate(path, against=path, out=out, resume=True, **QUICK)
    assert again == {"test": "as it was left"}
    (out / "metrics.json").unlink()
    assert evaluate(path, against=path, out=out, resume=True, **QUICK) == result


def test_more_than_two_classes(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 60)
    frame = pd.DataFrame(p, columns=[f"probability_{k}" for k in range(3)])
    frame = frame.assign(id=range(60), label=rng.integers(0, 3, 60))
    frame.to_csv(tmp_path / "p.csv", index=False)
    result = evaluate(tmp_path / "p.csv", **QUICK)
    assert result["all"] == pytest.approx(classification_metrics(frame["label"], p))
    low, high = result["intervals"]["all"]["mcc"]
    assert low < result["all"]["mcc"] < high


def test_problems_of_settings_and_both_files_come_at_once_and_leave_nothing(tmp_path):
    ours = predictions(tmp_path / "a.parquet")
    pd.read_parquet(ours).assign(label=1).to_parquet(ours, index=False)
    theirs = predictions(tmp_path / "b.parquet", probability=7.0)
    with pytest.raises(InputError) as caught:
        evaluate(ours, against=theirs, threshold=50, level=95, draws=3, out=tmp_path / "out")
    text = str(caught.value)
    for part in ("--threshold 50", "--level 95", "--draws 3", "one class only", "b.parquet row 1"):
        assert part in text
    assert not (tmp_path / "out").exists()


def test_missing_ids_are_named(tmp_path):
    ours, theirs = (predictions(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    pd.read_parquet(theirs)[2:].to_parquet(theirs, index=False)
    with pytest.raises(InputError, match=r"b.parquet test: lacks 2 ids \(r0, r1\) of .*a.parquet"):
        evaluate(ours, against=theirs, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_help_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, skill in (("beta", 1.5), ("sequence", 1.0)):
        predictions(tmp_path / "runs" / name / "predictions" / "test.parquet", skill=skill)
    example = inspect.getdoc(evaluate).split("--------\n")[-1]
    program, *tokens = shlex.split(example)
    assert program == "cedilla"
    result = bind("evaluate", tokens=tokens)()
    assert result["differences"]
    assert json.loads(Path("runs/beta-or-not/metrics.json").read_text()) == result
    # The table fits a terminal of 80 columns without cutting a cell.
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
