"""Write the numbers of the README and the guides from run directories.

    .venv/bin/python docs/fill_numbers.py runs/guide runs/methylation_h3k4me3 runs/mini

Each ``<!-- numbers:NAME -->`` … ``<!-- /numbers -->`` is filled in from the runs that it speaks of,
or of measurements in ``benchmarks/results/``; where they are not there, it stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cedilla.errors import InputError, MissingData
from cedilla.files import write_text
from cedilla.report.dot_rows import METRICS, arm_name, arms_of
from cedilla.report.results import Gathered, Result, gather
from cedilla.report.wording import MISSING, count, decimal, interval, known_bounds, p_value, signed
from cedilla.tasks.catalogue import find_task
from cedilla.tasks.download import locate

CHECKOUT = Path(__file__).resolve().parents[1]
CARD = CHECKOUT / "src" / "cedilla" / "models" / "embedded" / "mini" / "README.md"
DOCUMENTS = (CHECKOUT / "README.md", CARD, *sorted((CHECKOUT / "docs").glob("*.md")))
MARKED = re.compile(r"<!-- numbers:(\S+) -->\n.*?<!-- /numbers -->", re.DOTALL)
LABEL = "gm12878_H3K4me3"
BETA = "beta_median_sesame450k"
SEEDS = 3


def methylation(gathered: Gathered) -> str:
    """The arms of the experiment on H3K4me3, and its verdict."""
    result = _real_comparison(gathered)
    metrics, n = result.metrics, result.metrics["n"]
    seeds = len(result.run.manifest["seeds"])
    verdict = metrics["verdict"]
    return "\n\n".join(
        [
            f"{count(n['train'])} loci to train, {count(n['dev'])} for thresholds, "
            f"{count(n['test'])} to test; test prevalence {decimal(metrics['prevalence'])}; "
            f"learner `{metrics['model']}`, {seeds} seed{'s' * (seeds != 1)}."
            + _short(result, gathered),
            _table(["Arm", *METRICS.values(), "SD of AUROC over seeds"], _arms(metrics, METRICS)),
            f"**Verdict: {verdict['call']}.** {verdict['sentence']}",
            "\n".join(f"- {limit}" for limit in verdict["limits"]),
        ]
    )


def differences(gathered: Gathered) -> str:
    """The paired differences of the same experiment."""
    rows = [
        [
            f"{arm_name(d['arm'])} − {arm_name(d['against'])}",
            METRICS[d["metric"]],
            signed(d["difference"]),
            f"{signed(d['low'])} to {signed(d['high'])}",
            p_value(d["p"]),
            decimal(d["smallest_detectable"]),
        ]
        for d in _real_comparison(gathered).metrics["differences"]
    ]
    head = ["Arms", "Metric", "Difference", "95 % interval", "p", "Smallest detectable"]
    return _table(head, rows)


def hm27(_: Gathered) -> str:
    """What in the 27k table invites misreading."""
    table = pd.read_parquet(locate(find_task("hm27"), "all"))
    autosomal = ~table["chrom_hg19"].isin(["chrX", "chrY"])
    measured, label = table[BETA].notna(), table[LABEL]
    islands = table[table["cgi_ucsc_hg19"]].groupby("chrom_hg19")[BETA].median()
    distance = table["dist_tss"]
    facts = [
        ("Loci; with a beta", f"{count(len(table))}; {count(measured.sum())}"),
        (
            "Largest distance to the TSS; loci where it is unknown",
            f"{count(distance.max())} bp; {count(distance.isna().sum())}",
        ),
        ("H3K4me3 among autosomal loci with a beta", decimal(label[autosomal & measured].mean())),
        ("H3K4me3 among those without", decimal(label[autosomal & ~measured].mean())),
        ("Median beta of island loci on chr22", decimal(islands["chr22"])),
        ("Median beta of island loci on chrX", decimal(islands["chrX"])),
    ]
    return _table(["In the 27k table", ""], facts)


def guide(gathered: Gathered) -> str:
    """The guide's experiment: the model of sequence, and the arms that see the methylation."""
    tuned = _by_noise(gathered, "finetune")
    compared = _by_noise(gathered, "compare")
    names = ("accuracy", "f1", "precision", "recall", "mcc", "auroc")
    rows = []
    for noise, result in tuned.items():
        for split in ("train", "dev", "test"):
            scores = result.metrics[split]
            cells = [decimal(scores[name]) for name in names]
            rows.append([f"{noise:g}", split, *cells, count(scores["n"])])
    arms = [
        [f"{noise:g}", *row[:-1]]
        for noise, result in compared.items()
        for row in _arms(result.metrics, ("auroc", "mcc"))
    ]
    first = next(iter(tuned.values()))
    return "\n\n".join(
        [
            f"`{first.model}` fine-tuned on sequence by {first.metrics['method']}, "
            f"{count(first.metrics['trainable'])} of {count(first.metrics['parameters'])} "
            f"parameters.{_short(first, gathered)}",
            _table(["Noise", "Split", *names[:4], "MCC", "AUROC", "n"], rows),
            "The arms of `cedilla compare`, on the test loci that have a beta:",
            _table(["Noise", "Arm", "AUROC", "MCC"], arms),
        ]
    )


