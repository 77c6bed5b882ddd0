import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

from cedilla.errors import InputError
from cedilla.methylation.generator import (
    ISLAND_OE,
    Parameters,
    cpg_statistics,
    simulate_loci,
    transition_matrices,
)
from cedilla.methylation.simulate import simulate

DEFAULTS = {
    "n": 1000,
    "length": 512,
    "noise": 0.0,
    "missing": 0.05,
    "coverage": 20.0,
    "seed": 0,
    "splits": (0.8, 0.1, 0.1),
}


def loci_with(**changes) -> pd.DataFrame:
    return simulate_loci(Parameters(**(DEFAULTS | changes)))


@pytest.fixture(scope="module")
def clean() -> pd.DataFrame:
    return loci_with()


@pytest.fixture(scope="module")
def noisy() -> pd.DataFrame:
    return loci_with(noise=0.25, seed=1)


def all_cpgs(loci: pd.DataFrame, column: str) -> np.ndarray:
    return np.concatenate(loci[column].to_list())


def test_sizes_and_balance(clean):
    assert clean["split"].value_counts().to_dict() == {"train": 800, "dev": 100, "test": 100}
    assert (clean["sequence"].str.len() == 512).all()
    assert clean["id"].is_unique
    for _, part in clean.groupby("split"):
        assert abs(part["label"].mean() - 0.5) <= 0.02


def test_noisy_labels_are_balanced_and_stratified(noisy):
    assert abs(noisy["label"].mean() - 0.5) < 0.05
    from_sequence = (noisy["cpg_oe"] <= ISLAND_OE).astype(int)
    agreement = (noisy["label"] == from_sequence).groupby(noisy["split"]).mean()
    assert agreement.max() - agreement.min() < 0.03


def test_cpg_positions_are_the_cpgs_of_the_sequence(clean):
    for row in clean.head(50).itertuples():
        expected = [i for i, two in enumerate(pairwise(row.sequence)) if two == ("C", "G")]
        assert row.cpg_pos0.tolist() == expected
        assert expected
        assert row.cpg_oe == pytest.approx(
            len(expected) * 512 / (row.sequence.count("C") * row.sequence.count("G"))
        )
        assert row.gc == pytest.approx(sum(map(row.sequence.count, "GC")) / 512)


def test_islands_and_background_have_human_composition(clean):
    island, background = clean[clean["label"] == 0], clean[clean["label"] == 1]
    assert (island["gc"] > 0.5).all()
    assert (island["cpg_oe"] > 0.6).all()
    assert island["gc"].mean() == pytest.approx(0.65, abs=0.01)
    assert background["gc"].mean() == pytest.approx(0.41, abs=0.01)
    assert background["cpg_oe"].mean() == pytest.approx(0.2, abs=0.02)


def test_chain_keeps_composition_and_treats_both_strands_alike():
    gc, oe = np.array([0.41, 0.65]), np.array([0.2, 0.8])
    chain = transition_matrices(gc, oe)
    pi = np.stack([1 - gc, gc, gc, 1 - gc], axis=1) / 2
    assert (chain > 0).all()
    np.testing.assert_allclose(chain.sum(axis=2), 1)
    np.testing.assert_allclose(np.einsum("ni,nij->nj", pi, chain), pi)
    joint = pi[:, :, None] * chain
    np.testing.assert_allclose(joint[:, 1, 2], oe * pi[:, 1] * pi[:, 2])
    np.testing.assert_allclose(joint, joint[:, ::-1, ::-1].transpose(0, 2, 1))


def test_without_noise_cpg_ratio_alone_gives_the_label(clean):
    assert matthews_corrcoef(clean["label"], clean["cpg_oe"] <= ISLAND_OE) == 1


def test_noise_is_realised_and_hidden_from_sequence_but_not_from_beta(noisy):
    by_rule = (noisy["cpg_oe"] <= ISLAND_OE).astype(int)
    assert (by_rule != noisy["label"]).mean() == pytest.approx(0.25, abs=0.03)
    assert matthews_corrcoef(noisy["label"], by_rule) == pytest.approx(0.5, abs=0.06)
    measured = noisy.dropna(subset="beta")
    assert matthews_corrcoef(measured["label"], measured["beta"] > 0.5) > 0.97


