"""What a masked language model over k-mers says of k-mers, of single bases, of whole sequences.

A k-mer model masks k bases at once, so its answer at a ``<mask>`` is one distribution over k-mers.
Three things are read from it, in float64:

- the marginal of base j: the probabilities of all k-mers with base b at j, summed. It knows none
  of the masked bases;
- the conditional of base j: p(k-mer) / Σ_b p(k-mer with b at j). It knows the other k - 1 bases of
  its k-mer, as a model over single bases does that masks one;
- the pseudo-log-likelihood of a sequence: Σ log p(token | all other tokens) (Salazar et al., ACL
  2020). Base by base, it is the sum of the conditionals' logarithms.

A model also expects special tokens, N or single bases at a mask. Whether a k-mer or a single base
stands there follows from where the tokenizer cuts, not from the DNA; so probabilities are
normalised over the tokens of that kind, and the mass that is left out is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import MASK, ORDER, Tokenizer
from cedilla.errors import InputError
from cedilla.models.predictor import Predictor

BASES = "ACGT"
_ACGT = [ORDER.index(base) for base in BASES]  # from the tokenizer's order to ours
_COMPLEMENT = [ORDER.index(base) for base in "TAGC"]

# A row's number and the tokens of it that are masked together.
Masking = tuple[int, np.ndarray]


def kmer_mass(logits: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Probabilities (n, 4^k) of the k-mers, from logits (n, V) at n masks.

    Over the whole vocabulary: a row falls short of one by what all other tokens get.
    """
    return logits.double().softmax(dim=-1)[:, tokenizer.kmers]


def marginals(mass: Tensor) -> Tensor:
    """Probabilities (n, k, 4) of A, C, G, T at each of k bases, from the mass (n, 4^k) of k-mers.

    Normalised over k-mers.
    """
    n, k = len(mass), (mass.size(1).bit_length() - 1) // 2
    cube = (mass / mass.sum(dim=1, keepdim=True)).view(n, *[4] * k)
    others = [tuple(axis + 1 for axis in range(k) if axis != j) for j in range(k)]
    return torch.stack([cube.sum(dim=axes) if axes else cube for axes in others], dim=1)[..., _ACGT]


