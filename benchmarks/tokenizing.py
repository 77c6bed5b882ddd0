"""Tokenizing speed beside the Hugging Face tokenizer of the same vocabulary, in one process.

Rounds alternate, and the best and the median of each are printed and written to
``benchmarks/results/tokenizing.json``. The peer comes with peft's dependencies.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import EsmTokenizer

from cedilla.dna.tokenizer import Tokenizer
from cedilla.files import write_json

ROUNDS = 7
RESULTS = Path(__file__).parent / "results" / "tokenizing.json"


def sequences(n: int = 200, length: int = 3000) -> list[str]:
    """Random DNA without N; the peer reads lower case and U differently, so there is none."""
    rng = np.random.default_rng(0)
    return ["".join(row) for row in np.array(list("ACGT"))[rng.integers(0, 4, (n, length))]]


def peer(ours: Tokenizer) -> EsmTokenizer:
    """The published tokenizer: ESM's, with our vocabulary in its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(ours.vocabulary))
        return EsmTokenizer(str(path), eos_token=None, model_max_length=2048)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    clock = time.perf_counter()
    call()
    return time.perf_counter() - clock


def main() -> None:
    """Check that both give the same ids, then time them in turn."""
    ours = Tokenizer()
    theirs = peer(ours)
    texts = sequences()
    assert [row.tolist() for row in ours.encode_ragged(texts)] == theirs(texts)["input_ids"]
    times: dict[str, list[float]] = {"cedilla": [], "transformers": []}
    for _ in range(ROUNDS):
        times["cedilla"].append(seconds(lambda: ours.encode_ragged(texts)))
        times["transformers"].append(seconds(lambda: theirs(texts)))
    megabases = sum(map(len, texts)) / 1e6
    result = {
        name: {
            "best_mbp_per_s": round(megabases / min(values), 1),
            "median_mbp_per_s": round(megabases / statistics.median(values), 1),
        }
        for name, values in times.items()
    }
    ratios = {
        "best": round(min(times["transformers"]) / min(times["cedilla"]), 1),
        "median": round(
            statistics.median(times["transformers"]) / statistics.median(times["cedilla"]), 1
        ),
    }
    write_json(RESULTS, {**result, "ratio": ratios})
    print(json.dumps({**result, "ratio": ratios}, indent=2))


if __name__ == "__main__":
    main()