def test_nothing_but_sequence_and_methylation_tells_the_label(clean):
    row = np.arange(len(clean))
    number = clean["id"].str.removeprefix("locus").astype(int)
    artefacts = np.column_stack(
        [row % 2, row / 1000, number % 2, number % 7, clean["sequence"].str.len()]
    )
    train, test = row < 600, row >= 600
    model = LogisticRegression().fit(artefacts[train], clean["label"][train])
    assert abs(matthews_corrcoef(clean["label"][test], model.predict(artefacts[test]))) < 0.12
    runs = (np.diff(clean["label"]) != 0).sum()
    assert 430 < runs < 570


def test_missing_cpgs_and_loci():
    loci = loci_with(missing=0.3, n=2000, length=200)
    reads, betas = all_cpgs(loci, "cpg_coverage"), all_cpgs(loci, "cpg_beta")
    assert (reads == 0).mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(np.isnan(betas), reads == 0)
    many = loci[loci["cpg_pos0"].map(len) >= 12]
    assert many["beta"].isna().mean() == pytest.approx(0.3 * 0.25, abs=0.03)
    assert 0 < loci["beta"].isna().mean() < 0.3


def test_nothing_is_missing_when_nothing_should_be():
    loci = loci_with(missing=0.0, n=100)
    assert (all_cpgs(loci, "cpg_coverage") > 0).all()
    assert loci["beta"].notna().all()


def test_betas_are_bimodal_and_follow_the_label(clean):
    betas = all_cpgs(clean, "cpg_beta")
    betas = betas[~np.isnan(betas)]
    low, middle, high = (
        (betas < 0.2).mean(),
        (abs(betas - 0.5) < 0.1).mean(),
        (betas > 0.8).mean(),
    )
    assert low > 10 * middle
    assert high > 3 * middle
    assert clean["beta"].corr(clean["label"]) > 0.9
    means = clean.groupby("label")["beta"].mean()
    assert means[0] < 0.1
    assert means[1] > 0.8


def test_beta_is_the_mean_over_the_measured_cpgs(clean):
    means = [np.nan if np.isnan(b).all() else np.nanmean(b) for b in clean["cpg_beta"]]
    np.testing.assert_allclose(clean["beta"], means, rtol=1e-5)


def test_neighbouring_cpgs_are_alike_beyond_their_state():
    island = loci_with(n=600, missing=0.0, coverage=500.0)
    island = island[island["label"] == 0]
    near = np.concatenate([np.column_stack([b[:-1], b[1:]]) for b in island["cpg_beta"]])
    far = np.column_stack([island["cpg_beta"].str[0], island["cpg_beta"].str[-1]]).astype(float)
    assert np.corrcoef(near.T)[0, 1] > 0.75
    assert np.corrcoef(far.T)[0, 1] < 0.45


def test_coverage_has_the_mean_asked_for_and_is_overdispersed(clean):
    reads = all_cpgs(clean, "cpg_coverage")
    reads = reads[reads > 0]
    assert reads.mean() == pytest.approx(20, abs=0.5)
    assert reads.var() > 2 * reads.mean()


def test_statistics_of_known_sequences():
    codes = np.array([[1, 2, 1, 2], [0, 0, 3, 3], [2, 1, 1, 1]])
    gc, oe = cpg_statistics(codes)
    assert gc.tolist() == [1, 0, 1]
    assert oe.tolist() == [2 * 4 / 4, 0, 0]