def base_probabilities(logits: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Marginal probabilities (n, k, 4) of A, C, G, T at each base of n masks; logits (n, V)."""
    return marginals(kmer_mass(logits, tokenizer))


def conditional_base_log_probabilities(
    logits: Tensor, kmers: np.ndarray, tokenizer: Tokenizer
) -> Tensor:
    """Log-probabilities (n, k, 4) of A, C, G, T at each base, given the k-mer's other bases.

    logits (n, V) at n masks; kmers (n,): the ids of the k-mers that stand there. The difference
    between two bases is the log-odds of the two k-mers.
    """
    numbers = torch.from_numpy(np.asarray(kmers, dtype=np.int64)) - tokenizer.kmers.start
    place = 4 ** torch.arange(tokenizer.k - 1, -1, -1)
    digits = numbers[:, None] // place % 4
    without = numbers[:, None] - digits * place
    four = without[..., None] + torch.tensor(_ACGT) * place[:, None]  # (n, k, 4)
    scores = logits.double()[:, tokenizer.kmers].gather(1, four.flatten(1))
    return scores.view(four.shape).log_softmax(dim=-1)


def reverse_complement_mass(mass: Tensor) -> Tensor:
    """The mass (n, 4^k) of k-mers with each k-mer's at the place of its reverse complement."""
    n, k = len(mass), (mass.size(1).bit_length() - 1) // 2
    cube = mass.view(n, *[4] * k).permute(0, *range(k, 0, -1))
    for axis in range(1, k + 1):
        cube = cube.index_select(axis, torch.tensor(_COMPLEMENT))
    return cube.reshape(n, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoLikelihood:
    """Log-probabilities, in nats, of the tokens and bases of one sequence, each given all else.

    tokens (L,): of each k-mer among k-mers, of each single base among those; NaN elsewhere.
    other (L,): where a k-mer stands, the probability of all that is no k-mer; NaN elsewhere.
    bases (B, 4): of A, C, G, T at each base, given the other bases of its k-mer; NaN at N.
    observed (B,): which of the four stands there; -1 at N.
    """

    tokens: np.ndarray
    other: np.ndarray
    bases: np.ndarray
    observed: np.ndarray

    @property
    def log_p(self) -> np.ndarray:
        """The log-probabilities of the observed bases (B,); NaN at N."""
        found = self.bases[np.arange(len(self.bases)), self.observed]
        return np.where(self.observed < 0, np.nan, found)

    @property
    def scored_tokens(self) -> int:
        """Tokens that count: k-mers and single bases."""
        return int(np.isfinite(self.tokens).sum())

    @property
    def scored_bases(self) -> int:
        """Bases that count: those that are not N."""
        return int((self.observed >= 0).sum())

    @property
    def pll(self) -> float:
        """The pseudo-log-likelihood: the sum over tokens."""
        return float(np.nansum(self.tokens))

    @property
    def base_pll(self) -> float:
        """The base-wise pseudo-log-likelihood: the sum over bases."""
        return float(np.nansum(self.log_p))


def pseudo_log_likelihood(
    model: Predictor,
    rows: Sequence[np.ndarray],
    *,
    batch_tokens: int = 4096,
    stride: int | None = None,
    advance: Callable[[int], object] = lambda tokens: None,
) -> list[PseudoLikelihood]:
    """Score rows of token ids (L_i,) of whole sequences, ``<cls>`` first.

    Each token is masked alone: a row of L tokens takes L forward passes. With a `stride`, tokens
    so far apart are masked together: `stride` passes, and an approximation, since each token is
    then predicted without its masked peers. `advance` is told how many tokens the model has read.
    """
    tokenizer = Tokenizer.for_model(model)
    layout = _Layout.of(rows, tokenizer)
    tokens, other = np.full((2, len(layout.ids)), np.nan)
    bases = np.full((len(layout.observed), 4), np.nan)
    kinds = (
        (tokenizer.kmers, conditional_base_log_probabilities),
        (tokenizer.bases, _single_base_log_probabilities),
    )
    for batch in batches(rows, maskings(rows, tokenizer, stride=stride), batch_tokens):
        at = np.concatenate([layout.starts[i] + places for i, places in batch])
        logits = torch.cat(masked_logits(model, rows, batch)).double()
        for kind, of_bases in kinds:
            is_kind = (layout.ids[at] >= kind.start) & (layout.ids[at] < kind.stop)
            here, found = at[is_kind], logits[is_kind]
            ids, mass = layout.ids[here], found[:, kind].logsumexp(dim=1)
            tokens[here] = found[np.arange(len(ids)), ids] - mass
            if kind is tokenizer.kmers:
                other[here] = -torch.expm1(mass - found.logsumexp(dim=1))
            four = of_bases(found, ids, tokenizer)
            bases[layout.first[here, None] + np.arange(four.size(1))] = four
        advance(sum(len(rows[i]) for i, _ in batch))
    return [
        PseudoLikelihood(
            tokens=tokens[a:b],
            other=other[a:b],
            bases=bases[c:d],
            observed=layout.observed[c:d],
        )
        for (a, b), (c, d) in layout.rows()
    ]


def _single_base_log_probabilities(logits: Tensor, _: np.ndarray, tokenizer: Tokenizer) -> Tensor:
    """As `conditional_base_log_probabilities`, of tokens of one base: (n, 1, 4)."""
    return logits[:, None, tokenizer.bases].log_softmax(dim=-1)[..., _ACGT]


def maskings(
    rows: Sequence[np.ndarray], tokenizer: Tokenizer, *, stride: int | None = None
) -> list[Masking]:
    """What is to be masked so that each k-mer and single base of `rows` is once."""
    found: list[Masking] = []
    for i, row in enumerate(rows):
        known = np.flatnonzero((row >= tokenizer.kmers.start) & (row < tokenizer.bases.stop))
        apart = len(known) if stride is None else stride
        found += [(i, known[start::apart]) for start in range(min(apart, len(known)))]
    return found


def written_masks(rows: Sequence[np.ndarray]) -> list[Masking]:
    """The masks that stand in `rows` already."""
    return [(i, np.flatnonzero(row == MASK)) for i, row in enumerate(rows)]


def batches(
    rows: Sequence[np.ndarray], wanted: Sequence[Masking], batch_tokens: int
) -> Iterator[list[Masking]]:
    """`wanted` in order, as many together as have `batch_tokens` tokens; one at least."""
    batch: list[Masking] = []
    held = 0
    for masking in wanted:
        size = len(rows[masking[0]])
        if batch and held + size > batch_tokens:
            yield batch
            batch, held = [], 0
        batch.append(masking)
        held += size
    if batch:
        yield batch


def masked_logits(
    model: Predictor, rows: Sequence[np.ndarray], batch: Sequence[Masking]
) -> list[Tensor]:
    """Logits (n_i, V) at the masked tokens of each of `batch`.

    Raises :class:`InputError` where numbers overflowed, as float16 can.
    """
    masked = [rows[i].copy() for i, _ in batch]
    for row, (_, at) in zip(masked, batch, strict=True):
        row[at] = MASK
    logits = model.logits(masked, at=[at for _, at in batch])
    if not all(bool(part.isfinite().all()) for part in logits):
        what, mend = "the model's answers are not finite", "pass --precision float32"
        raise InputError.one(f"{model.path} on {model.device}", what, mend)
    return logits


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows of token ids end to end, and their bases.

    ids (T,); starts (rows + 1,): where each row begins in them. first (T + 1,): which base each
    token begins with. observed (B,): A 0, C 1, G 2, T 3; -1 at N.
    """

    ids: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], tokenizer: Tokenizer) -> _Layout:
        ids = np.concatenate([np.empty(0, dtype=np.int32), *rows])
        width = np.zeros(len(tokenizer), dtype=np.int64)
        width[tokenizer.kmers] = tokenizer.k
        width[tokenizer.bases.start :] = 1  # N too
        codes = alphabet.encode(tokenizer.decode(ids.tolist())).astype(np.int64)
        return cls(
            ids,
            np.cumsum([0, *map(len, rows)]),
            np.cumsum(np.append(0, width[ids])),
            np.where(codes < len(BASES), codes, -1),
        )

    def rows(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Of each row, from where to where its tokens and its bases go."""
        yield from zip(pairwise(self.starts), pairwise(self.first[self.starts]), strict=True)
