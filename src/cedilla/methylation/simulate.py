"""The verb ``methylation simulate``: loci of :mod:`cedilla.methylation.generator`, as files."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import sha256, whole_file, write_json
from cedilla.methylation.generator import ISLAND_OE, SPLITS, Parameters, simulate_loci
from cedilla.progress import console
from cedilla.version import __version__

VERB = "methylation simulate"
LOCI_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sequence", pa.string()),
        ("label", pa.int64()),
        ("beta", pa.float32()),
        ("cpg_pos0", pa.list_(pa.int32())),
        ("cpg_beta", pa.list_(pa.float32())),
        ("cpg_coverage", pa.list_(pa.int32())),
        ("cpg_oe", pa.float32()),
        ("gc", pa.float32()),
        ("split", pa.string()),
    ]
)


def simulate(
    *,
    out: Path,
    n: int = 1000,
    length: int = 512,
    noise: float = 0.0,
    missing: float = 0.05,
    coverage: float = 20.0,
    seed: int = 0,
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Path:
    """Simulate loci with sequence, per-CpG methylation and a label.

    Writes train.parquet, dev.parquet, test.parquet and all three as loci.parquet (a locus a row;
    label 1 is methylated; its CpGs' 0-based positions, betas and coverage as lists, null where
    not measured), calls.parquet (a measured CpG a row, with the locus as chromosome) and
    manifest.json. The same arguments give the same bytes. A directory that already holds this
    very simulation is left as it is.

    Example: cedilla methylation simulate --out simulated --noise 0.1

    Parameters
    ----------
    out
        Directory to write to.
    n
        Number of loci, half of them CpG islands; at least 20.
    length
        Length of every sequence in bp; at least 50.
    noise
        Probability that a locus's state does not follow from its sequence, 0 to 0.5.
    missing
        Share of the CpGs that are not measured, in places whole loci, 0 to 0.9.
    coverage
        Mean number of reads over a measured CpG; at least 1.
    seed
        Seed of the random numbers.
    splits
        Shares of train, dev and test; they add up to 1.

    Returns
    -------
    Path
        The directory written to.

    Raises
    ------
    InputError
        An argument is out of its range, or `out` holds something else.
    """
    parameters = Parameters(
        n=n,
        length=length,
        noise=noise,
        missing=missing,
        coverage=coverage,
        seed=seed,
        splits=splits,
    )
    out = Path(out)
    stop_on_errors(_check_parameters(parameters))
    wanted = asdict(parameters) | {"splits": list(splits)}
    if _holds_the_same(out, wanted):
        console.print(f"{out} holds this simulation already; nothing to do")
        return out
    manifest = {"verb": VERB, "parameters": wanted, "versions": _versions()}
    # Without files the manifest says that the simulation is under way, and may be taken up again.
    write_json(out / "manifest.json", manifest)
    loci = simulate_loci(parameters)
    files = _write_tables(loci, out)
    write_json(out / "manifest.json", manifest | {"counts": count(loci), "files": files})
    return out


def calls_table(loci: pd.DataFrame) -> pd.DataFrame:
    """The measured CpGs of `loci`, one a row, with the locus's id as their chromosome."""
    sizes = loci["cpg_pos0"].map(len)
    coverage = np.concatenate(loci["cpg_coverage"].to_list())
    beta = np.concatenate(loci["cpg_beta"].to_list())
    calls = pd.DataFrame(
        {
            "chrom": np.repeat(loci["id"].to_numpy(), sizes),
            "pos0": np.concatenate(loci["cpg_pos0"].to_list()),
            "strand": ".",
            "context": "CG",
            "beta": beta,
            "n_mod": np.rint(np.nan_to_num(beta) * coverage).astype(np.int32),
            "coverage": coverage,
            "mod": "5mC",
            "sample": "simulated",
        }
    )
    return calls[coverage > 0].reset_index(drop=True)


def count(loci: pd.DataFrame) -> dict[str, Any]:
    """What came out: rows by split and label, CpGs, and the realised shares."""
    reads = np.concatenate(loci["cpg_coverage"].to_list())
    followed = loci["label"] == (loci["cpg_oe"] <= ISLAND_OE)
    return {
        "loci": {
            name: {str(label): int((part["label"] == label).sum()) for label in (0, 1)}
            for name, part in loci.groupby("split", sort=False)
        },
        "cpgs": len(reads),
        "measured_cpgs": int((reads > 0).sum()),
        "loci_without_a_measured_cpg": int(loci["beta"].isna().sum()),
        "missing": round(float((reads == 0).mean()), 4),
        "noise": round(float(1 - followed.mean()), 4),
        "mean_coverage": round(float(reads[reads > 0].mean()), 2),
    }


def _check_parameters(p: Parameters) -> list[Problem]:
    shares = len(p.splits) == 3 and min(p.splits) > 0 and abs(sum(p.splits) - 1) < 1e-9
    rules = [
        ("--n", p.n, p.n >= 20, "at least 20"),
        ("--length", p.length, p.length >= 50, "at least 50"),
        ("--noise", p.noise, 0 <= p.noise <= 0.5, "a share from 0 to 0.5"),
        ("--missing", p.missing, 0 <= p.missing <= 0.9, "a share from 0 to 0.9"),
        ("--coverage", p.coverage, 1 <= p.coverage <= 1e6, "a mean of at least 1"),
        ("--seed", p.seed, p.seed >= 0, "0 or above"),
        ("--splits", p.splits, shares, "three positive shares that add up to 1"),
    ]
    return [
        Problem(where=flag, what=f"{value} is out of range", mend=f"give {allowed}")
        for flag, value, fine, allowed in rules
        if not fine
    ]


def _read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a simulation in `out`; anything else that stands there is refused."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        if manifest["verb"] == VERB:
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError.one(out, "holds something else than a simulation", "choose another --out")


def _holds_the_same(out: Path, parameters: dict[str, Any]) -> bool:
    """Whether `out` holds this simulation whole; a draft of it is not whole, another is refused."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = _read_manifest(out)
    before = manifest["parameters"]
    changed = sorted(k for k in parameters if before.get(k) != parameters[k])
    if changed:
        what = f"holds a simulation with other parameters ({', '.join(changed)})"
        raise InputError.one(out, what, "choose another --out")
    files = manifest.get("files", {})
    present = [name for name in files if (out / name).exists()]
    edited = [name for name in present if sha256(out / name) != files[name]]
    stop_on_errors(
        Problem(where=str(out / name), what="was changed since", mend="choose another --out")
        for name in edited
    )
    return bool(files) and len(present) == len(files)


def _write_tables(loci: pd.DataFrame, out: Path) -> dict[str, str]:
    tables = {
        f"{split}.parquet": pa.Table.from_pandas(
            loci[loci["split"] == split], schema=LOCI_SCHEMA, preserve_index=False
        )
        for split in SPLITS
    }
    tables["loci.parquet"] = pa.Table.from_pandas(loci, schema=LOCI_SCHEMA, preserve_index=False)
    tables["calls.parquet"] = pa.Table.from_pandas(calls_table(loci), preserve_index=False)
    for name, table in tables.items():
        with whole_file(out / name) as draft:
            pq.write_table(table, draft)
    return {name: sha256(out / name) for name in tables}


def _versions() -> dict[str, str]:
    libraries = ("numpy", "scipy", "pandas", "pyarrow")
    return {"cedilla": __version__} | {name: installed_version(name) for name in libraries}