def test_files_are_what_the_manifest_says(tmp_path: Path):
    out = simulate(out=tmp_path / "sim", n=100, noise=0.1, missing=0.2)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["parameters"]["noise"] == 0.1
    assert set(manifest["files"]) == {
        f"{name}.parquet" for name in ("train", "dev", "test", "loci", "calls")
    }
    parts = {s: pd.read_parquet(out / f"{s}.parquet") for s in ("train", "dev", "test")}
    assert {s: len(part) for s, part in parts.items()} == {"train": 80, "dev": 10, "test": 10}
    for split, part in parts.items():
        assert (part["split"] == split).all()
        counts = part["label"].astype(str).value_counts().to_dict()
        assert counts == manifest["counts"]["loci"][split]
    loci = pd.concat(parts.values())
    calls = pd.read_parquet(out / "calls.parquet")
    assert len(calls) == manifest["counts"]["measured_cpgs"] < manifest["counts"]["cpgs"]
    assert list(calls.columns) == [
        *("chrom", "pos0", "strand", "context", "beta", "n_mod", "coverage", "mod", "sample")
    ]
    np.testing.assert_allclose(calls["beta"], calls["n_mod"] / calls["coverage"], rtol=1e-6)
    by_locus = calls.groupby("chrom")["beta"].mean()
    np.testing.assert_allclose(
        loci.set_index("id")["beta"].dropna().sort_index(), by_locus.sort_index(), rtol=1e-4
    )
    assert np.isnan(loci["cpg_beta"].iloc[0]).sum() == (loci["cpg_coverage"].iloc[0] == 0).sum()


def test_same_arguments_same_bytes_another_seed_others(tmp_path: Path):
    names = ("train.parquet", "dev.parquet", "test.parquet", "calls.parquet", "manifest.json")
    a, b, c = (simulate(out=tmp_path / x, n=60, seed=s) for x, s in (("a", 3), ("b", 3), ("c", 4)))
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names)
    assert all((a / name).read_bytes() != (c / name).read_bytes() for name in names)


def test_the_same_again_is_left_alone_and_another_is_refused(tmp_path: Path, capsys):
    out = simulate(out=tmp_path, n=60)
    before = (out / "train.parquet").stat().st_mtime_ns
    simulate(out=tmp_path, n=60)
    assert "already" in capsys.readouterr().err
    assert (out / "train.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"other parameters \(noise, seed\)"):
        simulate(out=tmp_path, n=60, noise=0.1, seed=2)


def test_an_interrupted_simulation_is_taken_up_again(tmp_path: Path):
    out = simulate(out=tmp_path, n=60)
    whole = (out / "test.parquet").read_bytes()
    (out / "test.parquet").unlink()
    simulate(out=tmp_path, n=60)
    assert (out / "test.parquet").read_bytes() == whole
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest.items() if k not in ("counts", "files")})
    )
    simulate(out=tmp_path, n=60)
    assert json.loads((out / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("name", ["notes.txt", "train.parquet", "manifest.json"])
def test_other_files_are_never_overwritten(tmp_path: Path, name: str):
    (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match="something else than a simulation"):
        simulate(out=tmp_path, n=60)
    assert (tmp_path / name).read_text() == "[]"
    with pytest.raises(InputError, match="something else"):
        simulate(out=tmp_path / name, n=60)


def test_an_edited_file_is_not_overwritten(tmp_path: Path):
    out = simulate(out=tmp_path, n=60)
    (out / "dev.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"dev\.parquet: was changed since"):
        simulate(out=tmp_path, n=60)


def test_every_bad_argument_is_named_at_once(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        simulate(
            out=tmp_path / "sim",
            n=3,
            length=10,
            noise=float("nan"),
            missing=1.0,
            coverage=0,
            seed=-1,
            splits=(0.5, 0.5, 0.5),
        )
    flags = [problem.where for problem in caught.value.problems]
    assert flags == [
        *("--n", "--length", "--noise", "--missing", "--coverage", "--seed", "--splits")
    ]
    assert not (tmp_path / "sim").exists()


def test_smallest_simulation_has_both_classes_everywhere():
    loci = loci_with(n=20, length=50)
    assert (loci.groupby("split")["label"].nunique() == 2).all()
    assert loci["cpg_pos0"].map(len).min() >= 1