def gue_table(_: Gathered) -> str:
    """The nine GUE tasks whose files are complete: `mini`, its baselines, published values."""
    result = _measured("gue")
    rows, reached, ahead = [], [], {"cnn": 0, "random": 0, "kmer": 0}
    for task, found in result["tasks"].items():
        arms, known, best = found["arms"], found["published"], found["best_published"]
        reached.append(np.mean(arms["mini"]["test_mcc"]) >= best["mcc"])
        for other, gap in found["differences"].items():
            ahead[other] += gap["estimate"] > 0 and gap["p"] < 0.05
        rows.append(
            [
                task.removeprefix("prom/"),
                *(_over_seeds(arms.get(arm)) for arm in ("mini", "random", "cnn", "kmer")),
                *(_over_gap(found["differences"].get(arm)) for arm in ("random", "cnn")),
                *(decimal(known[model]) for model in ("DNABERT-2", "NT-500M-human")),
                f"{decimal(best['mcc'])} ({best['model']})",
            ]
        )
    head = ["Task", "mini", "mini, random weights", "CNN from scratch", "k-mers"]
    head += ["mini − random (p)", "mini − CNN (p)", "DNABERT-2", "NT-500M-human", "best published"]
    total = len(rows)
    return "\n\n".join(
        [
            f"MCC on test, mean ± SD over seeds (in brackets how many, where not {SEEDS}); p of a "
            "paired bootstrap over test sequences, of the mean over seeds.",
            _table(head, rows),
            f"`mini` reaches the best published value on {sum(reached)} of {total} tasks. It is "
            f"ahead of the CNN with p < 0.05 on {ahead['cnn']}, and of its own random weights on "
            f"{ahead['random']}.",
        ]
    )


def mini_training(gathered: Gathered) -> str:
    """The pre-training of `mini`: data with hashes, what was seen, the curve."""
    runs = [r for r in gathered.of("pretrain") if r.config["architecture"] == "hybrid"]
    result = _only(runs, "the pre-training of mini", "`cedilla run mini`")
    manifest, metrics = result.run.manifest, result.metrics
    shares = dict(str(source).rsplit("=", 1) for source in result.config["genomes"])
    files = [
        [Path(name).name, f"{float(share):.1%}", f"`{_hash_of(manifest, Path(name).name)}`"]
        for name, share in shares.items()
    ]
    events = [e for e in result.run.events() if e["event"] == "validation"]
    curve = [
        [
            count(e["step"]),
            f"{e['tokens'] / 1e6:.1f}",
            *(f"{e[name]:.4f}" for name in ("train_loss", "loss", "accuracy")),
        ]
        for e in events
    ]
    held_out = ", ".join(result.config["validation_contigs"])
    minutes = sum(event["seconds"] for event in events) / 60
    return "\n\n".join(
        [
            f"{count(manifest['tokens_seen'])} tokens, a base each, in "
            f"{count(result.config['steps'])} steps, {minutes:.0f} minutes of "
            f"{manifest['processes']} processes. Held out: {held_out}. There "
            f"the masked loss is {metrics['loss']:.4f} nats per base (perplexity "
            f"{metrics['perplexity']:.3f}, accuracy {metrics['accuracy']:.1%}); a Markov chain of "
            f"order {result.config['markov_order']} "
            f"that sees both sides has {metrics['markov_loss']:.4f}, base frequencies "
            f"{metrics['unigram_loss']:.4f}.",
            _table(["Genome", "Share of windows", "SHA-256 of the file"], files),
            _table(["Step", "M tokens", "Training loss", "Held-out loss", "Accuracy"], curve),
        ]
    )


