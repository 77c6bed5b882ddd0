"""Tokenizing speed beside the Hugging Face tokenizer of the same vocabulary, in one process.

The peer is transformers 4.55.4, which ``make reference`` puts in ``.reference``; without it, the
release that is installed. It reads upper case only, so that it is given ``text.upper()``, as its
users must. Both run on one core, in turn; a round of Cedilla is the mean of several calls, so that
both are timed over similar spans. The ids are compared first. Results, best and median of the
rounds, go to ``benchmarks/results/tokenizing.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cedilla.dna.tokenizer import Tokenizer
from cedilla.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "tokenizing.json"
REFERENCE = HERE.parent / ".reference"
BASES = 600_000  # of each kind of text
CALLS = 20  # of Cedilla in a round


def texts() -> dict[str, list[str]]:
    """Kinds of text: random windows of three lengths, soft-masked ones, and ones with N."""
    rng = np.random.default_rng(0)
    kinds = {f"{length:,} bases": windows(length, rng) for length in (300, 3_000, 12_000)}
    kinds["soft-masked"] = [
        "".join(part.lower() if rng.random() < 0.5 else part for part in cut(window, 300))
        for window in windows(3_000, rng)
    ]
    kinds["a run of N"] = [
        window[:at] + "N" * n + window[at + n :]
        for window in windows(3_000, rng)
        for at, n in [(rng.integers(0, 2_500), rng.integers(1, 500))]
    ]
    kinds["2 % N"] = [
        "".join("N" if rng.random() < 0.02 else base for base in window)
        for window in windows(3_000, rng)
    ]
    return kinds


def windows(length: int, rng: np.random.Generator) -> list[str]:
    """Random DNA, `BASES` in all."""
    letters = rng.integers(0, 4, (BASES // length, length))
    return ["".join(row) for row in np.array(list("ACGT"))[letters]]


def cut(text: str, size: int) -> list[str]:
    """`text` in pieces of `size`."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def peer(ours: Tokenizer) -> tuple[Callable[[Sequence[str]], list[list[int]]], str]:
    """The published tokenizer, ESM's with our vocabulary in its file, and its release."""
    if REFERENCE.is_dir():
        sys.path.insert(0, str(REFERENCE))
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(ours.vocabulary))
        theirs = transformers.EsmTokenizer(str(path), eos_token=None, model_max_length=12_000)
    return (
        lambda batch: theirs([text.upper() for text in batch])["input_ids"],
        transformers.__version__,
    )


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Mean wall time of a call."""
    clock = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - clock) / calls


def measure(
    ours: Tokenizer, theirs: Callable[[Sequence[str]], Any], batch: list[str], rounds: int
) -> dict[str, Any]:
    """Mbp/s of both, and the ratio, best against best and median against median."""
    assert [row.tolist() for row in ours.encode_ragged(batch)] == theirs(batch)
    times: dict[str, list[float]] = {"cedilla": [], "transformers": []}
    for _ in range(rounds):
        times["cedilla"].append(seconds(lambda: ours.encode_ragged(batch), CALLS))
        times["transformers"].append(seconds(lambda: theirs(batch)))
    megabases = sum(map(len, batch)) / 1e6
    result: dict[str, Any] = {"ratio": {}}
    for name, of in (("best", min), ("median", statistics.median)):
        speed = {who: megabases / of(values) for who, values in times.items()}
        result["ratio"][name] = round(speed["cedilla"] / speed["transformers"], 1)
        for who in times:
            result.setdefault(who, {})[f"{name}_mbp_per_s"] = float(f"{speed[who]:.4g}")
    return result


def main() -> None:
    """Time every kind of text and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each (default 7)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    given = parser.parse_args()
    ours = Tokenizer()
    theirs, release = peer(ours)
    print(f"Mbp/s, best (median) of {given.rounds} rounds; transformers {release}")
    print(f"{'':14}{'cedilla':>16}{'transformers':>16}{'ratio':>16}")
    found = {}
    for kind, batch in texts().items():
        found[kind] = one = measure(ours, theirs, batch, given.rounds)
        line = f"{kind:14}"
        for who, unit in (("cedilla", "_mbp_per_s"), ("transformers", "_mbp_per_s"), ("ratio", "")):
            line += f"{one[who]['best' + unit]:8,.4g} ({one[who]['median' + unit]:,.4g})".rjust(16)
        print(line)
    write_json(given.out, {"transformers": release, "rounds": given.rounds, "texts": found})


if __name__ == "__main__":
    main()
