"""What a model says at masks, and of whole sequences, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from torch import Tensor

from cedilla.dna.tokenizer import Tokenizer
from cedilla.inference.likelihood import BASES, PseudoLikelihood, marginals
from cedilla.inference.masks import Masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a model says at n masks.

    kmers (n, top): ids of the most probable k-mers, and their probabilities. bases (n, k, 4): of
    A, C, G, T, normalised over k-mers. other (n,): probability of all tokens that are no k-mers.
    """

    kmers: np.ndarray
    probabilities: np.ndarray
    bases: np.ndarray
    other: np.ndarray


def filled(mass: Tensor, top: int, tokenizer: Tokenizer) -> Filled:
    """What the mass (n, 4^k) of k-mers at n masks says, with the `top` k-mers of each."""
    probabilities, numbers = mass.topk(top, dim=1)
    return Filled(
        kmers=numbers.numpy() + tokenizer.kmers.start,
        probabilities=probabilities.numpy(),
        bases=marginals(mass).numpy(),
        other=(1 - mass.sum(dim=1)).numpy(),
    )


def joined(parts: Sequence[Filled]) -> Filled:
    """`parts` one after the other."""
    return Filled(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Filled)
        }
    )


def kmers_of_masks(texts: Sequence[Masked], filled: Filled, tokenizer: Tokenizer) -> pd.DataFrame:
    """A row a mask and k-mer, the most probable first. pos1: the mask's first base, from 1."""
    top = filled.kmers.shape[1]
    frame = _masks(texts, tokenizer.k).loc[lambda f: f.index.repeat(top)]
    vocabulary = np.array(tokenizer.vocabulary)
    return frame.assign(
        rank=np.tile(np.arange(1, top + 1), len(filled.kmers)),
        kmer=vocabulary[filled.kmers].ravel(),
        probability=filled.probabilities.ravel(),
        other=filled.other.repeat(top),
    ).reset_index(drop=True)


def bases_of_masks(texts: Sequence[Masked], filled: Filled, tokenizer: Tokenizer) -> pd.DataFrame:
    """A row a masked base: pos1, from 1, and the probabilities of A, C, G, T."""
    k = tokenizer.k
    frame = _masks(texts, k).loc[lambda f: f.index.repeat(k)]
    frame["pos1"] += np.tile(np.arange(k), len(filled.bases))
    flat = filled.bases.reshape(-1, 4)
    columns = {base: flat[:, i] for i, base in enumerate(BASES)}
    return frame.assign(**columns, other=filled.other.repeat(k)).reset_index(drop=True)


def _masks(texts: Sequence[Masked], k: int) -> pd.DataFrame:
    """id, mask (from 1 in each text) and pos1 of all masks."""
    rows = [
        (text.id, number, pos1)
        for text in texts
        for number, pos1 in enumerate(text.positions1(k), start=1)
    ]
    return pd.DataFrame(rows, columns=["id", "mask", "pos1"])


def scores_of_sequences(
    texts: Sequence[Masked], found: Sequence[Sequence[PseudoLikelihood]]
) -> pd.DataFrame:
    """A row a sequence; the mean over the strands that were `found`, forward first."""
    frame = pd.DataFrame({"id": [text.id for text in texts]})
    tokens = np.array([strands[0].scored_tokens for strands in found])
    bases = np.array([strands[0].scored_bases for strands in found])
    pll = np.array([np.mean([s.pll for s in strands]) for strands in found])
    base_pll = np.array([np.mean([s.base_pll for s in strands]) for strands in found])
    other = [pd.Series(np.concatenate([s.other for s in strands])).mean() for strands in found]
    return frame.assign(
        tokens=tokens,
        bases=bases,
        pll=pll,
        pll_per_token=pll / tokens,
        pll_per_base=pll / bases,
        base_pll=base_pll,
        base_pll_per_base=base_pll / bases,
        other=other,
    )


def scores_of_tokens(
    texts: Sequence[Masked],
    found: Sequence[PseudoLikelihood],
    rows: Sequence[np.ndarray],
    tokenizer: Tokenizer,
) -> pd.DataFrame:
    """A row a token, ``<cls>`` apart: number from 1, pos1 of its first base, log_p, other."""
    vocabulary = np.array(tokenizer.vocabulary)
    tokens = [vocabulary[row[1:]] for row in rows]
    starts = [np.cumsum([1, *map(len, of)])[:-1] for of in tokens]
    return pd.DataFrame(
        {
            "id": np.repeat([text.id for text in texts], [len(of) for of in tokens]),
            "token": np.concatenate([np.arange(1, len(of) + 1) for of in tokens]),
            "pos1": np.concatenate(starts),
            "kmer": np.concatenate(tokens),
            "log_p": np.concatenate([one.tokens[1:] for one in found]),
            "other": np.concatenate([one.other[1:] for one in found]),
        }
    )


def scores_of_bases(
    texts: Sequence[Masked], found: Sequence[Sequence[PseudoLikelihood]]
) -> pd.DataFrame:
    """A row a base: log_p of it, and of A, C, G, T in its place; the mean over strands."""
    # The other strand runs backwards, and the complement of A, C, G, T is T, G, C, A.
    logs = [
        np.mean([strands[0].bases, *(s.bases[::-1, ::-1] for s in strands[1:])], axis=0)
        for strands in found
    ]
    observed = np.concatenate([strands[0].observed for strands in found])
    flat = np.concatenate(logs)
    return pd.DataFrame(
        {
            "id": np.repeat([text.id for text in texts], [len(of) for of in logs]),
            "pos1": np.concatenate([np.arange(1, len(of) + 1) for of in logs]),
            "base": np.array(list(BASES + "N"))[observed],
            "log_p": flat[np.arange(len(flat)), observed],
        }
        | {f"log_p_{base}": flat[:, i] for i, base in enumerate(BASES)}
    )
