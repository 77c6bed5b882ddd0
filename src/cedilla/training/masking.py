"""Windows of DNA as token ids, and what a masked language model hides of them."""

from __future__ import annotations

import numpy as np
import torch

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer

_LETTERS = np.frombuffer(alphabet.BASES.encode(), dtype=np.uint8)


def tokens_of(codes: np.ndarray, tokenizer: Tokenizer) -> torch.Tensor:
    """Windows (B, k·n) of base codes as token ids (B, 1 + n), ``<cls>`` first."""
    B, length = codes.shape
    letters = _LETTERS[codes].reshape(B, length // tokenizer.k, tokenizer.k)
    ids = tokenizer.kmer_ids(letters).astype(np.int64)
    return torch.from_numpy(np.pad(ids, ((0, 0), (1, 0)), constant_values=CLS))


def mask_tokens(
    ids: torch.Tensor, tokenizer: Tokenizer, rng: np.random.Generator, *, share: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Corrupt `share` of the tokens: 80 % to ``<mask>``, 10 % to another k-mer, 10 % kept.

    Returns
    -------
    corrupted ids (B, L), chosen (B, L) bool, and masked (B, L) bool: those of the chosen that
    became ``<mask>``, on which alone a loss can be compared between models.
    """
    chosen = torch.from_numpy(rng.random(ids.shape) < share)
    chosen[:, 0] = False
    fate = torch.from_numpy(rng.random(ids.shape))
    masked = chosen & (fate < 0.8)
    random = chosen & (fate >= 0.8) & (fate < 0.9)
    first, count = len(tokenizer.special), 4**tokenizer.k
    # A shift of at least one and less than all never gives the token itself.
    shift = torch.from_numpy(rng.integers(1, count, ids.shape))
    corrupted = ids.masked_fill(masked, MASK)
    corrupted = torch.where(random, (ids - first + shift) % count + first, corrupted)
    return corrupted, chosen, masked


def token_weights(soft: np.ndarray, k: int, soft_weight: float) -> torch.Tensor:
    """The weights (B, 1 + n) float32 of tokens in a loss, of soft-masked bases `soft` (B, k·n).

    A token weighs 1 if none of its k bases is soft-masked, `soft_weight` if all of them are, and
    in proportion between: a share s of soft-masked bases gives ``1 - s · (1 - soft_weight)``.
    ``<cls>``, which is never masked, weighs 0.
    """
    B, length = soft.shape
    share = soft.reshape(B, length // k, k).mean(axis=2, dtype=np.float32)
    weights = 1 - share * np.float32(1 - soft_weight)
    return torch.from_numpy(np.pad(weights, ((0, 0), (1, 0))))