def _hash_of(manifest: Mapping[str, Any], file: str) -> str:
    return next(str(entry["sha256"]) for entry in manifest["data"] if entry["file"] == file)


def _over_seeds(arm: Mapping[str, Any] | None) -> str:
    """``0.831 ± 0.012``, and how many seeds where it is not three."""
    if arm is None:
        return MISSING
    scores = arm["test_mcc"]
    if len(scores) == 1:
        return f"{decimal(scores[0])} (1)"
    spread = f"{decimal(float(np.mean(scores)))} ± {decimal(float(np.std(scores, ddof=1)))}"
    return spread if len(scores) == SEEDS else f"{spread} ({len(scores)})"


def _over_gap(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return MISSING
    return f"{signed(difference['estimate'])} ({p_value(difference['p'])})"


def species_and_sizes(_: Gathered) -> str:
    """One species against several, and three sizes, at one budget."""
    result = _measured("species_and_sizes")
    names = list(next(iter(result["runs"].values()))["losses"])
    rows = [
        [
            *run.split(", "),
            f"{found['parameters'] / 1e6:.2f}",
            *(f"{found['losses'][name]:.4f}" for name in names),
        ]
        for run, found in result["runs"].items()
    ]
    tokens = next(iter(result["runs"].values()))["tokens"]
    return "\n\n".join(
        [
            "Masked loss, nats per base, on what is held out of each species, after "
            f"{count(tokens)} bases ({count(result['steps'])} steps), one seed:",
            _table(["Trained on", "Size", "M parameters", *names], rows),
        ]
    )


def inference(_: Gathered) -> str:
    """Embedding speed and memory beside transformers."""
    result = _measured("inference")
    rates, memory = result["tokens_per_second"], result["memory"]
    ours = {"cedilla fp32": ("fp32", "float32"), "cedilla bf16": ("bf16", "bfloat16")}
    rows = []
    for name, rate in rates.items():
        key, long = ours.get(name, ("", ""))
        taken = memory.get(f"cedilla {long}" if key else name)
        versus = [result[f"{key}_vs_{kind}"] for kind in ("eager", "sdpa")] if key else []
        rows.append(
            [
                name,
                count(rate),
                *(f"{ratio['best']:.1f} ({ratio['median']:.1f})" for ratio in versus),
                *([MISSING] * (2 - len(versus))),
                f"{result['mfu'][key]:.0%}" if key else MISSING,
                f"{count(taken['total_mb'])} ({count(taken['forward_mb'])})" if taken else MISSING,
            ]
        )
    full = {key: result[f"{key}_vs_eager"]["at_full_utilisation"] for key in ("fp32", "bf16")}
    head = ["", "Tokens/s", "× eager", "× SDPA", "Of the matrix peak", "Peak memory, MB"]
    return "\n\n".join(
        [
            f"{result['machine']}, {result['date']}, torch {result['versions']['torch']}, "
            f"transformers {result['versions']['transformers']}; v2-50m's shape with random "
            f"weights, {count(result['tokens'])} tokens in batches of 8 "
            f"({count(result['padded_tokens'])} with the peer's pads), {result['rounds']} rounds "
            "in turn: the best round (the median one). Memory is what weights and forward pass "
            "add to the process (the forward pass alone).",
            _table(head, rows),
            f"Largest difference from eager in float32 {result['max_abs_diff']:.0e}; smallest "
            f"cosine in bfloat16 {result['bf16_cosine']['min']:.4f}. On this processor the whole "
            f"matrix peak ({count(result['matrix_peak_gflops']['fp32'])} GFLOP/s in float32, "
            f"{count(result['matrix_peak_gflops']['bf16'])} in bfloat16) would give "
            f"{full['fp32']:.1f} × and {full['bf16']:.1f} × eager.",
        ]
    )


def pretraining(_: Gathered) -> str:
    """Pre-training speed beside transformers' Trainer."""
    result = _measured("pretraining")
    rows = []
    for length, found in result.items():
        for name in ("transformers fp32", "transformers bf16", "cedilla"):
            one = found[name]
            versus = [found[f"cedilla_vs_{kind}"] for kind in ("fp32", "bf16")]
            rows.append(
                [
                    length.removesuffix("_tokens"),
                    name,
                    count(one["tokens_per_second"]["best"]),
                    f"{one['mfu']['best']:.0%}",
                    count(one["memory_mb"]),
                    *(
                        f"{ratio['best']:.1f} ({ratio['median']:.1f})"
                        if name == "cedilla"
                        else MISSING
                        for ratio in versus
                    ),
                ]
            )
    first = next(iter(result.values()))
    head = ["Tokens a window", "", "Tokens/s", "Of the matrix peak", "Memory, MB"]
    head += ["× Trainer", "× Trainer with bf16"]
    return "\n\n".join(
        [
            f"{first['machine']}, {first['date']}, torch {first['versions']['torch']}, "
            f"transformers {first['versions']['transformers']}; a Nucleotide Transformer v2 of "
            "four layers of width 256, best step of many in turn (the median one):",
            _table(head, rows),
        ]
    )


def tokenizing(_: Gathered) -> str:
    """Tokenizing speed beside transformers."""
    result = _measured("tokenizing")
    rows = [
        [
            text,
            count(round(found["cedilla"]["best_mbp_per_s"])),
            f"{found['transformers']['best_mbp_per_s']:.1f}",
            f"{found['ratio']['best']:.0f} ({found['ratio']['median']:.0f})",
        ]
        for text, found in result["texts"].items()
    ]
    return _table(["Sequences of", "Cedilla, Mbp/s", "transformers, Mbp/s", "Ratio"], rows)


def long_context(_: Gathered) -> str:
    """Masked loss beyond the trained length, by way of rescaling."""
    result = _measured("long_context")
    cells = {(arm["times"], arm["method"]): arm for arm in result["arms"]}
    methods = [method for times, method in cells if times == 2]
    base = cells[1, "none"]["loss"]["mean"]

    def cell(times: int, method: str) -> str:
        difference = cells[times, method]["minus_trained_length"]
        bounds = f"{signed(difference['low'])} to {signed(difference['high'])}"
        return f"{signed(difference['mean'])} ({bounds})"

    lengths = sorted({times for times, _ in cells} - {1})
    rows = [[f"{times} ×", *(cell(times, method) for method in methods)] for times in lengths]
    return "\n\n".join(
        [
            f"`{result['model']}`, trained on {count(result['trained_tokens'])} tokens; masked "
            f"loss minus that of pieces of the trained length ({base:.3f} nats), on the same "
            f"{count(result['masked_tokens'])} masked tokens of {count(result['windows'])} "
            "held-out windows, with 95 % bootstrap intervals.",
            _table(["Length", *methods], rows),
        ]
    )


def _measured(benchmark: str) -> dict[str, Any]:
    path = CHECKOUT / "benchmarks" / "results" / f"{benchmark}.json"
    if not path.exists():
        raise MissingData.one(path, "not found", f"`python benchmarks/{benchmark}.py`")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


BLOCKS: dict[str, Callable[[Gathered], str]] = {
    "h3k4me3": methylation,
    "h3k4me3-differences": differences,
    "hm27": hm27,
    "guide": guide,
    "gue-table": gue_table,
    "inference": inference,
    "long-context": long_context,
    "mini-training": mini_training,
    "pretraining": pretraining,
    "species-and-sizes": species_and_sizes,
    "tokenizing": tokenizing,
}


def fill(text: str, gathered: Gathered) -> tuple[str, list[str]]:
    """`text` with its blocks filled in, and for each block that could not be, why."""
    unfilled = []

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        if name not in BLOCKS:
            known = ", ".join(BLOCKS)
            raise InputError.one(f"numbers:{name}", "is no block", f"known are {known}")
        try:
            body = BLOCKS[name](gathered)
        except MissingData as error:
            unfilled.append(f"{name} stays as it is: {error.problems[0]}")
            return match[0]
        return f"<!-- numbers:{name} -->\n{body}\n<!-- /numbers -->"

    return MARKED.sub(replaced, text), unfilled


def main(words: Sequence[str] | None = None) -> None:
    """Fill in all documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    gathered = gather(parser.parse_args(words).runs)
    for document in DOCUMENTS:
        text, unfilled = fill(document.read_text(encoding="utf-8"), gathered)
        write_text(document, text)
        for line in unfilled:
            print(f"{document.name}: {line}")


def _real_comparison(gathered: Gathered) -> Result:
    runs = [r for r in gathered.of("compare") if r.metrics["label"] == LABEL and not r.synthetic]
    return _only(runs, f"comparison on {LABEL}", "`cedilla run methylation_h3k4me3`")


def _by_noise(gathered: Gathered, verb: str) -> dict[float, Result]:
    """The runs of a verb on simulated loci, by the noise of their simulation."""
    runs = [result for result in gathered.of(verb) if result.synthetic]
    noises = sorted(set(map(_noise, runs))) or [0.0]
    return {
        noise: _only(
            [result for result in runs if _noise(result) == noise],
            f"{verb} on simulated loci of noise {noise:g}",
            "`cedilla run guide`",
        )
        for noise in noises
    }


def _noise(result: Result) -> float:
    """configs/guide.yaml puts the simulation beside the runs on it, as ``data``."""
    manifest = result.run.path.parent / "data" / "manifest.json"
    return float(json.loads(manifest.read_text(encoding="utf-8"))["parameters"]["noise"])


def _only(runs: Sequence[Result], what: str, command: str) -> Result:
    if not runs:
        raise MissingData.one(what, "no such run was given", command)
    if len(runs) > 1:
        places = ", ".join(str(result.run.path) for result in runs)
        raise InputError.one(what, f"stands in several runs: {places}", "give one of them")
    return runs[0]


def _short(result: Result, gathered: Gathered) -> str:
    """Numbers of a short form must not pass for those of the full one."""
    short = any(
        parent.run.manifest.get("short") and parent.run.path in result.run.path.parents
        for parent in gathered.parents
    )
    return " Short form, with fewer rows and seeds than the full one." if short else ""


def _arms(metrics: Mapping[str, Any], chosen: Iterable[str]) -> list[list[str]]:
    """A row an arm: its name, the chosen metrics with their intervals, the spread of the AUROC."""
    rows = []
    for arm in arms_of(metrics):
        scores = metrics["arms"][arm]
        bounds = {metric: known_bounds(scores["interval"][metric]) for metric in chosen}
        cells = [f"{decimal(scores[m])} ({interval(b) or MISSING})" for m, b in bounds.items()]
        rows.append([arm_name(arm), *cells, decimal(scores["sd"]["auroc"])])
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns of numbers are set to the right."""
    numeric = np.all([[cell[:1] in "0123456789+−–<" for cell in row] for row in rows], axis=0)
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


if __name__ == "__main__":
    main()
