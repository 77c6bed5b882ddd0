"""What longer inputs than those of pre-training cost or bring, with and without rescaled positions.

Windows of eight times the trained length are taken from the held-out ends of the contigs that the
model was pre-trained on, side by side and without N. The same tokens of a window become ``<mask>``
in every arm. A window is read in 8, 4, 2 pieces or in one, so that its pieces have 1, 2, 4 and 8
times the trained length; the arms of a length differ in the positions alone. Printed, and written
to ``benchmarks/results/long_context.json``: the loss in nats, and its paired difference from
reading pieces of the trained length, with 95 % bootstrap intervals over windows.

Needs ``CEDILLA_DATA``, a folder with ``genomes/``, and about ten minutes of one core; without the
folder nothing is measured.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
import yaml

import cedilla
from cedilla.dna.genome_store import CODE
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer
from cedilla.files import write_json
from cedilla.models.nucleotide_transformer import MASK_SHARE_IN_TRAINING
from cedilla.models.packed import PackedModel
from cedilla.models.rotary import Rescaling
from cedilla.progress import track
from cedilla.training.genomes import hold_out, read_genomes
from cedilla.training.masking import tokens_of

RESULTS = Path(__file__).parent / "results" / "long_context.json"
RECIPE = Path(cedilla.__file__).parent / "configs" / "nt_3mer.yaml"
HELD_OUT = 0.02  # as in pre-training
TIMES = (1, 2, 4, 8)
RESAMPLES = 10_000
TOGETHER = 16  # windows
Interval = dict[str, float]


def main() -> None:
    """Measure every arm on the same windows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="the directory of the model that configs/nt_3mer.yaml trains")
    parser.add_argument("--trained-tokens", type=int, default=128, help="<cls> included")
    parser.add_argument("--windows", type=int, default=500, help="at most")
    args = parser.parse_args()
    if "CEDILLA_DATA" not in os.environ:
        print("CEDILLA_DATA is not set: nothing is measured")
        return
    tokenizer = Tokenizer.for_model(cedilla.load(args.model))
    ids = windows(tokenizer, max(TIMES) * (args.trained_tokens - 1), args.windows)
    masked = np.random.default_rng(1).random(ids.shape) < MASK_SHARE_IN_TRAINING
    arms = [(1, "none"), *((n, how) for n in TIMES[1:] for how in get_args(Rescaling))]
    losses = {}
    for times, how in track(arms, "arms"):
        model = reader(args.model, args.trained_tokens, times, how)
        losses[times, how] = window_losses(model, times * (args.trained_tokens - 1), ids, masked)
    rows = table(losses, masked.sum(1), args.trained_tokens)
    facts = {"model": RECIPE.stem, "trained_tokens": args.trained_tokens, "windows": len(ids)}
    facts |= {"masked_tokens": int(masked.sum()), "tokens_per_window": ids.shape[1]}
    write_json(RESULTS, {**facts, "arms": rows})
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(as_text(rows))


def windows(tokenizer: Tokenizer, tokens: int, most: int) -> np.ndarray:
    """Token ids (N, tokens) of neighbouring windows without N, drawn from the held-out ends."""
    recipe = yaml.safe_load(RECIPE.read_text())
    sources = [source.partition("=")[0] for source in recipe["steps"][0]["pretrain"]["genomes"]]
    length = tokens * tokenizer.k
    found = [
        genome.store.bases[start : start + length] & CODE
        for genome in hold_out(read_genomes(sources), share=HELD_OUT)[1]
        for first, end in genome.runs.tolist()
        for start in range(first, end - length + 1, length)
    ]
    chosen = np.random.default_rng(0).permutation(len(found))[:most]
    return tokens_of(np.stack([found[i] for i in chosen]), tokenizer)[:, 1:].numpy()


def reader(name: str, trained: int, times: int, how: Rescaling) -> PackedModel:
    """The model, made to read `times` its trained length."""
    model = cedilla.load(name)
    if times > 1:
        model.extend_context(times, how, trained_tokens=trained)
    return PackedModel(model)


def window_losses(
    model: PackedModel, length: int, ids: np.ndarray, masked: np.ndarray
) -> np.ndarray:
    """Summed loss (N,) at the masked tokens of each window, read in pieces of `length` tokens."""
    total = np.zeros(len(ids))
    for start in range(0, len(ids), TOGETHER):
        window, where = ids[start : start + TOGETHER], masked[start : start + TOGETHER]
        pieces = np.where(where, MASK, window).astype(np.int32).reshape(-1, length)
        at = [1 + np.flatnonzero(part) for part in where.reshape(-1, length)]
        logits = torch.cat(model.logits([np.append(np.int32(CLS), p) for p in pieces], at=at))
        target = torch.from_numpy(window[where]).long()
        losses = F.cross_entropy(logits, target, reduction="none").numpy()
        np.add.at(total, start + np.nonzero(where)[0], losses)
    return total


def table(
    losses: dict[tuple[int, Rescaling], np.ndarray], counts: np.ndarray, trained: int
) -> list[dict[str, Any]]:
    """One row an arm: its loss, and its differences from pieces of the trained length and from
    the same pieces without rescaling."""
    rows = []
    for (times, how), loss in losses.items():
        row: dict[str, Any] = {"times": times, "tokens": times * (trained - 1) + 1, "method": how}
        row["loss"] = interval(loss, counts)
        if times > 1:
            row["minus_trained_length"] = interval(loss - losses[1, "none"], counts)
        if how != "none":
            row["minus_none"] = interval(loss - losses[times, "none"], counts)
        rows.append(row)
    return rows


def interval(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """Mean per token, and its 95 % percentile interval when windows are drawn anew."""
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    values = {"mean": sums.sum() / counts.sum(), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()}


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The table, for a terminal."""

    def cell(row: dict[str, Any], name: str) -> str:
        found = row.get(name)
        return "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**found) if found else ""

    columns = "{:>6} {:>7} {:<7} {:>7}  {:<27} {}"
    names = ("times", "tokens", "method", "loss", "minus trained length", "minus none")
    lines = [columns.format(*names)] + [
        columns.format(
            *(row[name] for name in ("times", "tokens", "method")),
            f"{row['loss']['mean']:.4f}",
            cell(row, "minus_trained_length"),
            cell(row, "minus_none"),
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
